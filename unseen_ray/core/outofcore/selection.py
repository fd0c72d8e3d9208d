"""A selection from score shards: a rule that tells which rows are selected, and their ids in ascending order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray
from unseen_ray.core.outofcore.chunks import Chunk, Shards, spread
from unseen_ray.errors import DataError

__all__ = ["Chosen", "IdBits"]

_BLOCK = 2**17  # bytes of a mask that are unpacked at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The rows of shards that a policy selected.

    Attributes:
        count: number of selected rows.
        columns: the columns that `takes` reads.
        takes: (M,) bool, which rows of a chunk are selected.
    """

    count: int
    columns: tuple[str, ...]
    takes: Callable[[Chunk], NDArray[np.bool_]]

    def ids(self, shards: Shards, *, rising: bool = True, threads: int = 1) -> Iterator[IdArray]:
        """The selected ids in ascending order, in pieces, after one more pass.

        Args:
            shards: the shards that the policy selected from.
            rising: whether the shards are sorted by id; if not, a bit mask sorts the ids.
            threads: number of threads.

        Raises:
            DataError: if the ids are not ascending, or the shards no longer hold each selected id once.
        """
        found = self._found(shards, rising, threads)
        count = 0
        for ids in found if rising else _in_order(found):
            count += len(ids)
            if len(ids):
                yield ids
        self._check(count)

    def rows(self, shards: Shards, columns: Sequence[str]) -> Iterator[Chunk]:
        """Columns of the selected rows, in the order of the shards, after one more pass.

        Raises:
            DataError: if the shards no longer hold the selected rows.
        """
        count = 0
        for chunk in shards(tuple(dict.fromkeys((*self.columns, *columns)))):
            takes = self.takes(chunk)
            count += int(takes.sum())
            yield {name: chunk[name][takes] for name in columns}
        self._check(count)

    def _check(self, count: int) -> None:
        if count != self.count:
            raise DataError(
                f"the score shards hold {count} of the {self.count} selected samples: they have changed since, or an id occurs twice. "
                "Let nothing write to them, and select again."
            )

    def _found(self, shards: Shards, rising: bool, threads: int) -> Iterator[IdArray]:
        def chosen(chunk: Chunk) -> tuple[IdArray, tuple[int, int] | None]:
            ids = chunk["id"]
            if not len(ids):
                return ids, None
            if rising and (falls := np.flatnonzero(ids[1:] <= ids[:-1])).size:
                raise DataError(_fall(ids[falls[0]], ids[falls[0] + 1]))
            return ids[self.takes(chunk)], (int(ids[0]), int(ids[-1]))

        last = -1
        for ids, ends in spread(shards(tuple(dict.fromkeys((*self.columns, "id")))), chosen, threads):
            if rising and ends is not None:
                if ends[0] <= last:
                    raise DataError(_fall(last, ends[0]))
                last = ends[1]
            yield ids


class IdBits:
    """A set of ids as a bit mask, which grows up to the highest id."""

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)

    def add(self, ids_M: IdArray) -> None:
        """Add (M,) non-negative ids in any order; repeated ids have no effect."""
        if not len(ids_M):
            return
        size = int(ids_M.max()) // 8 + 1
        if size > len(self._bits):
            grown = np.zeros(max(size, len(self._bits) + len(self._bits) // 4), np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
        np.bitwise_or.at(self._bits, ids_M >> 3, np.left_shift(1, ids_M & 7).astype(np.uint8))

    def has(self, ids_M: IdArray) -> NDArray[np.bool_]:
        """(M,) whether each id is in the set."""
        inside = ids_M < 8 * len(self._bits)
        found = np.zeros(len(ids_M), bool)
        found[inside] = self._bits[ids_M[inside] >> 3] >> (ids_M[inside] & 7).astype(np.uint8) & 1
        return found

    def ids(self) -> Iterator[IdArray]:
        """All ids in ascending order, in pieces."""
        for start in range(0, len(self._bits), _BLOCK):
            block = np.unpackbits(self._bits[start : start + _BLOCK], bitorder="little")
            yield np.flatnonzero(block).astype(np.int64) + 8 * start


def _fall(before: int, after: int) -> str:
    return f"the ids of the score shards are not ascending: {after} comes after {before}. Sort the shards by id, or pass rising=False."


def _in_order(found: Iterator[IdArray]) -> Iterator[IdArray]:
    bits = IdBits()
    for ids in found:
        bits.add(ids)
    yield from bits.ids()
