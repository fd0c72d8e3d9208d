"""Export the coreset: ids, keys or all columns in a file, the pruned data set, or a torch Subset."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow.fs import copy_files

from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.execution.api import PruneResult, load
from unseen_ray.plugins import did_you_mean
from unseen_ray.reporting.dataset import check_file, own_function, pack, source_of
from unseen_ray.reporting.sampling_pool import write_pool_of_run
from unseen_ray.runs.layout import CORESET
from unseen_ray.storage.filesystem import DEFAULT_ROW_GROUP, absolute_path, filesystem_of, is_uri
from unseen_ray.storage.path_validation import as_text, path_problem
from unseen_ray.storage.plain_text import as_cells, reason_of
from unseen_ray.storage.retry import retried
from unseen_ray.storage.tables import StoredTable, check_rows, joined

if TYPE_CHECKING:
    from torch.utils.data import Subset

    from unseen_ray.config.fields.keywords import SourceLike
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.runs.run import Run

__all__ = ["ENDINGS", "export", "torch_subset"]

ENDINGS = {
    ".npy": "ids, int64, sorted; --as weights: 1 or 0 for each row of the source, float32",
    ".txt": "keys, one per line",
    ".csv": "id, key, label, stage, score; an apostrophe before keys that a spreadsheet would take for formulas",
    ".parquet": "id, key, label, stage, score",
    ".json": "what KeptSampler draws from",
}

FORMS = {
    "webdataset": "a folder",
    "weights": ".npy",
    "holdout": ".npy",
    "sampler": ".json",
}  # --as, and the --to that each is for

_LINES = 2**14  # keys that are Python strings at the same time
_ROWS = 2**20  # of the source, in memory at the same time


def export(
    result: PruneResult | str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    form: Literal["webdataset", "weights", "holdout", "sampler"] | None = None,
    source: SourceLike | None = None,
) -> int:
    """Write the coreset of a finished run; the file's ending determines the content.

    Args:
        result: a finished run, or its folder.
        to: a path or URI ending in .npy (ids), .txt (keys), .csv or .parquet (all columns), or .json (what a `KeptSampler` needs
            where it cannot read the run); without an ending, or with a slash, a folder for the pruned data set itself, see
            `dataset.pack`.
        form: `webdataset` for tars in a folder; `weights` for a .npy of float32 for every row of the source, 1 if it is kept, else
            0; `holdout` for a .npy of the ids that were set aside; `sampler` for .json; None for what the ending says, and for a
            pruned data set in the form of its source.
        source: where the data is now, for a pruned data set, as in `PruneConfig`; None if it has not moved.

    Returns:
        The number of samples kept; with `holdout`, set aside.

    Raises:
        ConfigError: if the ending is none of these or does not go with the form, or the file or folder cannot be written.
        DataError: if the data set cannot be read.
    """
    done = result if isinstance(result, PruneResult) else load(result)
    run, to = done.run, as_text(to)
    if problem := path_problem("--to", to):
        raise ConfigError(problem)
    to = os.path.expanduser(to)
    ending = os.path.splitext(to)[1].lower()
    is_folder = not ending or to.endswith("/")
    _check_form(form, "a folder" if is_folder else ending, to)
    if is_folder:
        return pack(run, to, form, source)
    if source is not None:
        raise ConfigError(f"--source has an effect only where --to is a folder, and {to} is a file. Remove it.")
    check_file(to, run)
    return _write_holdout(done, to) if form == "holdout" else _write_file(run, to, form or ending)


def _write_file(run: Run, to: str, kind: str) -> int:
    table = StoredTable(run.folder, CORESET, run.manifest.files).verified()
    _check_rows(run, table)
    with _put_in_place(to) as stream:
        _WRITERS[kind](run, table, stream)
    return table.num_rows


def _write_holdout(done: PruneResult, to: str) -> int:
    if not done.manifest.source.holdout:
        raise ConfigError(
            f"the run in {done.path} has no holdout to export. Prune with holdout: 0.1 to set a part aside."
        )
    ids = done.holdout_ids
    with _put_in_place(to) as stream:
        np.save(stream, ids)
    return len(ids)


def _check_rows(run: Run, table: StoredTable) -> None:
    """StorageError if the coreset holds an id that the source has not, or one twice, or lacks a value."""
    last = -1
    for batch in table.batches():
        rows = pa.Table.from_batches([batch])
        check_rows(
            rows, run.folder.path(CORESET), rows=run.manifest.source.rows, num_classes=run.manifest.source.num_classes
        )
        ids = batch.column("id").to_numpy()
        if len(ids) and ids[0] <= last:
            raise StorageError(
                f"{run.folder.path(CORESET)} is damaged or forged: its ids do not rise from part to part."
            )
        last = int(ids[-1]) if len(ids) else last


def _check_form(form: str | None, kind: str, to: str) -> None:
    if form not in (None, *FORMS):
        known = ", ".join(f"{name} ({goes_with})" for name, goes_with in FORMS.items())
        raise ConfigError(
            f"--as {form} is not a form of an export. Allowed: {known}; without it, the ending of --to or the form of the source decides."
        )
    if form is not None and kind != FORMS[form]:
        wanted = "a folder, with a slash at its end" if FORMS[form] == "a folder" else f"a file ending in {FORMS[form]}"
        raise ConfigError(
            f"--as {form} is for {FORMS[form]}, and --to {to} names {kind if kind == 'a folder' else f'a {kind} file'}. "
            f"Name {wanted}, or leave out --as."
        )
    if kind not in ("a folder", *ENDINGS):
        known = "; ".join(f"{name} ({what})" for name, what in ENDINGS.items())
        raise ConfigError(
            f"--to {to} ends in {kind!r}. Allowed are {known}, and a folder, without an ending or with a slash, for the "
            f"pruned data set (--as webdataset: as tars).{did_you_mean(kind, ENDINGS)}"
        )


def torch_subset(
    result: PruneResult | str | os.PathLike[str],
    transform: Callable[[Any], Any] | None = None,
    *,
    source: SourceLike | None = None,
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
    """A file to write, which stands in its place, whole, in the end; what fails leaves there what was there, with ConfigError."""
    try:
        yield from _opened(to)
    except OSError as error:
        raise ConfigError(f"--to {to} cannot be written: {reason_of(error)}.") from None


def _opened(to: str) -> Iterator[IO[bytes]]:
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


def _write_ids(run: Run, table: StoredTable, stream: IO[bytes]) -> None:
    _begin_array(stream, "<i8", table.num_rows)
    for batch in table.batches(["id"]):
        stream.write(batch.column("id").to_numpy().astype("<i8", copy=False).tobytes())


def _write_weights(run: Run, table: StoredTable, stream: IO[bytes]) -> None:
    rows, done = run.manifest.source.rows, 0
    _begin_array(stream, "<f4", rows)
    for batch in table.batches(["id"]):
        ids = batch.column("id").to_numpy()
        stream.writelines(_weights(ids, done, int(ids[-1]) + 1))
        done = int(ids[-1]) + 1
    stream.writelines(_weights(np.empty(0, np.int64), done, rows))


def _weights(ids: IdArray, start: int, end: int) -> Iterator[bytes]:
    """The weights of rows [start, end), of which these sorted ids are kept; in pieces, as few ids may lie far apart."""
    for low in range(start, end, _ROWS):
        weights = np.zeros(min(_ROWS, end - low), "<f4")
        weights[ids[slice(*np.searchsorted(ids, (low, low + len(weights))))] - low] = 1
        yield weights.tobytes()


def _begin_array(stream: IO[bytes], dtype: str, length: int) -> None:
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": (length,)})


def _write_keys(run: Run, table: StoredTable, stream: IO[bytes]) -> None:
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


def _write_csv(run: Run, table: StoredTable, stream: IO[bytes]) -> None:
    import pyarrow.csv

    with pyarrow.csv.CSVWriter(stream, table.schema) as writer:
        for batch in table.batches():
            place = batch.schema.get_field_index("key")
            writer.write_batch(batch.set_column(place, batch.schema.field(place), as_cells(batch.column(place))))


def _write_parquet(run: Run, table: StoredTable, stream: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        # Whole row groups, so that a file has few of them, as if it had been written at once.
        for group in joined(table.batches(), DEFAULT_ROW_GROUP):
            writer.write_table(group)


def _write_sampler(run: Run, table: StoredTable, stream: IO[bytes]) -> None:
    write_pool_of_run(run, stream)


_WRITERS: dict[str, Callable[[Run, StoredTable, IO[bytes]], None]] = {
    ".npy": _write_ids,
    "weights": _write_weights,
    ".txt": _write_keys,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".json": _write_sampler,
    "sampler": _write_sampler,
}
