"""Sums of floats that do not depend on the order of what is added: exact, whatever the number of shards."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray

__all__ = ["ExactSums"]

_DIGITS = 26  # of a mantissa's first part; the second one has the other 27 of a float64's 53
_AT_ONCE = 2**25  # so many parts add up exactly as float64


class ExactSums:
    """The exact sum of the values of each class.

    Mantissas are added as whole numbers, apart for each exponent; 2**36 values at most.

    Args:
        classes: how many.
        dtype: of the values, float32 or float64.
    """

    def __init__(self, classes: int, dtype: Any = np.float32) -> None:
        info = np.finfo(dtype)
        self._first = info.minexp - info.nmant  # of frexp, for the smallest number that there is
        self._shape = classes, info.maxexp - self._first + 2
        self._high: NDArray[np.int64] = np.zeros(self._shape, np.int64)
        self._low: NDArray[np.int64] = np.zeros(self._shape, np.int64)

    def add(self, labels_M: IntArray, values_M: FloatArray) -> None:
        """Take more values, (M,) finite ones, and (M,) their classes."""
        for start in range(0, len(values_M), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            mantissas, exponents = np.frexp(values_M[rows].astype(np.float64))
            whole = np.ldexp(mantissas, _DIGITS)
            high = np.trunc(whole)
            cells = labels_M[rows] * self._shape[1] + (exponents - self._first)
            self._high += self._counted(cells, high)
            if (rest := whole - high).any():  # never of float32
                self._low += self._counted(cells, np.ldexp(rest, _DIGITS + 1))

    def merge(self, other: ExactSums) -> None:
        """Take all that another of the same kind has taken."""
        self._high += other._high
        self._low += other._low

    def totals(self) -> list[Fraction]:
        """C sums."""
        sums = [Fraction(0)] * self._shape[0]
        for parts, digits in ((self._high, _DIGITS), (self._low, 2 * _DIGITS + 1)):
            for label, place in np.argwhere(parts).tolist():
                sums[label] += int(parts[label, place]) * Fraction(2) ** (place + self._first - digits)
        return sums

    def _counted(self, cells: IntArray, parts: FloatArray) -> NDArray[np.int64]:
        sums = np.bincount(cells, weights=parts, minlength=self._shape[0] * self._shape[1])
        return sums.astype(np.int64).reshape(self._shape)
