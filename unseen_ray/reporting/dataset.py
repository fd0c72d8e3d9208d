"""The pruned data set, in the form of its source: Parquet with all columns, or images in class folders."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import itertools
import os
import tempfile
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import copy_files

from unseen_ray.core.outofcore.chunks import spread
from unseen_ray.data.images.encode import to_png
from unseen_ray.data.sources.folder import FolderSource
from unseen_ray.data.sources.registry import Source, SourceRef, open_source, source_ref
from unseen_ray.data.sources.tables.labels import image_schema
from unseen_ray.data.sources.tables.source import TableSource
from unseen_ray.errors import ConfigError, DataError, StorageError
from unseen_ray.plugins import is_target, name_of
from unseen_ray.reporting.tars import write_tars
from unseen_ray.runs.layout import CORESET, MANIFEST, MANIFEST_COPY, is_temporary
from unseen_ray.storage.filesystem import Folder, absolute_path, filesystem_of, is_uri, real_path
from unseen_ray.storage.lock import LOCK, held
from unseen_ray.storage.path_validation import as_text
from unseen_ray.storage.patterns import covers, is_glob, without_braces
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import retried

if TYPE_CHECKING:
    from unseen_ray.config.fields.keywords import SourceLike
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.runs.run import Run

__all__ = ["check_file", "own_function", "pack", "source_of"]

_AT_ONCE = 16  # files that are copied concurrently
_PART = 2048  # images in one Parquet file that we make


def pack(run: Run, to: str, form: str | None = None, source: SourceLike | None = None) -> int:
    """Write the kept samples into a new folder.

    A source of Parquet files becomes Parquet files with the same names, columns and metadata; images that it only references are
    embedded. So does one of Arrow files or of a list, with the ending .parquet. A class-per-folder tree (`folder`, `imagenet`)
    becomes a tree with the same files and every class folder.
    `digits` and `cifar*` become Parquet in the Hugging Face image schema.

    Args:
        run: a finished run, whose source can be opened without importing anything that the run folder names.
        form: `webdataset` for tars, see `tars.write_tars`; None for the form of the source.
        source: where the data is now; None for the place in the manifest.
        to: a new or empty folder or URI. A local folder is filled only once everything is written.

    Returns:
        How many samples were written.

    Raises:
        ConfigError: if `to` holds anything, lies in the source, or cannot be written; or if the source is a user's function.
        DataError: if the source is missing, or has changed since the run, or a key would lead out of the folder.
        RunInUseError: if another process writes there.
    """
    _check_place(to, run, source)
    opened, ids = source_of(run, source), run.table(CORESET, ["id"]).column("id").to_numpy()
    try:
        with _aside(to) as folder:
            if form == "webdataset":
                write_tars(opened, ids, folder)
            elif isinstance(opened, FolderSource):
                _copy_files(opened, ids, folder)
            else:
                _write_parts(_parts_of(opened, ids), folder)
    except (OSError, StorageError) as error:
        raise ConfigError(f"--to {to} cannot be written: {reason_of(error)}.") from None
    return len(ids)


def source_of(run: Run, source: SourceLike | None = None) -> Source:
    """A run's source, opened without importing anything that the run folder names.

    Args:
        run: a finished run.
        source: the source as the caller gives it; None for the one in the manifest.

    Raises:
        ConfigError: if it is a user's function that only the folder names.
        DataError: if it is missing, or is not the data that the run chose from.
    """
    if source is None and (name := own_function(run)):
        raise ConfigError(
            f"the run's source is {name}, a user-defined function, which is not imported for a run folder."
        )
    opened = open_source(_ref_of(run) if source is None else source_ref(as_text(source)))
    if not run.manifest.source.is_same_data(opened.info):
        raise DataError(
            f"source {opened.info.name} has changed since the run, or is another one: its samples are no longer those that were chosen. "
            "Bring the data back, or prune again."
        )
    return opened


def own_function(run: Run) -> str:
    """`package.module:function` if a run's source is a user-defined function, else an empty string."""
    use = _ref_of(run).use
    return name_of(use) if is_target(use) else ""


def _ref_of(run: Run) -> SourceRef:
    return source_ref(run.manifest.asked["source"])


def _check_place(to: str, run: Run, source: SourceLike | None) -> None:
    others = [] if os.path.isfile(to) else _strangers(Folder(to))
    if os.path.isfile(to) or others:
        held = f"holds {', '.join(others[:3])}" if others else "is a file"
        raise ConfigError(f"--to {to} {held}. Name a new or empty folder for the pruned data set.")
    if source is None and own_function(run):
        raise ConfigError(
            f"--to {to} cannot be made: the run's source is a user-defined function, which is not imported for a run "
            "folder. Name it again: --source package.module:function; or export ids (.npy) or keys (.txt)."
        )
    for place in source_ref(as_text(source)).places if source is not None else _places_of(run):
        if covers(place, to):
            raise ConfigError(f"--to {to} lies in the source {place}, which it would change. Name a folder elsewhere.")


def check_file(to: str, run: Run) -> None:
    """Refuse a file that belongs to the run or to its source.

    Raises:
        ConfigError: naming what would be overwritten.
    """
    if is_uri(to) == is_uri(run.folder.root):
        inner = os.path.relpath(real_path(to), real_path(run.folder.root))
        own = (MANIFEST, MANIFEST_COPY, *run.manifest.files)
        if inner in own or any(name.startswith(f"{inner}/") for name in own):
            raise ConfigError(f"--to {to} is a file of the run itself. Name another one.")
    for place in _places_of(run):
        # A source may be a glob, or a folder whose .parquet files are all read.
        files = without_braces(place) if is_glob(place) else [place]
        read = any(fnmatch.fnmatch(real_path(to), real_path(each)) for each in files)
        read = read or (to.endswith(".parquet") and covers(place, to))
        if read:
            raise ConfigError(f"--to {to} is part of the source {place}, which it would change. Name another file.")


def _places_of(run: Run) -> list[str]:
    """The paths of a run's source; none for a user-defined function."""
    return [] if own_function(run) else _ref_of(run).places


def _strangers(folder: Folder) -> list[str]:
    """What a folder holds other than the lock and the unfinished files of an export."""
    return [name for name in folder.names() if name != LOCK and not is_temporary(name)]


@contextlib.contextmanager
def _aside(to: str) -> Iterator[Folder]:
    """A folder to fill, whose lock is held; its content ends up in `to`, or, after an error, nowhere."""
    with held(Folder(absolute_path(to))) as lock:
        folder = lock.folder
        if others := _strangers(folder):  # an export that has ended since the first look
            raise ConfigError(f"--to {to} holds {', '.join(others[:3])}. Name a new or empty folder.")
        for name in filter(is_temporary, folder.names()):
            folder.delete_folder(name)
        try:
            if is_uri(to):  # an object store has no rename
                yield folder
                return
            made = folder.within(f".{uuid.uuid4().hex[:8]}.tmp")
            os.makedirs(made.root)
            yield made
            folder.confirm()
            for name in os.listdir(made.root):
                os.replace(made.path(name), folder.path(name))
        except BaseException:
            for name in set(folder.names()) - {LOCK}:
                folder.delete_folder(name)
                folder.delete(name)
            raise
        folder.delete_folder(os.path.basename(made.root))


def _copy_files(source: FolderSource, ids: IdArray, folder: Folder) -> None:
    keys = source.keys(ids.tolist())
    for key in keys:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise DataError(f"key {key!r} leads out of the folder or is not a plain path. Rename the file.")
    # Also classes that keep no image: classes are numbered by their folders, so a missing one would shift the others.
    for name in source.info.class_names:
        fs, path = filesystem_of(folder.path(name))
        fs.create_dir(path, recursive=True)

    def copy(sample: tuple[int, str]) -> None:
        ((_, data),) = source.read([sample[0]])
        assert isinstance(data, bytes)
        folder.write(sample[1], data)

    for _ in spread(zip(ids.tolist(), keys, strict=True), copy, _AT_ONCE):
        pass


def _parts_of(source: Source, ids: IdArray) -> Iterator[tuple[str, pa.Table]]:
    """File name and rows of each piece; the pieces of a file are consecutive."""
    if isinstance(source, TableSource):
        for name, table in source.tables(ids.tolist()):
            yield name if name.endswith(".parquet") else f"{os.path.splitext(name)[0]}.parquet", table
        return
    info = source.info
    schema = image_schema(info.class_names)
    for number, start in enumerate(range(0, len(ids), _PART)):
        part = ids[start : start + _PART].tolist()
        rows = [
            {"bytes": image if isinstance(image, bytes) else to_png(image), "path": None}
            for _, image in source.read(part)
        ]
        columns = {"image": rows, "label": info.labels_N[part], "key": source.keys(part)}
        yield f"part-{number:05d}.parquet", pa.table(columns, schema)


def _write_parts(parts: Iterator[tuple[str, pa.Table]], folder: Folder) -> None:
    """Write the pieces of each file; an object store receives a file once it is complete."""
    remote = is_uri(folder.root)
    with tempfile.TemporaryDirectory(prefix="unseen-ray-export-") as scratch:
        for name, pieces in itertools.groupby(parts, key=lambda part: part[0]):
            path = os.path.join(scratch if remote else folder.root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # The writer needs the schema before the first row.
            first = next(pieces)[1]
            with pq.ParquetWriter(path, first.schema, compression="zstd", write_page_checksum=True) as writer:
                for table in itertools.chain([first], (piece for _, piece in pieces)):
                    writer.write_table(table)
            if remote:
                fs, target = filesystem_of(folder.path(name))
                retried(folder.path(name), functools.partial(copy_files, path, target, destination_filesystem=fs))
                os.unlink(path)
