"""Tables of a run, read and written in pieces: one Parquet file, or a folder of that name with parts in id order.

A long `scores.parquet` is `scores.parquet/part-00000.parquet` and so on; pyarrow, pandas and Ray Data read both forms.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unseen_ray.errors import StorageError
from unseen_ray.storage.filesystem import (
    DEFAULT_ROW_GROUP,
    Folder,
    filesystem_of,
    parquet_options,
    pieces_of,
    remedy_to_read,
)
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import is_of_storage, retried, retried_inline

__all__ = [
    "StoredTable",
    "TableWriter",
    "check_rows",
    "copy_table",
    "group_ends",
    "joined",
    "part_file",
    "parts_of",
    "read_table",
    "sha256_of_file",
    "sha256_of_stream",
    "with_file",
    "with_parquet",
    "write_batches",
    "write_table",
]

_BATCH = 2**18  # rows

_T = TypeVar("_T")


def part_file(name: str, number: int) -> str:
    """The file name of a part of a table."""
    return f"{name}/part-{number:05d}.parquet"


def parts_of(name: str, files: Mapping[str, str]) -> list[str]:
    """The files of a table in order, as a manifest names them: the file itself, or its parts."""
    parts = sorted(file for file in files if file.startswith(f"{name}/part-"))
    return parts if parts and name not in files else [name]


def write_table(folder: Folder, name: str, table: pa.Table, *, part_rows: int | None) -> dict[str, str]:
    """Write a table and return the SHA-256 of each file; see `TableWriter` and `Folder.write`."""
    writer = TableWriter(folder, name, table.num_rows, part_rows=part_rows)
    writer.add(table)
    return writer.close()


def write_batches(folder: Folder, name: str, table: StoredTable, *, part_rows: int | None) -> dict[str, str]:
    """Write a table that is read in pieces; see `write_table`."""
    writer = TableWriter(folder, name, table.num_rows, part_rows=part_rows)
    for batch in table.batches():
        writer.add(pa.Table.from_batches([batch]))
    return writer.close()


def read_table(folder: Folder, name: str, files: Mapping[str, str], columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table from its file or its parts.

    Args:
        folder, name: the table, such as `coreset.parquet`.
        files: SHA-256 by file name; files without one are not checked.
        columns: those to hold; None for all.

    Raises:
        StorageError: if a file is missing or damaged, or lacks a column.
    """

    def part_of_table(part: str) -> pa.Table:
        rows = folder.read_table(part, files.get(part))
        return rows if columns is None else _complete(folder.path(part), rows, columns).select(list(columns))

    return pa.concat_tables([part_of_table(part) for part in parts_of(name, files)])


def check_rows(table: pa.Table, where: str, *, rows: int, num_classes: int) -> None:
    """Check what a run's table relies on, since anybody may have written it.

    Args:
        table: columns of a run's table; those with the names of a run's columns are checked.
        where: its path, for messages.
        rows: of the source; 0 if it is not known.
        num_classes: C.

    Raises:
        StorageError: if a column is there twice, is of another type, or lacks a value; if ids do not rise, or an id or a label is out
            of range.
    """
    for name in table.column_names:
        column = table[table.column_names.index(name)]
        fits = _OF_TYPE.get(name, _is_number)
        problem = (
            "is there twice" if table.column_names.count(name) > 1
            else f"is {column.type}" if not fits(column.type)
            else "lacks values" if column.null_count
            else _problem_of_values(name, column.to_numpy(), rows or 2**62, num_classes) if name in ("id", "label")
            else ""
        )  # fmt: skip
        if problem:
            raise StorageError(
                f"{where} is damaged or forged: its column {name} {problem}. Restore it, or prune again in a new folder."
            )


def _problem_of_values(name: str, values: NDArray[np.int64], rows: int, num_classes: int) -> str:
    most = rows if name == "id" else num_classes
    if len(values) and not 0 <= values.min() <= values.max() < most:
        return f"holds {values.min()} to {values.max()}, beyond 0 to {most - 1}"
    return "does not rise" if name == "id" and np.any(values[1:] <= values[:-1]) else ""


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind))


_OF_TYPE: dict[str, Callable[[pa.DataType], bool]] = {
    **dict.fromkeys(("id", "label", "votes", "pred", "stage"), pa.types.is_integer),
    "key": pa.types.is_string,
}


def copy_table(folder: Folder, name: str, lender: Folder, files: Mapping[str, str]) -> dict[str, str]:
    """Copy a table from another folder file by file and return the SHA-256 of each."""
    return {part: folder.copy(part, lender, files.get(part)) for part in parts_of(name, files)}


def joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches put together to tables of at least so many rows, but for the last."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) >= rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


class TableWriter:
    """Writes a table of known length in pieces, holding one row group and one encoded file in memory.

    Args:
        folder, name: the table.
        rows: its length.
        part_rows: rows of each part, in a folder called `name`; None for one file of that name.
    """

    def __init__(self, folder: Folder, name: str, rows: int, *, part_rows: int | None) -> None:
        self._folder, self._name, self._in_parts = folder, name, part_rows is not None
        self._most = part_rows or max(rows, 1)
        self._held: list[pa.Table] = []
        self._written = 0  # rows of the file that is open
        self._open: tuple[pa.BufferOutputStream, pq.ParquetWriter] | None = None
        self._files: dict[str, str] = {}
        if self._in_parts:
            # readers take every part they find, so those of an interrupted run must go
            folder.delete_folder(name)
            folder.delete(name)

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        while table.num_rows or not (self._held or self._open or self._files):
            held = sum(each.num_rows for each in self._held)
            group = min(DEFAULT_ROW_GROUP, self._most - self._written)
            self._held.append(table.slice(0, group - held))
            table = table.slice(group - held)
            if held + self._held[-1].num_rows == group:
                self._write_group()
                if self._written == self._most:
                    self._close_file()

    def close(self) -> dict[str, str]:
        """Write the remaining rows and return the SHA-256 of each file."""
        if self._held:
            self._write_group()
        if self._open is not None:
            self._close_file()
        return self._files

    def _write_group(self) -> None:
        # one chunk per column, so that the file's bytes do not depend on the pieces in which the rows came
        table, self._held = pa.concat_tables(self._held).combine_chunks(), []
        if self._open is None:
            sink = pa.BufferOutputStream()
            self._open = sink, pq.ParquetWriter(sink, table.schema, **parquet_options(table.schema))
        self._open[1].write_table(table, row_group_size=DEFAULT_ROW_GROUP)
        self._written += table.num_rows

    def _close_file(self) -> None:
        assert self._open is not None, "a group was written"
        sink, writer = self._open
        writer.close()
        name = part_file(self._name, len(self._files)) if self._in_parts else self._name
        self._files[name] = self._folder.write(name, memoryview(sink.getvalue()))
        self._open, self._written = None, 0


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table of a run that can be read in pieces any number of times, from memory or from storage.

    Attributes:
        folder, name: the table.
        files: SHA-256 by file name.
        held: all rows, where a short table was just made or read and need not be read again.
    """

    folder: Folder
    name: str
    files: Mapping[str, str]
    held: pa.Table | None = field(default=None, repr=False)

    def verified(self) -> StoredTable:
        """Check every file against its SHA-256 and return the table itself.

        Raises:
            StorageError: if a file is missing or damaged.
        """
        for part in self._parts():
            digest = self.files.get(part)
            if digest is not None and (found := sha256_of_file(self.folder, part, known=True)) != digest:
                raise StorageError(
                    f"{self.folder.path(part)} is {'missing' if found is None else 'damaged: it is not what was written'}. "
                    "Run the same `unseen-ray prune` line again to redo this work."
                )
        return self

    @property
    def num_rows(self) -> int:
        """Its length, from the files' footers unless the table is held."""
        if self.held is not None:
            return int(self.held.num_rows)
        return sum(self._opened(part, lambda file: int(file.metadata.num_rows)) for part in self._parts())

    @property
    def schema(self) -> pa.Schema:
        """Its columns."""
        if self.held is not None:
            return self.held.schema
        return self._opened(self._parts()[0], lambda file: file.schema_arrow)

    def table(self) -> pa.Table:
        """The whole table in memory; StorageError if a file is missing or damaged."""
        return read_table(self.folder, self.name, self.files) if self.held is None else self.held

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Its rows in order, in pieces, with all columns or some.

        Raises:
            StorageError: if a file is missing or damaged.
        """
        wanted = None if columns is None else list(columns)
        if self.held is not None:
            rows = _complete(self.folder.path(self.name), self.held, wanted)
            some = rows if wanted is None else rows.select(wanted)
            yield from some.to_batches(max_chunksize=_BATCH)
            return
        for part in self._parts():
            for group in range(self._opened(part, lambda file: int(file.num_row_groups))):
                read = functools.partial(_row_group, group=group, columns=wanted)
                yield from self._checked(part, self._opened(part, read), wanted).to_batches(max_chunksize=_BATCH)

    def rows_of(self, ids_M: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The rows of some rising ids of a table that is sorted by id; only the row groups that may hold them are read.

        Raises:
            StorageError: if the table lacks one of them, or a file is missing or damaged.
        """
        wanted = ["id", *columns]
        found = [_complete(self.folder.path(self.name), self.schema.empty_table(), wanted).select(wanted)]
        whole = [] if self.held is None else [(self.held.select(wanted), ids_M)]
        for rows, some in whole or self._groups_around(ids_M, wanted):
            found.append(rows.filter(pa.array(np.isin(rows.column("id").to_numpy(), some, assume_unique=True))))
        table = pa.concat_tables(found)
        if table.num_rows != len(ids_M):
            raise StorageError(
                f"{self.folder.path(self.name)} lacks {len(ids_M) - table.num_rows} of {len(ids_M)} samples: a file was replaced. "
                "Prune again in a new folder."
            )
        return table

    def _groups_around(
        self, ids_M: NDArray[np.int64], columns: list[str]
    ) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """The row groups whose range of ids holds some of these, and which ones."""
        for part in self._parts():
            for group, (_, low, high) in enumerate(self._opened(part, group_ends)):
                first, last = np.searchsorted(ids_M, (low, high + 1))
                if first < last:
                    read = functools.partial(_row_group, group=group, columns=columns)
                    yield self._checked(part, self._opened(part, read), columns), ids_M[first:last]

    def _checked(self, part: str, rows: pa.Table, wanted: list[str] | None) -> pa.Table:
        check_rows(rows, self.folder.path(part), rows=0, num_classes=2**62)
        return _complete(self.folder.path(part), rows, wanted)

    def _parts(self) -> list[str]:
        return parts_of(self.name, self.files)

    def _opened(self, part: str, do: Callable[[pq.ParquetFile], _T]) -> _T:
        return with_parquet(self.folder, part, do)


def _complete(where: str, rows: pa.Table, wanted: Sequence[str] | None) -> pa.Table:
    if missing := set(wanted or ()) - set(rows.column_names):
        raise StorageError(
            f"{where} is damaged or forged: it lacks the column {min(missing)}. Restore it, or prune again in a new folder."
        )
    return rows


def with_parquet(folder: Folder, name: str, do: Callable[[pq.ParquetFile], _T], *, inline: bool = False) -> _T:
    """Call `do` with an open Parquet file; see `with_file`."""

    def open_and_do(stream: pa.NativeFile) -> _T:
        with pq.ParquetFile(stream, page_checksum_verification=True) as file:
            return do(file)

    return with_file(folder, name, open_and_do, inline=inline)


def group_ends(file: pq.ParquetFile) -> list[tuple[int, int, int]]:
    """Of each row group its length and its lowest and highest id, from the footer; all ids where that has no statistics."""
    groups, place = [], file.schema_arrow.get_field_index("id")
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        known = group.column(place).statistics if place >= 0 else None
        ends = (known.min, known.max) if known is not None and known.has_min_max else (0, 2**63 - 1)
        groups.append((group.num_rows, *ends))
    return groups


def with_file(folder: Folder, name: str, do: Callable[[pa.NativeFile], _T], *, inline: bool = False) -> _T:
    """Call `do` with an open file.

    Args:
        folder, name: the file.
        do: the function; it is called again after a transient failure of the storage.
        inline: for what may take long, see `retry.retried_inline`.

    Raises:
        StorageError: if the file is missing or damaged.
    """
    path = folder.path(name)
    fs, inner = filesystem_of(path)

    def attempt() -> _T:
        with fs.open_input_file(inner) as stream:
            return do(stream)

    try:
        return retried_inline(path, attempt, fs, known=True) if inline else retried(path, attempt, known=True)
    except FileNotFoundError:
        raise StorageError(f"{path} is missing. Is `out` on storage that every node shares?") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_of_storage(error):
            raise _unreadable(path, error) from None
        raise StorageError(f"{path} is damaged: {error}. Delete it and run the same line again.") from None


def sha256_of_file(folder: Folder, name: str, *, known: bool = False) -> str | None:
    """SHA-256 of a file in hexadecimal, read in blocks; None where the file does not exist. For `known` see `retried`.

    Raises:
        StorageError: if it cannot be read.
    """
    path = folder.path(name)
    fs, inner = filesystem_of(path)

    def read() -> str:
        with fs.open_input_file(inner) as stream:
            return sha256_of_stream(stream)

    try:
        return retried_inline(path, read, fs, known=known)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be read: {reason_of(error)}. {remedy_to_read(error)}")


def _row_group(file: pq.ParquetFile, *, group: int, columns: list[str] | None) -> pa.Table:
    return file.read_row_group(group, columns=columns)


def sha256_of_stream(stream: pa.NativeFile) -> str:
    """SHA-256 of the rest of an open file, in hexadecimal."""
    content = hashlib.sha256()
    for piece in pieces_of(stream):
        content.update(piece)
    return content.hexdigest()
