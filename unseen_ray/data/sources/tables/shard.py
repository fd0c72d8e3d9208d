"""One file of a table of images and labels, whatever its format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

__all__ = ["TableShard", "group_starts"]


class TableShard(Protocol):
    """A file whose rows are read in groups.

    Attributes:
        name: its name in keys and messages.
        path: its path in the source's file system.
        schema: its columns.
    """

    name: str
    path: str
    schema: pa.Schema

    @property
    def group_rows(self) -> list[int]:
        """Rows of each group."""
        ...

    def identity(self) -> tuple[tuple[Any, ...], list[int]]:
        """What is known of the file without reading its images, for a fingerprint: of itself, and of each group."""
        ...

    def stored_bytes(self, column: str) -> int:
        """The size of a column in the file."""
        ...

    def read(self, columns: Sequence[str], group: int | None = None) -> pa.Table:
        """Some columns of all rows, or of one group; DataError if the file is damaged."""
        ...

    def tables(self, columns: Sequence[str], groups: Sequence[int]) -> Iterator[pa.Table]:
        """The same in tables of less than 1 GiB each, as far as the sizes of rows are even."""
        ...


def group_starts(shard: TableShard) -> list[int]:
    """The first row of each group of a shard."""
    return list(itertools.accumulate(shard.group_rows, initial=0))[:-1]
