"""A run folder and its manifest: read back, committed to, cleared, and begun by `select` and `score`."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig
from unseen_ray.core.samples.coreset import Coreset
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.plugins import current_names
from unseen_ray.runs.layout import (
    CHECKPOINTS,
    CORESET,
    LOCK,
    MANIFEST,
    MANIFEST_COPY,
    OVERWRITTEN,
    PIXELS,
    UNFINISHED,
    is_ours,
    is_temporary,
    stage_coreset,
    top_of,
)
from unseen_ray.runs.manifest import Manifest, check_generation, read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import Cost, SourceEntry
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import RunLock, held
from unseen_ray.storage.path_validation import path_problem
from unseen_ray.storage.tables import StoredTable, check_rows, read_table

__all__ = [
    "Run",
    "choosing_s",
    "clear_checkpoints",
    "clear_pixels",
    "clear_run",
    "clear_stages",
    "coreset_of",
    "files_of_run",
    "flat_fields",
    "load_run",
    "now",
    "open_scores",
    "open_selection",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder and its manifest; a change returns a new one.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        lock: held by a driver that works on the run; None for one that only reads it.
        replaces: whether the folder still holds another run, which the first commit removes.
    """

    folder: Folder
    manifest: Manifest
    lock: RunLock | None = None
    replaces: bool = False

    def commit(self, **changes: Any) -> Run:
        """Write a changed manifest and return the run that has it; RunInUseError if another driver has taken over."""
        self.check_ours()
        check_generation(self.folder, self.manifest)
        # Only now: everything that could refuse the new run has passed.
        if self.replaces:
            clear_run(self.folder)
        manifest = self.manifest.changed(**changes)
        write_manifest(self.folder, manifest)
        return replace(self, manifest=manifest, replaces=False)

    def released(self) -> Run:
        """The finished run, for reading it when its lock is not held any more."""
        return replace(self, folder=Folder(self.folder.root), lock=None)

    def check_ours(self) -> None:
        """RunInUseError if another driver has taken over; call it before anything is written."""
        if self.lock is not None:
            self.lock.check()

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table of the run, or some columns; StorageError if it differs from what was written, or is no such table."""
        table, source = read_table(self.folder, name, self.manifest.files, columns), self.manifest.source
        check_rows(table, self.folder.path(name), rows=source.rows, num_classes=source.num_classes)
        return table

    def stored(self, name: str, *, hold: bool) -> StoredTable:
        """A table of the run: in memory if `hold` is set, else read in batches by its user."""
        return StoredTable(self.folder, name, self.manifest.files, self.table(name) if hold else None)


def clear_run(folder: Folder) -> None:
    """Remove a run and the runs that its evaluations made within it, except what the next run writes over.

    The manifest stays until then, so that an interrupted removal can be repeated. So do the lock, which the caller holds, and
    decoded pixels, which the next run has made or can use.

    Raises:
        ConfigError: if the folder holds anything else; nothing is removed then.
    """
    names = [name for name in files_of_run(folder) if top_of(name) not in OVERWRITTEN]
    for name in names:
        folder.delete(name)
    # Of our folders those without a file as well, as an interrupted fit leaves them.
    for name in ({top_of(name) for name in names if "/" in name} | UNFINISHED) - OVERWRITTEN:
        folder.delete_folder(name)


def files_of_run(folder: Folder) -> list[str]:
    """Names of all files of the run in a folder; none if the folder is empty.

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
    read_manifest(folder)  # refuses the run of a newer unseen_ray
    return names


def open_selection(run: Run, config: PruneConfig, used: PruneConfig) -> AbstractContextManager[Run]:
    """Begin a folder for a choice made again from a finished run, and hold its lock; see `_begun`.

    Args:
        run: the finished run.
        config: what was asked for.
        used: the same with the policy and the guard that `policy: auto` stands for.
    """
    asked, resolved = config.to_json(), used.to_json()
    manifest = run.manifest.changed(
        created=now(),
        kind="select",
        config={
            **run.manifest.config,
            **{name: resolved[name] for name in ("keep", "score", "policy", "guard", "combine", "schedule", "out")},
        },
        asked=asked,
        stages=[],
        files={},
        cost=Cost(),
        finished=False,
        generation=0,
    )
    return _begun(config, manifest)


def open_scores(config: PruneConfig, source: SourceEntry) -> AbstractContextManager[Run]:
    """Begin a folder for scores that nothing is chosen by yet, and hold its lock; see `_begun`.

    Args:
        config: what was asked for; its `keep` is not used.
        source: the manifest's entry for the source.
    """
    asked = {**config.to_json(), "keep": None}
    return _begun(config, Manifest(created=now(), kind="score", config=asked, asked=asked, source=source))


def load_run(path: str, *, to_choose: bool = False) -> Run:
    """Open a run folder for reading.

    Args:
        path: the folder.
        to_choose: whether scores are enough; otherwise there must be a coreset.

    Raises:
        ConfigError: if there is no run, it has not finished, or it holds scores and no coreset.
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
            f"{path} holds no {MANIFEST}: it is not a run folder. Give the `out` of a finished `unseen-ray prune`."
        )
    if manifest.kind == "sweep":
        raise ConfigError(f"{path} holds a sweep; its trials are the folders below {path}/trials, one for each seed.")
    if not manifest.finished:
        raise ConfigError(
            f"the run in {path} has not finished: stages so far: {len(manifest.stages)}. Run the same `unseen-ray prune` line again first."
        )
    if manifest.kind == "score" and not to_choose:
        raise ConfigError(
            f"{path} holds scores and no coreset yet. Choose first: unseen-ray select {path} --keep 0.7 --out NEW."
        )
    return Run(folder, manifest)


def choosing_s(manifest: Manifest) -> float | None:
    """Worker seconds that went into choosing a run's coreset: of all its fits, or of the stage 0 that it was chosen from.

    None if unknown, as where the user's own models predicted.
    """
    if manifest.is_of_given_probs:
        return None
    cost = manifest.cost
    return cost.chosen_from_s if manifest.kind == "select" else cost.fit_seconds


def coreset_of(run: Run) -> Coreset:
    """A run's coreset, without keys and labels; StorageError if its file is missing or damaged."""
    table = run.table(CORESET, ["id", "stage", "score"])
    return Coreset(
        ids=np.asarray(table.column("id")),
        stages=np.asarray(table.column("stage")),
        scores=np.asarray(table.column("score")),
    )


def clear_checkpoints(folder: Folder) -> None:
    """Remove the checkpoints once nothing is left to train; where that fails, a warning."""
    _clear("checkpoints", CHECKPOINTS, folder.delete_folder)


def clear_pixels(folder: Folder) -> None:
    """Remove the decoded pixels that a run kept in its folder, once it is finished; where that fails, a warning."""
    _clear("decoded pixels", PIXELS, folder.delete_folder)


def clear_stages(run: Run) -> None:
    """Remove the coresets of a finished run's stages, which the final one holds; where that fails, a warning."""
    for stage in run.manifest.stages:
        # It is a file, or a folder of parts.
        for delete in (run.folder.delete_folder, run.folder.delete):
            _clear("the coreset of a stage", stage_coreset(stage.index), delete)


def _clear(what: str, name: str, delete: Callable[[str], None]) -> None:
    """Remove what a finished run does not need; its result is none the worse where that fails."""
    try:
        delete(name)
    except StorageError as error:
        logger.warning("no longer needed, and not removed: %s: %s", what, error)


def flat_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration with those of its recipe and of its scoring dotted."""
    parts = ("recipe", "scoring")
    flat = {name: value for name, value in config.items() if name not in parts}
    return flat | {f"{part}.{name}": value for part in parts for name, value in (config.get(part) or {}).items()}


@contextlib.contextmanager
def _begun(config: PruneConfig, manifest: Manifest) -> Iterator[Run]:
    """A new folder with its manifest, whose lock is held within the block.

    Raises:
        ConfigError: if it holds anything but the same choice, unfinished.
        RunInUseError: if another driver works on it.
    """
    assert config.out is not None
    folder = Folder(config.out)
    _check_new(folder, manifest)  # before the lock, which would be a file among somebody else's
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(held(folder))
            generation = _check_new(folder, manifest)
            run = Run(lock.folder, manifest.changed(generation=generation), lock)
            write_manifest(run.folder, run.manifest)
        except StorageError as error:
            raise ConfigError(f"out={config.out} cannot be used: {error}") from None
        yield run


def _check_new(folder: Folder, manifest: Manifest) -> int:
    """The generation of a choice that begins in a folder; ConfigError if that holds anything but the same one, unfinished."""
    others = [name for name in folder.names() if name != LOCK and not is_temporary(name)]
    before = read_manifest(folder) if others else None
    # The same line after an interruption: what it has written is written again.
    begun_alike = (
        before is not None
        and not before.finished
        and before.kind == manifest.kind
        and current_names(before.asked) == current_names(manifest.asked)
    )
    if others and not begun_alike:
        raise ConfigError(f"out={folder.root} holds {', '.join(others[:3])}. Name a new or empty folder.")
    return before.generation + 1 if before is not None else 0


def now() -> str:
    """The present time as manifests store it: ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
