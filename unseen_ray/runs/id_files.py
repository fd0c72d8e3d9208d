"""A set of samples on storage: a task names its files, and the worker reads them."""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.core.samples.id_sets import ByRange
from unseen_ray.core.samples.population import Population
from unseen_ray.storage.filesystem import Folder, absolute_path
from unseen_ray.storage.tables import StoredTable, group_ends, parts_of, with_parquet

__all__ = ["IdFiles", "open_id_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdFiles(ByRange):
    """The column `id` of a table of a run, strictly rising.

    Attributes:
        root: the run's folder, as every node knows it.
        files: name and SHA-256 of each file of the table, in the order of the ids.
        firsts: the lowest id of each file.
        count: how many there are.
        digest: `core.seeds.digest_ids` of all ids.
    """

    root: str
    files: tuple[tuple[str, str], ...]
    firsts: tuple[int, ...]
    count: int
    digest: str

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """Ids of a range, read from the row groups that hold some of them."""
        # The range may begin within the file before the first one that starts at `low` or above.
        begin, end = max(bisect_right(self.firsts, low) - 1, 0), bisect_left(self.firsts, high)
        read = functools.partial(_ids_within, low=low, high=high)
        found = [with_parquet(Folder(self.root), name, read) for name, _ in self.files[begin:end]]
        return np.concatenate([np.empty(0, np.int64), *found])

    def pieces(self, population: Population) -> Iterator[IdArray]:
        """The ids of each file; StorageError if one differs from what was written."""
        for name, digest in self.files:
            yield Folder(self.root).read_table(name, digest).column("id").to_numpy()

    def rule(self) -> str:
        """The digest of the ids, wherever their files are."""
        return self.digest


def open_id_files(table: StoredTable, num_classes: int) -> tuple[IdFiles, IntArray]:
    """A table's ids as a set, and (C,) samples of each class; the columns `id` and `label` are read once, in pieces."""
    content, count, counts_C = hashlib.sha256(), 0, np.zeros(num_classes, np.int64)
    for batch in table.batches(["id", "label"]):
        # The bytes that `digest_ids` hashes, so that the same ids have one digest wherever they are.
        content.update(batch.column("id").to_numpy().astype("<i8", copy=False).tobytes())
        counts_C += np.bincount(batch.column("label").to_numpy(), minlength=num_classes)
        count += batch.num_rows
    names = parts_of(table.name, table.files)
    firsts = [with_parquet(table.folder, name, lambda file: group_ends(file)[0][1]) for name in names]
    stored = IdFiles(
        root=absolute_path(table.folder.root),
        files=tuple((name, table.files[name]) for name in names),
        firsts=tuple(firsts),
        count=count,
        digest=content.hexdigest(),
    )
    return stored, counts_C


def _ids_within(file: pq.ParquetFile, *, low: int, high: int) -> IdArray:
    groups = [number for number, (_, first, last) in enumerate(group_ends(file)) if first < high and last >= low]
    column: pa.ChunkedArray = file.read_row_groups(groups, columns=["id"]).column(0)
    ids: IdArray = column.to_numpy()
    first, last = np.searchsorted(ids, (low, high))
    return ids[first:last]
