"""Tables that are held whole: Arrow files mapped into memory, and lists of images as CSV, TSV or JSON lines."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileSystem

from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import read_file, sha256_of
from unseen_ray.storage.retry import retried_inline

__all__ = ["HeldShard", "read_arrow", "read_list"]


class HeldShard:
    """A file whose table is at hand; its groups are the table's record batches.

    Args:
        name: its name in keys and messages.
        path: its path in the source's file system.
        table: its rows.
        digest: of the file's bytes, where these are all read.
    """

    def __init__(self, name: str, path: str, table: pa.Table, digest: str = "") -> None:
        self.name, self.path, self.schema = name, path, table.schema
        self._table, self._digest = table, digest
        self._batches = table.to_batches()

    @property
    def group_rows(self) -> list[int]:
        """Rows of each record batch."""
        return [batch.num_rows for batch in self._batches]

    def identity(self) -> tuple[tuple[Any, ...], list[int]]:
        """Name, rows, bytes, and the digest if there is one; and the bytes of each batch."""
        return (self.name, self._table.num_rows, self._table.nbytes, self._digest), [
            batch.nbytes for batch in self._batches
        ]

    def stored_bytes(self, column: str) -> int:
        """The size of a column in memory, which is that in an Arrow file."""
        return int(self._table.column(column).nbytes)

    def read(self, columns: Sequence[str], group: int | None = None) -> pa.Table:
        """Some columns of all rows, or of one batch."""
        table = self._table if group is None else pa.Table.from_batches([self._batches[group]])
        return table.select(list(columns))

    def tables(self, columns: Sequence[str], groups: Sequence[int]) -> Iterator[pa.Table]:
        """The same, batch by batch."""
        for group in groups:
            yield self.read(columns, group)


def read_arrow(fs: FileSystem, path: str, where: str) -> pa.Table:
    """The table of an Arrow file or stream; a local one is mapped, so that only what is read takes memory.

    Raises:
        DataError: if it is missing or damaged.
    """

    def read() -> pa.Table:
        source = pa.memory_map(path) if fs.type_name == "local" else fs.open_input_file(path)
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        table = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
        table.validate(full=True)  # offsets that lead out of the file would end the process; the images are not read
        return table

    try:
        return retried_inline(path, read, None)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path} of source {where} cannot be read as an Arrow file: {error}.") from None


def read_list(fs: FileSystem, path: str, where: str) -> tuple[pa.Table, str]:
    """The table of a CSV, TSV or JSON lines file, and the SHA-256 of the file; the first line of a CSV or TSV names the columns.

    Raises:
        DataError: if it is missing or malformed.
    """
    try:
        raw = read_file(fs, path)
        data = io.BytesIO(raw)
        if path.endswith(".jsonl"):
            from pyarrow import json

            table = json.read_json(data)
        else:
            from pyarrow import csv

            delimiter = "\t" if path.endswith(".tsv") else ","
            table = csv.read_csv(data, parse_options=csv.ParseOptions(delimiter=delimiter))
        table.schema.names  # noqa: B018  UnicodeDecodeError where they are not UTF-8
        return table, sha256_of(raw)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} of source {where} cannot be read as a table: {error}.") from None
