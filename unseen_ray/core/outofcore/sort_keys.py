"""Maps floats to unsigned integers in sort order, so that a threshold can be found by counting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray

__all__ = ["Keys", "best_first_keys", "value_of_key"]

Keys = NDArray[np.unsignedinteger[Any]]


def best_first_keys(values_M: FloatArray) -> Keys:
    """(M,) integers that increase as the values decrease, so that the lowest is the best; 0 and -0 share a key.

    Args:
        values_M: (M,) float32 (gives uint32) or float64 (gives uint64), without NaN.

    >>> best_first_keys(np.array([-1.0, 2.0, 0.5], np.float32)).argsort()
    array([1, 2, 0])
    """
    unsigned: Any = np.uint32 if values_M.dtype == np.float32 else np.uint64
    bits: Keys = (values_M + values_M.dtype.type(0)).view(unsigned)  # -0 becomes 0
    last = 8 * bits.itemsize - 1
    # IEEE 754 bits order non-negative floats like integers and negative ones in reverse: invert the former, keep the latter
    flipped: Keys = (bits >> unsigned(last)) - unsigned(1)  # all ones if not negative, else zero
    flipped &= unsigned((1 << last) - 1)
    flipped ^= bits
    return flipped


def value_of_key(key: int, dtype: Any) -> float:
    """The float32 or float64 value of a key, as a float."""
    unsigned: Any = np.uint32 if np.dtype(dtype) == np.float32 else np.uint64
    last = 8 * np.dtype(unsigned).itemsize - 1
    mask = (1 << (last + 1)) - 1
    bits = key if key >> last else (~key & mask) & ~(1 << last)
    return float(np.array([bits], unsigned).view(dtype)[0])
