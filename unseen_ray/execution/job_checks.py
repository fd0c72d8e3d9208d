"""What of a run a job on a cluster finds again: the files of its working directory, and what lies on storage that all nodes share."""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

from unseen_ray.config.run import PruneConfig
from unseen_ray.data.sources.registry import SOURCES, path_options, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import is_uri

__all__ = ["shippable", "shipped_yaml"]


def shipped_yaml(run_yaml: str, working_dir: str) -> str:
    """The path of a YAML file as the job sees it, from within its copy of the working directory.

    Raises:
        ConfigError: if it lies elsewhere, so that it would not be there.
    """
    if not os.path.isdir(working_dir):
        raise ConfigError(
            f"--working-dir {working_dir} is not a folder. Name the one that holds the YAML and your own functions."
        )
    inside = os.path.relpath(os.path.realpath(run_yaml), os.path.realpath(working_dir))
    if _leads_out(inside):
        raise ConfigError(
            f"{run_yaml} lies outside the working directory {working_dir}, which is all that the job gets. "
            "Put it there, or name another --working-dir."
        )
    return inside


def shippable(fields: Mapping[str, Any], working_dir: str) -> PruneConfig:
    """The configuration of a run that is to be submitted.

    Args:
        fields: of the YAML and the flags.
        working_dir: the folder whose copy the job runs in.

    Raises:
        ConfigError: with every problem at once: of the configuration, and of what a job would not find, or would lose.
    """
    problems = list(_out_problems(fields.get("out")))
    try:
        config = PruneConfig(**fields)
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    for field, place in _places(config):
        if _is_everywhere(place):
            continue
        if _leads_out(os.path.normpath(place)) or not glob.glob(os.path.join(working_dir, place)):
            problems.append(
                f"{field}={place!r} is relative, and the working directory {working_dir} that the job gets a copy of has no such "
                "file. Give an absolute path or a URI that every node sees."
            )
    for place in config.reuse or []:
        if not _is_everywhere(place):
            problems.append(
                f"reuse={place!r} is relative. Give the absolute path or the URI of the other run's folder."
            )
    if config.executor == "local":
        problems.append(
            "executor: local would train everything in one process of the head node. Remove it, or use `unseen-ray prune`."
        )
    if config.address is not None:
        problems.append(
            f"address={config.address!r} in the YAML has no effect in a job, which works on the cluster it was submitted to. Remove it."
        )
    if problems:
        raise ConfigError(problems)
    return config


def _out_problems(out: Any) -> Iterator[str]:
    allowed = "Give an absolute path or a URI on storage that every node shares, such as --out /shared/runs/mine."
    if not out:
        yield f"out is missing. {allowed}"
    elif isinstance(out, str) and not _is_everywhere(out):
        yield f"out={out!r} is relative: it would be lost with the job's copy of the working directory. {allowed}"


def _places(config: PruneConfig) -> Iterator[tuple[str, str]]:
    """The paths that a run reads its data and its start weights from, with the field that names each."""
    for field, recipe in (("recipe", config.recipe), ("scoring.recipe", config.scoring.recipe)):
        if recipe is not None and recipe.init is not None:
            yield f"{field}.init", recipe.init
    for field, value in (("source", config.source), ("test", config.test)):
        ref = None if value is None else source_ref(value, field=field)
        if ref is None or not isinstance(ref.use, str) or ref.use not in SOURCES:
            continue
        parameters = inspect.signature(SOURCES[ref.use]).parameters
        for name in path_options(ref.use):
            if (place := ref.options.get(name, parameters[name].default)) is not None:
                yield field, str(place)


def _is_everywhere(place: str) -> bool:
    """Whether a path means the same wherever it is read; `~` is the home of the cluster's user."""
    return is_uri(place) or os.path.isabs(place) or place.startswith("~")


def _leads_out(path: str) -> bool:
    return path == os.pardir or path.startswith(os.pardir + os.sep)
