"""A selection from score shards: a rule that tells which rows are selected; and sets of ids as bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray
from unseen_ray.core.outofcore.chunks import Chunk, Shards
from unseen_ray.errors import DataError

__all__ = ["Chosen", "IdBits"]


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
