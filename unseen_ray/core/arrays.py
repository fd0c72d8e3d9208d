"""Array types of the core's interface, and the checks used there.

Shape suffixes used in the whole package: N samples, C classes, K folds, M a subset of the samples, V votes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ROWS_OF_A_CHUNK",
    "FloatArray",
    "IdArray",
    "IntArray",
    "LabelArray",
    "Positions",
    "RowBlocks",
    "as_blocks",
    "as_ids",
    "first_of_each_class",
    "labels_by_chunk",
    "positions_of",
]

IdArray = NDArray[np.int64]
IntArray = NDArray[np.int64]
LabelArray = NDArray[np.integer[Any]]
"""Class labels as they are stored: in a narrow integer type if there are many rows."""
FloatArray = NDArray[np.floating[Any]]
Positions = NDArray[np.intp]

ROWS_OF_A_CHUNK = 2**24
"""Rows of a source that are processed at a time, so that temporary memory does not grow with the source."""


@dataclass(frozen=True, slots=True, eq=False)
class RowBlocks:
    """An (M, C) array that is read in blocks of rows, in order, as often as it is iterated over: each time row slices and blocks.

    Attributes:
        shape: (M, C).
        read: begins to read it; the blocks (R, C) hold M rows together.
    """

    shape: tuple[int, int]
    read: Callable[[], Iterable[FloatArray]]

    def __iter__(self) -> Iterator[tuple[slice, FloatArray]]:
        start = 0
        for block in self.read():
            yield slice(start, start + len(block)), block
            start += len(block)

    def whole(self) -> FloatArray:
        """(M, C), all of it in memory."""
        return np.concatenate([np.empty((0, self.shape[1]), np.float32), *self.read()])


def as_blocks(values: FloatArray | RowBlocks) -> RowBlocks:
    """An array as one block; blocks as they are."""
    return values if isinstance(values, RowBlocks) else RowBlocks((len(values), values.shape[1]), lambda: [values])


def as_ids(values: Any, *, name: str = "ids") -> IdArray:
    """Check that `values` are distinct non-negative row numbers and return them sorted.

    Args:
        values: (M,) integers in any order.
        name: their name in the error message.

    Returns:
        (M,) int64, strictly increasing.

    Raises:
        ValueError: if they are not one-dimensional integers, are negative, or repeat.
    """
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"{name} must be a one-dimensional array of integers, not {ids.dtype} of shape {ids.shape}.")
    ids = np.sort(ids.astype(np.int64))
    if ids.size and ids[0] < 0:
        raise ValueError(f"{name} holds {ids[0]}; row numbers start at 0.")
    repeated = np.flatnonzero(ids[1:] == ids[:-1])
    if repeated.size:
        raise ValueError(f"{name} holds {ids[repeated[0]]} more than once; each id may occur once.")
    return ids


def positions_of(wanted_M: IdArray, sorted_N: IdArray) -> Positions:
    """Positions of `wanted_M` in the sorted array `sorted_N`.

    Raises:
        ValueError: if an id is missing; the message names the first.
    """
    positions = np.searchsorted(sorted_N, wanted_M)
    inside = positions < len(sorted_N)
    found = inside.copy()
    found[inside] = sorted_N[positions[inside]] == wanted_M[inside]
    if not found.all():
        missing = wanted_M[~found]
        raise ValueError(
            f"{len(missing)} ids are not among the {len(sorted_N)} allowed ones; the first is {missing[0]}."
        )
    return positions


def first_of_each_class(order_M: Positions, labels_M: IntArray, quota_C: IntArray) -> Positions:
    """The first `quota_C` positions of each class in an order, grouped by class.

    Args:
        order_M: (M,) a permutation of the positions of `labels_M`.
        labels_M: (M,) classes.
        quota_C: (C,) number of positions per class, at most the size of the class.
    """
    sizes_C = np.bincount(labels_M, minlength=len(quota_C))
    by_class = order_M[np.argsort(labels_M[order_M], kind="stable")]
    rank_in_class = np.arange(len(by_class)) - np.repeat(np.cumsum(sizes_C) - sizes_C, sizes_C)
    return by_class[rank_in_class < np.repeat(quota_C, sizes_C)]


def labels_by_chunk(labels_R: LabelArray, rows: int = ROWS_OF_A_CHUNK) -> Iterator[tuple[int, LabelArray]]:
    """The labels of all rows in pieces of `rows`, each with the number of its first row."""
    for start in range(0, len(labels_R), rows):
        yield start, labels_R[start : start + rows]
