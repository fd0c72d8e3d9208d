"""Exact sums of floats, which do not depend on the order of addition or the number of shards."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray

__all__ = ["ExactSums"]

_DIGITS = 26  # bits of a mantissa's high part; the low part has the other 27 of a float64's 53
_AT_ONCE = 2**25  # this many parts of 27 bits still add up exactly in float64


class ExactSums:
    """The exact sum of the values of each class.

    Mantissas are added as integers, separately for each exponent; int64 holds the sums of up to 2**36 values.

    Args:
        classes: C.
        dtype: type of the values, float32 or float64.
    """

    def __init__(self, classes: int, dtype: Any = np.float32) -> None:
        info = np.finfo(dtype)
        self._first = info.minexp - info.nmant  # frexp's exponent of the smallest subnormal number
        self._shape = classes, info.maxexp - self._first + 2
        self._high: NDArray[np.int64] = np.zeros(self._shape, np.int64)
        self._low: NDArray[np.int64] = np.zeros(self._shape, np.int64)

    def add(self, labels_M: IntArray, values_M: FloatArray) -> None:
        """Add (M,) finite values of (M,) classes."""
        for start in range(0, len(values_M), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            mantissas, exponents = np.frexp(values_M[rows].astype(np.float64))
            whole = np.ldexp(mantissas, _DIGITS)
            high = np.trunc(whole)
            cells = labels_M[rows] * self._shape[1] + (exponents - self._first)
            self._high += self._counted(cells, high)
            if (rest := whole - high).any():  # never for float32, whose mantissas have 24 bits
                self._low += self._counted(cells, np.ldexp(rest, _DIGITS + 1))

    def merge(self, other: ExactSums) -> None:
        """Add the sums of another instance with the same classes and type."""
        self._high += other._high
        self._low += other._low

    def totals(self) -> list[Fraction]:
        """The C exact sums."""
        sums = [Fraction(0)] * self._shape[0]
        for parts, digits in ((self._high, _DIGITS), (self._low, 2 * _DIGITS + 1)):
            for label, place in np.argwhere(parts).tolist():
                sums[label] += int(parts[label, place]) * Fraction(2) ** (place + self._first - digits)
        return sums

    def _counted(self, cells: IntArray, parts: FloatArray) -> NDArray[np.int64]:
        sums = np.bincount(cells, weights=parts, minlength=self._shape[0] * self._shape[1])
        return sums.astype(np.int64).reshape(self._shape)
