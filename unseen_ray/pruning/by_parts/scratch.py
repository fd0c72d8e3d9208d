"""Columns that a long table gets or loses without being written: they wait in files that have no name and end with the process."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unseen_ray.errors import StorageError
from unseen_ray.storage.filesystem import absolute_path, is_uri
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.tables import StoredTable

__all__ = ["ChangedTable", "FileColumn", "ReadColumn", "Scratch", "ScratchColumn", "changed"]


class FileColumn:
    """(rows,) numbers in a file of this process alone."""

    def __init__(self, rows: int, dtype: Any, folder: str | None) -> None:
        self._rows, self._dtype = rows, np.dtype(dtype)
        self._place = folder or tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the column)
            weakref.finalize(self, self._file.close)
            self._file.truncate(rows * self._dtype.itemsize)
        except OSError as error:
            raise self._full(error) from None

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self._rows)
        values = np.empty(stop - start, self._dtype)
        self._file.seek(start * self._dtype.itemsize)
        self._file.readinto(values.data)
        return values

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        try:
            self._file.seek(rows.indices(self._rows)[0] * self._dtype.itemsize)
            self._file.write(np.ascontiguousarray(values, self._dtype).data)
            self._file.flush()
        except OSError as error:
            raise self._full(error) from None

    def _full(self, error: OSError) -> StorageError:
        size = self._rows * self._dtype.itemsize / 1e9
        return StorageError(
            f"a column of {self._rows} rows cannot be kept in {self._place} for a while: {reason_of(error)}. Make room for {size:.1f} GB "
            "and the columns beside it, or name an out where there is."
        )


ScratchColumn = NDArray[Any] | FileColumn
"""A column in memory or in a file."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Makes columns that are read and written by slices.

    Attributes:
        beside: a path near which their files lie, if that is on this machine; else they lie in the folder for temporary files.
        most_rows: columns of more rows are files.
    """

    beside: str
    most_rows: int

    def column(self, rows: int, dtype: Any) -> ScratchColumn:
        """(rows,) zeros; StorageError if there is no room for the file."""
        return np.zeros(rows, dtype) if rows <= self.most_rows else FileColumn(rows, dtype, self._folder())

    def _folder(self) -> str | None:
        if is_uri(self.beside):
            return None
        path = absolute_path(self.beside)
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        return path if os.access(path, os.W_OK) else None


@dataclass(frozen=True)
class ChangedTable(StoredTable):
    """A stored table of which some columns are others.

    Attributes:
        columns: by name, those that replace a stored one or are new.
        names: all columns in order; stored ones that it lacks are left out.
    """

    columns: Mapping[str, ScratchColumn] = field(default_factory=dict)
    names: Sequence[str] = ()

    @property
    def schema(self) -> pa.Schema:
        """Its columns."""
        stored = StoredTable.schema.fget(self)  # type: ignore[attr-defined]
        return pa.schema([self._typed(name) if name in self.columns else stored.field(name) for name in self.names])

    def table(self) -> pa.Table:
        """The whole table in memory."""
        return pa.Table.from_batches(list(self.batches()), self.schema).combine_chunks()

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """See `StoredTable.batches`."""
        wanted = list(self.names if columns is None else columns)
        stored, start = ["id", *(name for name in wanted if name not in self.columns and name != "id")], 0
        for batch in super().batches(stored):
            rows = slice(start, start := start + batch.num_rows)
            yield pa.record_batch(
                {n: self.columns[n][rows] if n in self.columns else batch.column(n) for n in wanted},
            )

    def _typed(self, name: str) -> pa.Field:
        return pa.field(name, pa.from_numpy_dtype(self.columns[name][:0].dtype))


class ReadColumn:
    """A column of a table, read by slices that follow each other, any number of times from the first row on.

    Args:
        table: of any length.
        name: of the column.
    """

    def __init__(self, table: StoredTable, name: str) -> None:
        self._table, self._name, self._rows = table, name, table.num_rows
        self._start, self._held = 0, np.empty(0)
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self._rows)
        if start < self._start or not start:
            self._batches, self._held, self._start = self._table.batches([self._name]), np.empty(0, bool), 0
        pieces, end = [self._held[start - self._start :]], self._start + len(self._held)
        while end < stop:
            column = next(self._batches).column(0).to_numpy(zero_copy_only=False)
            pieces.append(column[max(start - end, 0) :])
            end += len(column)
        self._held, self._start = np.concatenate(pieces) if len(pieces) > 1 else pieces[0], start
        return self._held[: stop - start]


def changed(stored: StoredTable, columns: Mapping[str, ScratchColumn], names: Sequence[str]) -> StoredTable:
    """A table with some columns in place of stored ones, or new; held if the stored one is held.

    Args:
        stored: the table.
        columns: by name.
        names: all columns in order.
    """
    before = stored.columns if isinstance(stored, ChangedTable) else {}
    changes = {name: column for name, column in {**before, **columns}.items() if name in names}
    if stored.held is None:
        return ChangedTable(stored.folder, stored.name, stored.files, columns=changes, names=tuple(names))
    arrays = {n: pa.array(changes[n][:]) if n in changes else stored.held.column(n) for n in names}
    return StoredTable(stored.folder, stored.name, {}, pa.table(arrays))
