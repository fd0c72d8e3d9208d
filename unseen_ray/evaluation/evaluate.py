"""`evaluate`: the coreset of a run, further choices of it and its baselines, each pruned where it has not been, then measured."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import EXECUTOR_FIELDS, NAMED_FIELDS, PruneConfig, jsonable
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.evaluation.table import Budget, Evaluation
from unseen_ray.evaluation.trainings import DEFAULT_AGAINST, DEFAULT_SEEDS, Chosen, check_evaluable
from unseen_ray.evaluation.trainings import evaluate as run_evaluation
from unseen_ray.execution.session import PruneResult, executor_for, ignore, load, prune
from unseen_ray.execution.tracking import tracked
from unseen_ray.plugins import is_target
from unseen_ray.pruning.executor import Observer
from unseen_ray.runs.layout import FITTING, selection_folder
from unseen_ray.runs.run import choosing_s
from unseen_ray.storage.filesystem import sha256_of

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_CHANGES = ("model", "recipe", "threads", "gpus_per_fit", "log_to", *EXECUTOR_FIELDS)


def evaluate(
    result: PruneResult | str | os.PathLike[str],
    *,
    test: Any = None,
    seeds: int = DEFAULT_SEEDS,
    against: Sequence[str] = DEFAULT_AGAINST,
    selections: int = 1,
    budget: Budget = "epochs",
    on_event: Observer | None = None,
    **changes: Any,
) -> Evaluation:
    """Train the same recipe on the coreset and on baselines, and measure after the last epoch.

    Args:
        result: a finished run, or its folder.
        test: a source with the same classes; None for the run's `test`, else its holdout.
        seeds: trainings of each choice of an arm's subset.
        against: baselines: `random` (another subset of the same size for each training), `random_matched` (the same with
            as many samples of each class as the coreset has), `full`, `fitting` (the coreset of the same configuration in
            `mode: fitting`, pruned first if it has not been).
        selections: how often the coreset is chosen: the run's own, and more by the same configuration with `seed` + 1,
            `seed` + 2, ..., pruned first in the run's folder `selections`.
        budget: `epochs`: every arm as many passes over its own samples; `iterations`: every arm as many steps as all
            samples get.
        on_event: is told of progress.
        **changes: `model`, `recipe` (a mapping without `use` changes the run's own), `threads`, `log_to`, and where to run:
            `executor`, `address`, `cpus_per_fold`, `gpus_per_fold`, `max_retries`, `wait_s`. Where a run was read from its folder
            and names functions of its user's own, these are imported only if named here again: `source`, `score`, `policy`, ...

    Raises:
        ConfigError: if there is nothing to measure on, a baseline is unknown, or a function that only the folder names is needed.
    """
    done = result if isinstance(result, PruneResult) else load(result)
    prunes = selections > 1 or "fitting" in against
    resolved = _evaluated(done, changes, test, prunes=prunes)
    config = resolved.config
    check_evaluable(resolved, against=against, seeds=seeds, selections=selections, budget=budget)
    runs = [done, *(_again(done, config, number, on_event) for number in range(1, selections))]
    chosen = {"coreset": _chosen(runs)}
    if "fitting" in against:
        chosen["fitting"] = _chosen([_fitting(run, config, on_event) for run in runs])
    tasks = seeds * selections * (1 + len(against))
    within = f"evaluate-{budget}-{_digest(config)}"
    with executor_for(config, tasks) as executor, tracked(config, on_event or ignore, within=within) as observer:
        return run_evaluation(
            resolved,
            chosen,
            against=against,
            skipped_ids=np.array(done.manifest.source.skipped_ids, np.int64),
            seeds=seeds,
            budget=budget,
            executor=executor,
            on_event=observer,
        )


def _evaluated(done: PruneResult, changes: dict[str, Any], test: Any, *, prunes: bool) -> ResolvedRun:
    """The run's configuration with the changes of an evaluation, on the data that the run pruned."""
    if unknown := sorted(changes.keys() - {*_CHANGES, *NAMED_FIELDS}):
        raise ConfigError(f"evaluate takes no {unknown[0]!r}; it takes {', '.join((*_CHANGES, *NAMED_FIELDS))}.")
    other = [
        name
        for name in NAMED_FIELDS
        if name in changes and name != "source" and jsonable(changes[name]) != jsonable(getattr(done.config, name))
    ]
    if other:
        raise ConfigError(
            f"{other[0]}={changes[other[0]]!r} is not the run's, which is {getattr(done.config, other[0])!r}. evaluate measures what the "
            "run chose; choose otherwise by `unseen-ray select` or a new run."
        )
    asked = {**changes, "out": done.path} | ({"test": test} if test is not None else {})
    recipe = asked.get("recipe")
    if isinstance(recipe, dict) and "use" not in recipe:
        asked["recipe"] = recipe_values(recipe, base=done.config.recipe)
    if asked.get("executor") == "local":
        asked = {"address": None, "gpus_per_fit": 1, **asked}
    if done.config.fit is not None and "model" in changes:
        asked["fit"] = None
    config = done.config.changed(**asked)
    if not done.in_hand:
        _check_named(config, changes if test is None else {**changes, "test": test}, prunes=prunes)
    if recipe is None:
        precision = done.manifest.config["recipe"]["precision"]
        config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"precision": precision})})
    info = open_source(source_ref(config.source)).info
    if info.fingerprint != done.manifest.source.fingerprint:
        raise ConfigError(
            f"source {info.name} is not the data that {done.path} was pruned from: it has {len(info)} samples, there were "
            f"{done.manifest.source.rows}, or their labels or files changed. Bring the data back, or prune again."
        )
    return ResolvedRun.of(_started_alike(config, done), info.size_px)


def _started_alike(config: PruneConfig, done: PruneResult) -> PruneConfig:
    """Start weights that are the run's own are to be the file that the run began with."""
    if config.recipe.init is None or config.recipe.init != done.config.recipe.init:
        return config
    before = {name: done.manifest.config["recipe"].get(name) for name in ("init", "init_sha256")}
    return config.model_copy(update={"recipe": config.recipe.model_copy(update=before)})


def _check_named(config: PruneConfig, given: dict[str, Any], *, prunes: bool) -> None:
    """Say which functions are going to be imported, and refuse those that only the run's folder names.

    Raises:
        ConfigError: naming each, and how to give it.
    """
    fields = ("source", "test", "model", "fit", *(("score", "also_score", "policy", "guard") if prunes else ()))
    values = {name: getattr(config, name) for name in fields}
    each = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    named = {name: target for name, its in each.items() for one in its if is_target(target := _use_of(one))}
    strange = [
        f"the run's {name} is {target}, a function of its user's own, and nothing that a run folder alone names is imported. "
        f"Name it yourself: --{name} {target}."
        for name, target in named.items()
        if name not in given
    ]
    if strange:
        raise ConfigError(strange)
    for name, target in named.items():
        logger.info("importing %s for %s", target, name)


def _use_of(value: Any) -> Any:
    return value.get("use") if isinstance(value, dict) else value


def _chosen(runs: Sequence[PruneResult]) -> Chosen:
    costs = [choosing_s(run.manifest) for run in runs]
    known = [cost for cost in costs if cost is not None]
    mean = sum(known) / len(runs) if len(known) == len(runs) else None
    devices = {task.device for run in runs for stage in run.manifest.stages for task in stage.tasks}
    return Chosen(tuple(run.coreset.ids for run in runs), mean, tuple(sorted(devices)))


def _again(done: PruneResult, config: PruneConfig, number: int, on_event: Observer | None) -> PruneResult:
    """The coreset that the same configuration picks with another seed."""
    given = {**_given(done, config), "seed": done.config.seed + number}
    return prune(PruneConfig(**given, out=done.run.folder.path(selection_folder(number))), on_event=on_event)


def _fitting(done: PruneResult, config: PruneConfig, on_event: Observer | None) -> PruneResult:
    """The coreset that the usual baseline picks: the run's own scores and policy, from models that saw what they score."""
    given = _given(done, config)
    for name in ("folds", "train_on", "stratify", "schedule", "guard"):
        given.pop(name, None)
    return prune(PruneConfig(**{**given, "mode": "fitting"}, out=done.run.folder.path(FITTING)), on_event=on_event)


def _given(done: PruneResult, config: PruneConfig) -> dict[str, Any]:
    """What the run was asked for, its folders apart, to be done where the evaluation runs."""
    given = {name: getattr(done.config, name) for name in done.config.model_fields_set - {"out", "reuse"}}
    if config.executor == "local":
        given.pop("gpus_per_fit", None)
    return given | {name: getattr(config, name) for name in ("log_to", *EXECUTOR_FIELDS)}


def _digest(config: PruneConfig) -> str:
    """What tells evaluations of one run apart that train or measure in different ways."""
    values = config.to_json()
    said = [values[name] for name in ("model", "recipe", "threads", "test", "gpus_per_fit")]
    return sha256_of(json.dumps(said, sort_keys=True).encode())[:6]
