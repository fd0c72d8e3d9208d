"""Export the coreset: ids, keys or all columns in a file, the pruned data set, or a torch Subset."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow.fs import copy_files

from unseen_ray.errors import ConfigError
from unseen_ray.execution.api import PruneResult, load, run_of
from unseen_ray.plugins import did_you_mean
from unseen_ray.reporting.dataset import check_file, own_function, pack, source_of
from unseen_ray.runs.layout import CORESET
from unseen_ray.storage.filesystem import DEFAULT_ROW_GROUP, absolute_path, filesystem_of, is_uri
from unseen_ray.storage.path_validation import path_problem
from unseen_ray.storage.retry import retried
from unseen_ray.storage.tables import StoredTable

if TYPE_CHECKING:
    from torch.utils.data import Subset

__all__ = ["ENDINGS", "export", "torch_subset"]

ENDINGS = {
    ".npy": "ids, int64, sorted",
    ".txt": "keys, one per line",
    ".csv": "id, key, label, stage, score",
    ".parquet": "id, key, label, stage, score",
}

FORMS = ("webdataset",)

_LINES = 2**14  # keys that are Python strings at the same time


def export(result: PruneResult | str | os.PathLike[str], to: str | os.PathLike[str], *, form: str | None = None) -> int:
    """Write the coreset of a finished run; the file's ending determines the content.

    Args:
        result: a finished run, or its folder.
        to: a path or URI ending in .npy (ids), .txt (keys), .csv or .parquet (all columns); without an ending, or with a
            slash, a folder for the pruned data set itself, see `dataset.pack`.
        form: of a pruned data set: `webdataset` for tars; None for the form of the source.

    Returns:
        The number of samples written.

    Raises:
        ConfigError: if the ending is none of these, or the file or folder cannot be written.
        DataError: if the data set cannot be read.
    """
    run, to = run_of(result), os.fspath(to)
    if problem := path_problem("--to", to):
        raise ConfigError(problem)
    ending = os.path.splitext(to)[1].lower()
    is_folder = not ending or to.endswith("/")
    _check_form(form, ending, to, is_folder=is_folder)
    if is_folder:
        return pack(run, to, form)
    check_file(to, run)
    table = StoredTable(run.folder, CORESET, run.manifest.files).verified()
    try:
        with _put_in_place(to) as stream:
            _WRITERS[ending](table, stream)
    except OSError as error:
        raise ConfigError(f"--to {to} cannot be written: {error}") from None
    return table.num_rows


def _check_form(form: str | None, ending: str, to: str, *, is_folder: bool) -> None:
    if form not in (None, *FORMS):
        raise ConfigError(
            f"--as {form} is no form of a data set. Allowed: {', '.join(FORMS)}; without it, the form of the source."
        )
    if form is not None and not is_folder:
        raise ConfigError(
            f"--as {form} makes a folder, and --to {to} names a file. Name a folder, with a slash at its end."
        )
    if not is_folder and ending not in ENDINGS:
        known = "; ".join(f"{name} ({what})" for name, what in ENDINGS.items())
        raise ConfigError(
            f"--to {to} ends in {ending!r}. Allowed are {known}, and a folder, without an ending or with a slash, for the "
            f"pruned data set.{did_you_mean(ending, ENDINGS)}"
        )


def torch_subset(
    result: PruneResult | str | os.PathLike[str],
    transform: Callable[[Any], Any] | None = None,
    *,
    source: Any = None,
) -> Subset[tuple[Any, int]]:
    """The coreset as a torch Subset of the source's (PIL image, label) pairs.

    Args:
        result: a finished run, or its folder.
        transform: applied to each image.
        source: where the data is now, as in `PruneConfig`; None if it has not moved. Required for a run that was loaded from
            its folder and whose source is a function of your own, since nothing that a folder names is imported.

    Raises:
        ConfigError: if such a source is not given.
        DataError: if the data is missing, or is not what the run chose from.
    """
    from unseen_ray.data.torch_dataset import subset_of

    done = result if isinstance(result, PruneResult) else load(result)
    if source is None and done.in_hand:
        source = done.config.source
    if source is None and (name := own_function(done.run)):
        raise ConfigError(
            f"the run's source is {name}, a user-defined function, and nothing that a run folder names is imported. "
            f'Give it yourself: torch_subset(result, source="{name}"), or the function itself.'
        )
    return subset_of(source_of(done.run, source), done.coreset.ids, transform)


@contextlib.contextmanager
def _put_in_place(to: str) -> Iterator[IO[bytes]]:
    """A file to write, which stands in its place, whole, in the end; what fails leaves there what was there."""
    if is_uri(to):
        with tempfile.TemporaryDirectory(prefix="unseen-ray-export-") as scratch:
            with open(os.path.join(scratch, "file"), "xb") as stream:
                yield stream
            fs, target = filesystem_of(to)
            retried(to, functools.partial(copy_files, stream.name, target, destination_filesystem=fs))
        return
    path = absolute_path(to)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(aside, "xb") as stream:
            yield stream
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def _write_ids(table: StoredTable, stream: IO[bytes]) -> None:
    header = {"descr": "<i8", "fortran_order": False, "shape": (table.num_rows,)}
    np.lib.format.write_array_header_1_0(stream, header)
    for batch in table.batches(["id"]):
        stream.write(batch.column("id").to_numpy().astype("<i8", copy=False).tobytes())


def _write_keys(table: StoredTable, stream: IO[bytes]) -> None:
    for batch in table.batches(["key"]):
        column = batch.column("key")
        for start in range(0, len(column), _LINES):
            keys = column.slice(start, _LINES).to_pylist()
            broken = next((key for key in keys if "\n" in key or "\r" in key), None)
            if broken is not None:
                raise ConfigError(
                    f"key {broken!r} holds a line break, so that one key a line cannot hold it. Export to .csv or .parquet."
                )
            stream.write("".join(f"{key}\n" for key in keys).encode())


def _write_csv(table: StoredTable, stream: IO[bytes]) -> None:
    import pyarrow.csv

    with pyarrow.csv.CSVWriter(stream, table.schema) as writer:
        for batch in table.batches():
            writer.write_batch(batch)


def _write_parquet(table: StoredTable, stream: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        for group in _groups(table.batches()):
            writer.write_table(group)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to row groups, so that a file has few of them, as if it had been written at once."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) >= DEFAULT_ROW_GROUP:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


_WRITERS: dict[str, Callable[[StoredTable, IO[bytes]], None]] = {
    ".npy": _write_ids,
    ".txt": _write_keys,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
