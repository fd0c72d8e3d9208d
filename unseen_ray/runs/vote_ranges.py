"""Votes of a range of ids, from files that are too long to be read whole."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.core.arrays import FloatArray
from unseen_ray.core.tasks import VotePart, join_votes
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import probs_beside, vote_file
from unseen_ray.runs.votes import (
    check_content,
    columns_of,
    content_of,
    files_in,
    files_of,
    part_of,
    parts_before,
    probs_of,
)
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.npy import npy_header
from unseen_ray.storage.tables import group_ends, sha256_of_file, with_file, with_parquet

__all__ = ["TaskVotes", "VoteFile", "check_votes", "open_votes"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VoteFile:
    """A file of votes.

    Attributes:
        folder: the run.
        index: the task's place in its stage.
        name: the file.
        schema: its columns and metadata.
        starts: (G + 1,) first row of each row group, and the number of rows.
        lows, highs: (G,) lowest and highest id of each row group.
    """

    folder: Folder
    index: int
    name: str
    schema: pa.Schema
    starts: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    def part(self, low: int | None, high: int | None) -> VotePart:
        """The votes of the ids from `low` up to, but without, `high`; None is no bound.

        Raises:
            StorageError: if the file is missing or damaged.
        """
        inside = np.ones(len(self.lows), bool)
        inside &= True if low is None else self.highs >= low
        inside &= True if high is None else self.lows < high
        groups = np.flatnonzero(inside).tolist()
        table = with_parquet(self.folder, self.name, lambda file: file.read_row_groups(groups))
        ids = table.column("id").to_numpy()
        begin = 0 if low is None else int(np.searchsorted(ids, low))
        end = len(ids) if high is None else int(np.searchsorted(ids, high))
        first = int(self.starts[groups[0]]) if groups else 0
        beside = probs_of(self.name, self.schema)
        probs = None if beside is None else _rows(self.folder, beside[0], first + begin, first + end)
        some = table.slice(begin, end - begin)
        if some.num_rows < table.num_rows:  # a copy: a slice would keep the whole table in memory
            some = some.take(pa.array(np.arange(some.num_rows)))
        return part_of(self.index, some, probs)


@dataclass(frozen=True, slots=True, eq=False)
class TaskVotes:
    """A task's votes: a file, or parts, of which only those are opened that a range needs.

    Attributes:
        folder: the run.
        index: the task's place in its stage.
        names: the files, in the order of their ids.
    """

    folder: Folder
    index: int
    names: list[str]
    _opened: dict[str, VoteFile] = field(default_factory=dict)

    def part(self, low: int | None, high: int | None) -> VotePart:
        """See `VoteFile.part`."""
        first = 0 if low is None else max(bisect.bisect_right(self.names, low, key=self._low) - 1, 0)
        stop = len(self.names) if high is None else bisect.bisect_left(self.names, high, key=self._low)
        return join_votes([self.file(name).part(low, high) for name in self.names[first : max(stop, first + 1)]])

    def file(self, name: str) -> VoteFile:
        """One of the files.

        Raises:
            StorageError: if it is missing or damaged.
        """
        if name not in self._opened:
            self._opened[name] = _open(self.folder, self.index, name)
        return self._opened[name]

    def _low(self, name: str) -> int:
        lows = self.file(name).lows
        return int(lows[0]) if len(lows) else 0


def check_votes(folder: Folder, stage: int, index: int) -> None:
    """Check all of a task's votes against their checksums, in pieces.

    Raises:
        StorageError: if they are missing or damaged.
    """
    last = files_of(folder, vote_file(stage, index))[-1]
    named = files_in(last, with_parquet(folder, last, functools.partial(_checked, folder, last), inline=True))
    before = parts_before(last, named)
    for name in (*before, *(named.keys() & set(map(probs_beside, [*before, last])))):
        if (found := sha256_of_file(folder, name, known=True)) != named[name]:
            problem = "is missing" if found is None else "is damaged: its checksum differs"
            raise StorageError(f"{folder.path(name)} {problem}. Run the same line again.")


def open_votes(folder: Folder, stage: int, index: int) -> TaskVotes:
    """Open a task's votes, already checked by `check_votes`, to read ranges of them.

    Raises:
        StorageError: if they are missing or damaged.
    """
    last = files_of(folder, vote_file(stage, index))[-1]
    opened = _open(folder, index, last)
    names = [*parts_before(last, files_in(last, opened.schema)), last]
    return TaskVotes(folder, index, names, {last: opened})


def _open(folder: Folder, index: int, name: str) -> VoteFile:
    schema, groups = with_parquet(folder, name, _footer)
    rows, lows, highs = (
        (np.array(values, np.int64) for values in zip(*groups, strict=True)) if groups else [np.empty(0, np.int64)] * 3
    )
    # Probabilities have no row groups: their rows are found by the number of the votes' rows.
    starts = np.concatenate([[0], np.cumsum(rows)])
    return VoteFile(folder=folder, index=index, name=name, schema=schema, starts=starts, lows=lows, highs=highs)


def _footer(file: pq.ParquetFile) -> tuple[pa.Schema, list[tuple[int, int, int]]]:
    return file.schema_arrow, group_ends(file)


def _checked(folder: Folder, name: str, file: pq.ParquetFile) -> pa.Schema:
    check_content(folder, name, file.schema_arrow, lambda: content_of(file.schema_arrow, columns_of(file)))
    return file.schema_arrow


def _rows(folder: Folder, name: str, start: int, stop: int) -> FloatArray:
    """Some rows of a .npy file of probabilities."""

    def read(stream: pa.NativeFile) -> FloatArray:
        try:
            shape, by_column, dtype = npy_header(stream, stream.size())
        except ValueError as error:
            raise StorageError(f"{folder.path(name)} is damaged: {error}.") from None
        if by_column:
            raise StorageError(
                f"{folder.path(name)} is stored in Fortran order, so rows cannot be read one by one: unseen_ray did not write it."
            )
        width = int(np.prod(shape[1:])) * dtype.itemsize
        stream.seek(stream.tell() + start * width)
        data = stream.read((stop - start) * width)
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return with_file(folder, name, read)
