"""Open the folder of a run to work on it: a new run, a resumed one, or one that replaces another."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from unseen_ray.config.run import FREE_FIELDS, PruneConfig
from unseen_ray.config.scoring import scoring_stored
from unseen_ray.errors import ClusterError, ConfigError, DataError, RunInUseError, StorageError
from unseen_ray.plugins import current_names
from unseen_ray.runs.layout import (
    CHECKPOINTS,
    LOCK,
    MANIFEST,
    MANIFEST_COPY,
    UNFINISHED,
    is_temporary,
    top_of,
    votes_folder,
)
from unseen_ray.runs.manifest import Manifest, has_copy, read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import SourceEntry
from unseen_ray.runs.run import Run, files_of_run, flat_fields, now
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import RunLock, held
from unseen_ray.storage.tables import sha256_of_file

__all__ = ["open_run"]

logger = logging.getLogger(__name__)

# The manifest knows the data and its groups by their digests, so they may lie elsewhere when the run is resumed.
_MAY_DIFFER = (*FREE_FIELDS, "source", "test", "group")


@contextlib.contextmanager
def open_run(config: PruneConfig, source: SourceEntry, *, fresh: bool = False) -> Iterator[Run]:
    """Begin a run in `config.out`, or resume the one that is there; no other driver can work on it meanwhile.

    Args:
        config: as the user asked for it.
        source: the manifest's entry for the source.
        fresh: replace the run that is there; it is removed at the first commit of the new one.

    Raises:
        ConfigError: if `out` is missing, cannot be written, or holds something else or a run that would keep other ids.
        RunInUseError: if another driver works on it.
    """
    if not config.out:
        raise ConfigError("out is missing: name the folder that the run's files go to, such as --out runs/digits.")
    folder, asked = Folder(config.out), config.to_json()
    replaces = fresh and bool(files_of_run(folder))
    with contextlib.ExitStack() as stack:
        try:
            run = None if replaces else _found(folder, asked, source)
            # A finished, undamaged run is read without the lock, so several drivers may ask for it at once.
            if run is None or not run.manifest.finished or not has_copy(folder) or _damaged(run):
                run = _locked(stack, folder, asked, source, replaces)
        except StorageError as error:
            raise ConfigError(f"out={config.out} cannot be used: {error}") from None
        yield run


def _locked(
    stack: contextlib.ExitStack, folder: Folder, asked: dict[str, Any], source: SourceEntry, replaces: bool
) -> Run:
    """The run of a folder, or a new one, under its lock, which the stack releases."""
    lock = stack.enter_context(held(folder))
    # Look again: another driver may have worked on it until now.
    run, before = None if replaces else _found(folder, asked, source), read_manifest(folder)
    if run is None:
        stack.push(_withdraw_if_refused(lock))
        run = Run(folder, Manifest(created=now(), config=asked, asked=asked, source=source), lock, replaces)
    generation = 0 if before is None else before.generation + 1
    run = replace(run, folder=lock.folder, manifest=run.manifest.changed(generation=generation), lock=lock)
    if replaces:  # the old manifest stays until the first commit
        return run
    # Of an earlier start, only the copy of the manifest may be whole.
    write_manifest(run.folder, run.manifest)
    return _mended(run)


def _withdraw_if_refused(lock: RunLock) -> Callable[..., None]:
    """For an ExitStack: remove the manifest of a run that was refused before anything was trained.

    Decoded pixels are hours of work for a large source and are used again, so a manifest stays with them: without one, the
    next start would take the folder for somebody else's.
    """

    def withdraw(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, (ConfigError, DataError, ClusterError)):
            return
        with contextlib.suppress(StorageError, RunInUseError):
            folder = lock.folder
            lock.check()
            manifest = read_manifest(folder)
            alone = {MANIFEST, MANIFEST_COPY, LOCK}.issuperset(folder.names())
            if alone and manifest is not None and _is_untouched(folder, manifest):
                for name in (MANIFEST, MANIFEST_COPY):
                    folder.delete(name)

    return withdraw


def _found(folder: Folder, asked: dict[str, Any], source: SourceEntry) -> Run | None:
    """The run that a folder holds; None where one may begin; ConfigError where it holds something else."""
    others = [name for name in folder.names() if name != LOCK and not is_temporary(name)]
    # Read after the names: a driver that begins a run there meanwhile writes its manifest first.
    manifest = read_manifest(folder)
    if manifest is not None and not _is_untouched(folder, manifest):
        _check_same(folder, manifest, asked, source)
        return Run(folder, manifest)
    if manifest is None and any(top_of(name) in others for name in folder.files()):
        raise ConfigError(
            f"out={folder.root} holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''} and is not a run. "
            "Name a new or empty folder."
        )
    return None


def _is_untouched(folder: Folder, manifest: Manifest) -> bool:
    """Whether a run was begun there and refused before it finished anything, so that beginning anew loses nothing."""
    if manifest.kind != "prune" or manifest.stages or set(folder.names()) - UNFINISHED:
        return False
    return not Folder(folder.path(votes_folder(0))).names() and not Folder(folder.path(CHECKPOINTS)).files()


def _check_same(folder: Folder, manifest: Manifest, asked: dict[str, Any], source: SourceEntry) -> None:
    """ConfigError unless the run that is there was asked for in the same way, on the same data."""
    if manifest.kind != "prune":
        raise ConfigError(f"out={folder.root} holds the result of `unseen-ray {manifest.kind}`. Name a new folder.")
    there, here = (
        flat_fields({**current_names(fields), "scoring": scoring_stored(fields.get("scoring"))})
        for fields in (manifest.asked, asked)
    )
    differing = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in {**here, **there}
        if name not in _MAY_DIFFER and there.get(name) != here.get(name)
    ]
    if not manifest.source.is_same_data(source):
        there_rows, here_rows = manifest.source.rows or manifest.source.num_samples, source.num_samples
        how = f"{there_rows} samples there, {here_rows} here" if there_rows != here_rows else "labels, names or pixels"
        differing.append(f"the data itself ({how})")
    elif manifest.source.groups != source.groups:
        differing.append("which samples belong together (group)")
    if 0 < manifest.source.size_px != source.size_px:
        differing.append(f"the size of the images: {manifest.source.size_px} px there, {source.size_px} px here")
    if differing:
        raise ConfigError(
            f"out={folder.root} holds a run with another configuration; it differs in {'; '.join(differing)}. "
            "Name a new folder, or the fields as they were."
        )


def _damaged(run: Run) -> list[str]:
    """Files that the manifest names and that are missing or differ from what was written."""
    return [name for name, digest in run.manifest.files.items() if sha256_of_file(run.folder, name) != digest]


def _mended(run: Run) -> Run:
    """The run without its damaged files and without its stages, which are merged again; undamaged votes are kept."""
    damaged = _damaged(run)
    if not damaged:
        return run
    for name in damaged:
        logger.warning("%s is damaged or missing; its work is done again", run.folder.path(name))
        run.folder.delete(name)
    return run.commit(stages=[], files={}, finished=False)
