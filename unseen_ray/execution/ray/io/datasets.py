"""Ray Datasets in and out: a data set is stored once as Parquet and then pruned; tables and kept images are read by Ray's workers."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data.block import BlockAccessor

from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.images.encode import to_png
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.sources.registry import Source, SourceRef, open_source
from unseen_ray.errors import BadSampleError, ConfigError, DataError
from unseen_ray.execution.ray.connect import ensure_session
from unseen_ray.storage.filesystem import Folder, filesystem_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from unseen_ray.runs.manifest_entries import SourceEntry

__all__ = ["read_by_ray", "store_dataset", "with_images"]

logger = logging.getLogger(__name__)

_WRITTEN = "_written.json"  # sources pass over what begins with an underscore
_WRITING = "_writing.json"
_OURS = re.compile(r"part-\d{6,}\.parquet")
_BATCH = 256
_FIRST = 16  # rows by which another Dataset is told apart at once
_DIGEST = "digest of the row"
_DIGEST_BYTES = 16
_ROW_GROUP = 1024


def read_by_ray(folder: str, files: Sequence[str]) -> ray.data.Dataset:
    """Parquet files of a run as a Dataset in their order, read by Ray's workers."""
    ensure_session()
    filesystem, root = filesystem_of(folder)
    # Without `partitioning`, Ray would take a folder above the run called lr=0.1 for a column.
    dataset = ray.data.read_parquet([f"{root}/{file}" for file in files], filesystem=filesystem, partitioning=None)
    dataset.context.execution_options.preserve_order = True
    dataset.context.print_on_execution_start = False
    # Elsewhere Ray logs a dozen lines a second in their place.
    dataset.context.enable_progress_bars &= sys.stdout.isatty()
    return dataset


def with_images(rows: ray.data.Dataset, ref: SourceRef, entry: SourceEntry, *, size_px: int | None) -> ray.data.Dataset:
    """Rows with a column `id`, each with its image from a source: decoded to (size_px, size_px, 3) uint8, or as it is stored.

    The source must be the data of `entry`; a worker that finds other data there raises DataError.
    """
    opening = ray.cloudpickle.dumps((ref, entry))  # also of a function in a script or a notebook
    return rows.map_batches(
        _add_images, fn_kwargs={"opening": opening, "size_px": size_px}, batch_size=_BATCH, batch_format="numpy"
    )


def _add_images(batch: dict[str, NDArray[Any]], *, opening: bytes, size_px: int | None) -> dict[str, Any]:
    source, ids = _opened(opening), batch["id"].tolist()
    # sources read ascending ids best
    raws = dict(source.read(sorted(set(ids))))
    if size_px is None:
        stored = (raws[number] for number in ids)
        images: Any = np.array([raw if isinstance(raw, bytes) else to_png(raw) for raw in stored], object)
    else:
        images = np.stack([_pixels(source, number, raws[number], size_px) for number in ids])
    return {**batch, "image": images}


def _pixels(source: Source, number: int, raw: Any, size_px: int) -> NDArray[np.uint8]:
    try:
        return to_pixels(raw, size_px)
    except UndecodableError as error:
        raise BadSampleError(source.keys([number]), str(error), 1) from None


@functools.lru_cache(maxsize=2)
def _opened(opening: bytes) -> Source:
    """A source, opened once in each of Ray's worker processes."""
    ref, entry = pickle.loads(opening)  # pickled by the driver in this very session
    source = open_source(ref)
    if not entry.is_same_data(source.info):
        raise DataError(
            f"source {source.info.name} has changed since the run, or is another source: its samples are not those that were chosen."
        )
    return source


def store_dataset(
    dataset: ray.data.Dataset,
    folder: Folder,
    *,
    image: str,
    label: str,
    group: str | None = None,
    anew: bool = False,
) -> None:
    """Write the images and labels of a Dataset as Parquet, in its order, unless the folder holds them already.

    Whether it does, one pass over the Dataset tells, which may give its rows in another order.

    Args:
        dataset: with a column of encoded images or of (H, W), (H, W, 1) or (H, W, 3) uint8 arrays, and one of integers or text.
        folder: on storage that every node shares, behind the fence of a lock.
        image, label: the columns.
        group: a further column to store, which says what belongs together; None for none.
        anew: write what the folder holds once more.

    Raises:
        ConfigError: if the Dataset lacks a column, or the folder holds something else, or another Dataset.
        DataError: if a value of a column is of another kind, or not all rows can be read from here.
    """
    columns = {"image": image, "label": label, "group": group}
    _check_columns(columns, dataset.columns() or [])
    first = _digest_of(dataset.take(_FIRST), columns)
    if not anew and _is_stored(folder, dataset, columns, first):
        return
    _clear(folder)
    rows, digest = _write(dataset, folder, columns)
    seen = sum(_rows_of(folder.path(name)) for name in folder.files() if _OURS.fullmatch(name))
    if seen != rows:
        raise DataError(
            f"{rows} rows were written to {folder.root}, and {seen} can be read from here. Give an out on storage that all nodes share."
        )
    folder.write(_WRITTEN, json.dumps({**columns, "rows": rows, "first": first, "digest": digest}).encode())


def _check_columns(columns: dict[str, str | None], names: Sequence[str]) -> None:
    for field, name in columns.items():
        if name is not None and name not in names:
            raise ConfigError(f"the Dataset has no column {name!r}; it has {', '.join(names)}. Name it: {field}=...")
    group = columns["group"]
    if group in ("image", "label") and group != columns[group]:
        raise ConfigError(
            f"group={group!r} is the name under which the {group} column {columns[group]!r} is stored. Rename it."
        )


def _clear(folder: Folder) -> None:
    """Make a folder ready to be written; ConfigError if anything in it is not of an earlier write."""
    if others := [name for name in folder.files() if name not in (_WRITING, _WRITTEN) and not _OURS.fullmatch(name)]:
        raise ConfigError(f"{folder.root} holds {', '.join(others[:3])}. Remove the folder, or name another out.")
    if folder.files() and folder.read(_WRITING) is None:
        raise ConfigError(f"{folder.root} holds Parquet files that were not written from a Dataset. Name another out.")
    folder.write(_WRITING, b"")  # so that leftovers of an interrupted write are known to be ours
    for name in folder.files():
        if name != _WRITING:
            folder.delete(name)


def _write(dataset: ray.data.Dataset, folder: Folder, columns: dict[str, str | None]) -> tuple[int, str]:
    """Write a Dataset; how many rows there are, and the digest of all."""
    # A copy, as the options of a Dataset are those of all that are made from it.
    stored = ray.data.Dataset.copy(dataset, _deep_copy=True)
    stored.context.execution_options.preserve_order = True
    parts = _Parts(folder)
    try:
        _mapped(stored, _encoded, columns).write_datasink(parts)
    except ray.exceptions.RayError as error:
        raise DataError(_reason(error)) from None
    return parts.rows, parts.digest


def _mapped(dataset: ray.data.Dataset, function: Any, columns: dict[str, str | None]) -> ray.data.Dataset:
    named = list(dict.fromkeys(name for name in columns.values() if name is not None))
    return dataset.select_columns(named).map_batches(
        function, fn_kwargs=columns, batch_size=_BATCH, batch_format="pyarrow"
    )


class _Parts(ray.data.Datasink):  # type: ignore[misc]
    """Writes each block as one file, whole or not at all, under a name that its place in the Dataset gives."""

    def __init__(self, folder: Folder) -> None:
        self.rows, self.digest, self._folder = 0, "", folder

    def write(self, blocks: Iterable[Any], ctx: Any) -> bytes:
        """Write the blocks of a task, whose digest is returned; called by Ray's workers."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        if not any(table.num_rows for table in tables):
            return _sum_of([])
        table, sink = pa.concat_tables(tables), pa.BufferOutputStream()
        pq.write_table(table.drop_columns(_DIGEST), sink, row_group_size=_ROW_GROUP)
        self._folder.write(f"part-{ctx.task_idx:06d}.parquet", memoryview(sink.getvalue()))
        return _sum_of(table.column(_DIGEST).to_pylist())

    def on_write_complete(self, write_result: Any) -> None:
        """Take the number of rows and their digest; called in the driver."""
        self.rows = int(write_result.num_rows)
        self.digest = _sum_of(write_result.write_returns).hex()


def _is_stored(folder: Folder, dataset: ray.data.Dataset, columns: dict[str, str | None], first: str) -> bool:
    """Whether a folder holds this Dataset already; ConfigError if it holds another one."""
    if (found := folder.read(_WRITTEN)) is None:
        return False
    known = json.loads(found)
    same = known["first"] == first and all(known.get(field) == name for field, name in columns.items())
    # Folders of earlier versions know the first rows alone.
    if not same or ("digest" in known and known["digest"] != _digest_of_all(dataset, columns)):
        raise ConfigError(
            f"{folder.root} holds another Dataset, or other columns of it: its rows differ. Name another out, or set fresh=True."
        )
    logger.info("reusing the Dataset that was written to %s before", folder.root)
    return True


def _digest_of(rows: list[dict[str, Any]], columns: dict[str, str | None]) -> str:
    """SHA-256 of the images, labels and groups of some rows."""
    digest, image = hashlib.sha256(), str(columns["image"])
    for row in rows:
        digest.update(_bytes_of(row[image], image))
        for field in ("label", "group"):
            if (name := columns[field]) is not None:
                digest.update(repr(row[name]).encode())
    return digest.hexdigest()


def _digest_of_all(dataset: ray.data.Dataset, columns: dict[str, str | None]) -> str:
    """A digest of all rows of a Dataset, in any order."""
    try:
        rows = _mapped(dataset, _digests, columns).take_all()
    except ray.exceptions.RayError as error:
        raise DataError(_reason(error)) from None
    return _sum_of(row[_DIGEST] for row in rows).hex()


def _digests(batch: pa.Table, **columns: str | None) -> pa.Table:
    """The digest of a batch in one row."""
    return pa.table({_DIGEST: pa.array([_sum_of(_each_digest(batch, columns))], pa.binary())})


def _each_digest(batch: pa.Table, columns: dict[str, str | None]) -> Iterator[bytes]:
    """The digest of each row of a batch, of its image as it is given."""
    image = str(columns["image"])
    told = [batch.column(name).to_pylist() for field in ("label", "group") if (name := columns[field]) is not None]
    for value, *others in zip(BlockAccessor.for_block(batch).to_numpy([image])[image], *told, strict=True):
        raw = _raw_of(value, image)
        shape = "" if isinstance(raw, bytes) else raw.shape
        digest = hashlib.blake2b(repr((shape, others)).encode(), digest_size=_DIGEST_BYTES)
        digest.update(raw if isinstance(raw, bytes) else raw.tobytes())
        yield digest.digest()


def _sum_of(digests: Iterable[bytes]) -> bytes:
    """The sum of digests, which does not depend on their order."""
    total = sum(int.from_bytes(each, "big") for each in digests)
    return int(total % 256**_DIGEST_BYTES).to_bytes(_DIGEST_BYTES, "big")


def _rows_of(path: str) -> int:
    fs, place = filesystem_of(path)
    with fs.open_input_file(place) as file:
        return int(pq.read_metadata(file).num_rows)


def _reason(error: Exception) -> str:
    """Our own message out of the traceback that Ray makes of an error in a task, else the traceback's last line."""
    lines = str(error).strip().splitlines()
    ours = f"{DataError.__module__}.{DataError.__qualname__}: "
    return next(
        (line.removeprefix(ours) for line in lines if line.startswith(ours)),
        f"the Dataset cannot be written: {lines[-1]}",
    )


def _encoded(batch: pa.Table, *, image: str, label: str, group: str | None) -> pa.Table:
    """The stored columns of a batch; groups as they are, since numpy would make floats of integers where some are missing."""
    arrays = BlockAccessor.for_block(batch).to_numpy([image, label])
    stored = {
        "image": pa.array([_bytes_of(value, image) for value in arrays[image]], pa.binary()),
        "label": arrays[label],
        _DIGEST: pa.array(list(_each_digest(batch, {"image": image, "label": label, "group": group})), pa.binary()),
    }
    return pa.table({**({} if group is None else {group: batch.column(group)}), **stored})


def _bytes_of(value: Any, column: str) -> bytes:
    raw = _raw_of(value, column)
    return raw if isinstance(raw, bytes) else to_png(raw)


def _raw_of(value: Any, column: str) -> bytes | NDArray[np.uint8]:
    """An image as it is encoded, or as (H, W) or (H, W, 3) pixels; DataError for anything else."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    if isinstance(value, bytes):
        return value
    pixels = np.asarray(value)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(
            f"column {column!r} of the Dataset holds {pixels.dtype} of shape {pixels.shape}; images are encoded (bytes), or uint8 of "
            "shape (H, W), (H, W, 1) or (H, W, 3). Convert them with map_batches first."
        )
    return pixels
