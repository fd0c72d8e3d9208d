"""A set of ids as a bit for each number, for as many as no array of them would fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unseen_ray.core.arrays import IdArray

__all__ = ["IdBits"]

_BLOCK = 2**17  # bytes that are told at once


class IdBits:
    """Ids, each once, told in rising order; grows up to the highest."""

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)

    def add(self, ids_M: IdArray) -> None:
        """Take (M,) ids in any order, not negative; those that are there already change nothing."""
        if not len(ids_M):
            return
        size = int(ids_M.max()) // 8 + 1
        if size > len(self._bits):
            grown = np.zeros(max(size, len(self._bits) + len(self._bits) // 4), np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
        np.bitwise_or.at(self._bits, ids_M >> 3, np.left_shift(1, ids_M & 7).astype(np.uint8))

    def ids(self) -> Iterator[IdArray]:
        """All of them, rising, by arrays."""
        for start in range(0, len(self._bits), _BLOCK):
            block = np.unpackbits(self._bits[start : start + _BLOCK], bitorder="little")
            yield np.flatnonzero(block).astype(np.int64) + 8 * start
