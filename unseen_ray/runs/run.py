"""A run folder: opened anew or resumed, and read back."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import FREE_FIELDS, PruneConfig
from unseen_ray.core.samples.coreset import Coreset
from unseen_ray.errors import ClusterError, ConfigError, DataError, RunInUseError, StorageError
from unseen_ray.plugins import current_names
from unseen_ray.runs.layout import (
    CHECKPOINTS,
    LEASE,
    MANIFEST,
    MANIFEST_COPY,
    OVERWRITTEN,
    PIXELS,
    UNFINISHED,
    is_ours,
    is_temporary,
    top_of,
    votes_folder,
)
from unseen_ray.runs.manifest import Manifest, has_copy, read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import Cost, SourceEntry
from unseen_ray.storage.filesystem import Folder, absolute_path, is_uri
from unseen_ray.storage.lock import RunLock, held
from unseen_ray.storage.path_validation import path_problem
from unseen_ray.storage.tables import StoredTable, read_table, sha256_of_file

__all__ = [
    "Run",
    "choosing_s",
    "clear_checkpoints",
    "clear_pixels",
    "clear_run",
    "coreset_of",
    "flat_fields",
    "load_run",
    "now",
    "open_run",
    "open_scores",
    "open_selection",
]

logger = logging.getLogger(__name__)

_SOURCES = ("source", "test")  # data is known by its fingerprint, wherever it lies


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder and its manifest; a change makes a new one.

    Attributes:
        folder, manifest: where it is, and what it holds.
        lease: the hold on it of a driver that works on it.
        replaces: whether the folder still holds another run, which the first commit removes.
    """

    folder: Folder
    manifest: Manifest
    lease: RunLock | None = None
    replaces: bool = False

    def commit(self, **changes: Any) -> Run:
        """Write a changed manifest and return the run that has it; RunInUseError if another driver has taken over."""
        self.check_ours()
        if self.replaces:
            clear_run(self.folder)
        manifest = self.manifest.changed(**changes)
        write_manifest(self.folder, manifest)
        return replace(self, manifest=manifest, replaces=False)

    def check_ours(self) -> None:
        """RunInUseError if another driver has taken over; to be called before anything is written."""
        if self.lease is not None:
            self.lease.check()

    def table(self, name: str) -> pa.Table:
        """A table of the run, from its file or its parts; StorageError if it is not what the manifest says was written."""
        return read_table(self.folder, name, self.manifest.files)

    def stored(self, name: str, *, hold: bool) -> StoredTable:
        """A table of the run, read whole if `hold` says so, else by whoever goes through it, piece by piece."""
        return StoredTable(self.folder, name, self.manifest.files, self.table(name) if hold else None)


@contextlib.contextmanager
def open_run(config: PruneConfig, source: SourceEntry, *, fresh: bool = False) -> Iterator[Run]:
    """Begin a run in `config.out`, or go on with the one that is there; no other driver works on it meanwhile.

    Args:
        config: as the user asked for it.
        source: the manifest's entry for the source.
        fresh: whether the run that is there gives way to a new one, at the new one's first commit.

    Raises:
        ConfigError: if the folder is missing from the configuration, cannot be written, holds something else, or a
            run that would pick other ids.
        RunInUseError: if another driver works on it.
    """
    if not config.out:
        raise ConfigError("out is missing: name the folder that the run's files go to, such as --out runs/digits.")
    folder, asked = Folder(config.out), config.to_json()
    replaces = fresh and bool(_files_of_ours(folder))
    with contextlib.ExitStack() as stack:
        if not is_uri(config.out) and not os.path.exists(absolute_path(config.out)):
            stack.callback(_remove_if_empty, config.out)
        try:
            run = None if replaces else _found(folder, asked, source)
            if run is None or not run.manifest.finished or not has_copy(folder) or _damaged(run):
                run = _taken(stack, folder, asked, source, replaces)
        except StorageError as error:
            raise ConfigError(f"out={config.out} cannot be used: {error}") from None
        yield run


def _taken(
    stack: contextlib.ExitStack, folder: Folder, asked: dict[str, Any], source: SourceEntry, replaces: bool
) -> Run:
    """The run of a folder, or a new one, with the lock, which the stack lets go."""
    lease = stack.enter_context(held(folder))
    # another driver may have been at work until now
    run = None if replaces else _found(folder, asked, source)
    if run is None:
        stack.push(_withdraw_if_refused(folder, lease))
        run = Run(folder, Manifest(created=now(), config=asked, asked=asked, source=source), lease, replaces)
    if replaces:  # the old manifest stays until the first commit
        return run
    write_manifest(folder, run.manifest)  # of an earlier start, only the copy may be whole
    return _mended(replace(run, lease=lease))


def _withdraw_if_refused(folder: Folder, lease: RunLock) -> Callable[..., None]:
    """For an ExitStack: take the manifest of a run away that was refused before anything was trained.

    Decoded pixels are hours of work for a large source and are used again, so a manifest stays with them: without one, the
    next start would take the folder for somebody else's.
    """

    def withdraw(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, (ConfigError, DataError, ClusterError)):
            return
        with contextlib.suppress(StorageError, RunInUseError):
            lease.check()
            manifest = read_manifest(folder)
            alone = {MANIFEST, MANIFEST_COPY, LEASE}.issuperset(folder.names())
            if alone and manifest is not None and _is_untouched(folder, manifest):
                for name in (MANIFEST, MANIFEST_COPY):
                    folder.delete(name)

    return withdraw


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):  # it holds a run
        os.rmdir(absolute_path(path))


def clear_run(folder: Folder) -> None:
    """Remove a run, and the runs that its evaluations made within it, but for what the next run writes over.

    Its manifest stays until then, so that a removal that was interrupted can be done again; and so do the lock, which the
    caller holds, and decoded pixels, which the next run has made or can use.

    Raises:
        ConfigError: if the folder holds anything else; nothing is removed then.
    """
    names = [name for name in _files_of_ours(folder) if top_of(name) not in OVERWRITTEN]
    for name in names:
        folder.delete(name)
    for name in {top_of(name) for name in names if "/" in name}:
        folder.delete_folder(name)


def _files_of_ours(folder: Folder) -> list[str]:
    """Names of a run's files; none in an empty folder.

    Raises:
        ConfigError: if the folder holds anything else, or a run that a newer unseen_ray wrote.
        StorageError: if the manifest is damaged.
    """
    names = folder.files()
    if not names:
        return []
    strangers = [name for name in names if not is_ours(name)]
    known = not {MANIFEST, MANIFEST_COPY}.isdisjoint(names)
    if not known or strangers:
        held_by_others = ", ".join(strangers[:3]) or ", ".join(names[:3])
        raise ConfigError(
            f"{folder.root} is not removed: it holds {held_by_others}{' and more' if len(strangers) > 3 else ''}, "
            f"{'which no run of ours has written' if known else f'and no {MANIFEST} of ours'}. Name another folder."
        )
    read_manifest(folder)
    return names


def open_selection(run: Run, config: PruneConfig) -> Run:
    """Begin a folder for a choice made again from a finished run; ConfigError if it holds anything."""
    asked = config.to_json()
    manifest = run.manifest.changed(
        created=now(),
        kind="select",
        config={
            **run.manifest.config,
            **{name: asked[name] for name in ("keep", "score", "policy", "guard", "combine", "schedule", "out")},
        },
        asked=asked,
        stages=[],
        files={},
        cost=Cost(),
        finished=False,
    )
    return _begin(config, manifest)


def open_scores(config: PruneConfig, source: SourceEntry) -> Run:
    """Begin a folder for scores that nothing is chosen by yet; ConfigError if it holds anything.

    Args:
        config: what was asked for; how much is kept is left to whoever chooses.
        source: the manifest's entry for the source.
    """
    asked = {**config.to_json(), "keep": None}
    return _begin(config, Manifest(created=now(), kind="score", config=asked, asked=asked, source=source))


def load_run(path: str, *, to_choose: bool = False) -> Run:
    """Open a run folder for reading.

    Args:
        path: the folder.
        to_choose: whether scores are enough; else there must be a coreset.

    Raises:
        ConfigError: if there is no run, it has not finished, or it holds scores by which nothing was chosen yet.
    """
    if problem := path_problem("the run's folder", path, "the `out` of a run"):
        raise ConfigError(problem)
    folder = Folder(path)
    try:
        manifest = read_manifest(folder)
    except StorageError as error:
        raise ConfigError(str(error)) from None
    if manifest is None:
        raise ConfigError(
            f"{path} holds no {MANIFEST}: it is no run folder. Give the `out` of a finished `unseen-ray prune`."
        )
    if manifest.kind == "sweep":
        raise ConfigError(f"{path} holds a sweep; its trials are the folders below {path}/trials, one for each seed.")
    if not manifest.finished:
        raise ConfigError(
            f"the run in {path} has not finished ({len(manifest.stages)} stages are). Run its `unseen-ray prune` line again first."
        )
    if manifest.kind == "score" and not to_choose:
        raise ConfigError(
            f"{path} holds scores, and nothing was chosen by them yet. Choose first: unseen-ray select {path} --keep 0.7 --out NEW."
        )
    return Run(folder, manifest)


def choosing_s(manifest: Manifest) -> float | None:
    """Seconds of workers that the choice of a run's coreset took: of all its fits, or of the stage 0 that it was chosen from."""
    cost = manifest.cost
    return cost.chosen_from_s if manifest.kind == "select" else cost.fit_seconds


def coreset_of(table: pa.Table) -> Coreset:
    """A coreset from the columns of coreset.parquet."""
    return Coreset(
        ids=np.asarray(table.column("id")),
        stages=np.asarray(table.column("stage")),
        scores=np.asarray(table.column("score")),
    )


def clear_checkpoints(folder: Folder) -> None:
    """Remove what trainings left to go on from, once nothing is left to train; a warning where storage will not."""
    try:
        folder.delete_folder(CHECKPOINTS)
    except StorageError as error:
        logger.warning("checkpoints that are needed no more stay: %s", error)


def clear_pixels(folder: Folder) -> None:
    """Remove the decoded pixels that a run kept for itself, once it is finished; a warning where storage will not."""
    try:
        folder.delete_folder(PIXELS)
    except StorageError as error:
        logger.warning("decoded pixels that are needed no more stay: %s", error)


def flat_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration with those of its recipe dotted."""
    flat = {name: value for name, value in config.items() if name != "recipe"}
    return {**flat, **{f"recipe.{name}": value for name, value in (config.get("recipe") or {}).items()}}


def _begin(config: PruneConfig, manifest: Manifest) -> Run:
    """A new folder with its manifest."""
    assert config.out is not None
    folder = Folder(config.out)
    others = folder.names()
    before = read_manifest(folder) if others else None
    begun_alike = (
        before is not None and not before.finished and (before.kind, before.asked) == (manifest.kind, manifest.asked)
    )
    if others and not begun_alike:
        raise ConfigError(f"out={config.out} holds {', '.join(others[:3])}. Name a new or an empty folder.")
    try:
        write_manifest(folder, manifest)
    except StorageError as error:
        raise ConfigError(f"out={config.out} cannot be used: {error}") from None
    return Run(folder, manifest)


def _is_untouched(folder: Folder, manifest: Manifest) -> bool:
    """Whether a run was begun there and refused before anything was finished, so that nothing is lost by beginning anew."""
    if manifest.kind != "prune" or manifest.stages or set(folder.names()) - UNFINISHED:
        return False
    return not Folder(folder.path(votes_folder(0))).names() and not Folder(folder.path(CHECKPOINTS)).files()


def _found(folder: Folder, asked: dict[str, Any], source: SourceEntry) -> Run | None:
    """The run that a folder holds; None where one may begin; ConfigError where it holds something else."""
    others = [name for name in folder.names() if name != LEASE and not is_temporary(name)]
    manifest = read_manifest(folder)  # after the names: whoever begins a run there meanwhile writes it first
    if manifest is not None and not _is_untouched(folder, manifest):
        _check_same(folder, manifest, asked, source)
        return Run(folder, manifest)
    if manifest is None and others:
        raise ConfigError(
            f"out={folder.root} holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''} and no run of ours. "
            "Name a new or an empty folder."
        )
    return None


def _damaged(run: Run) -> list[str]:
    """Files that the manifest names and that are not there as they were written."""
    return [name for name, digest in run.manifest.files.items() if sha256_of_file(run.folder, name) != digest]


def _mended(run: Run) -> Run:
    """The run without what is damaged, and without the stages, which are merged anew: whole votes are not made again."""
    damaged = _damaged(run)
    if not damaged:
        return run
    for name in damaged:
        logger.warning("%s is damaged or missing; its work is done again", run.folder.path(name))
        run.folder.delete(name)
    return run.commit(stages=[], files={}, finished=False)


def now() -> str:
    """This moment, as manifests say it: ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_same(folder: Folder, manifest: Manifest, asked: dict[str, Any], source: SourceEntry) -> None:
    before = manifest.asked
    if manifest.kind != "prune":
        raise ConfigError(f"out={folder.root} holds the result of `unseen-ray {manifest.kind}`. Name a new folder.")
    there, here = (flat_fields(current_names(fields)) for fields in (before, asked))
    differing = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in {**here, **there}
        if name not in (*FREE_FIELDS, *_SOURCES) and there.get(name) != here.get(name)
    ]
    if manifest.source.fingerprint != source.fingerprint:
        differing.append(f"the data itself ({manifest.source.num_samples} samples there, {source.num_samples} here)")
    if differing:
        raise ConfigError(
            f"out={folder.root} holds a run with another configuration; it differs in {'; '.join(differing)}. "
            "Name a new folder, or the fields as they were."
        )
