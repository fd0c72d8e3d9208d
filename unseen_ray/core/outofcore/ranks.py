"""Exact mean ranks of more values than can be sorted, by counting them in a few passes.

One pass counts the values by the upper 16 bits of their keys, which are in the order of the values. Then neighbouring ones form
groups, of so few values that these are sorted, or of so few upper halves that each of their 2^16 values has a counter. A group takes
two passes, one that counts and one that ranks: entropies of 1e9 samples make 4 groups, all float32 numbers at most 128.
Shapes: M values, H = 2^16 upper halves of keys, P halves of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IntArray, Positions
from unseen_ray.core.outofcore.sort_keys import Keys, best_first_keys
from unseen_ray.core.stats import mean_ranks

__all__ = ["HALF", "Sliced", "add_mean_ranks", "key_groups"]

HALF = 16
"""Bits of the upper half of a float32's key."""

_CHUNK = 2**18  # values read at once
_SORTED = 2**20  # values of a group, if it is sorted
_COUNTED = 2**9  # upper halves of a group, if it is counted: 256 MB

_Twice = Callable[[Keys], IntArray]  # twice the mean rank of each key of a group, among the group, plus one half


class Sliced(Protocol):
    """(M,) numbers in memory or in a file, read and written by slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...
    def __setitem__(self, rows: slice, values: NDArray[Any], /) -> None: ...


def add_mean_ranks(values: Sliced, totals: Sliced, *, most_sorted: int = _SORTED, most_counted: int = _COUNTED) -> None:
    """Add to each total the rank of its value, which is that of `stats.mean_ranks` among all that are no NaN; to others, nothing.

    Args:
        values: (M,) float32; NaN is no value.
        totals: (M,) float64, changed.
        most_sorted: values that are sorted at once.
        most_counted: upper halves of keys whose values are counted at once, 2^16 numbers of 8 bytes each.
    """
    if len(values) <= most_sorted:
        block, some = values[:], totals[:]
        present = ~np.isnan(block)
        some[present] += mean_ranks(block[present])
        totals[:] = some
        return
    counts_H = np.zeros(1 << HALF, np.int64)
    for _, _, keys in _chunks(values):
        counts_H += np.bincount(keys >> HALF, minlength=len(counts_H))
    before, count = 0, int(counts_H.sum())
    for first, last in key_groups(counts_H, most_sorted, most_counted):
        size = int(counts_H[first:last].sum())
        twice = (_sorted if size <= most_sorted else _counted)(values, first, last)
        for rows, places, keys in _chunks(values, first, last):
            some = totals[rows]
            some[places] += (2 * before + twice(keys)) / 2 / count
            totals[rows] = some
        before += size


def _chunks(values: Sliced, first: int = 0, last: int = 1 << HALF) -> Iterator[tuple[slice, Positions, Keys]]:
    """Rows, the places among them of the values whose upper half is in [first, last), and their keys."""
    for start in range(0, len(values), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(values)))
        block = values[rows]
        places = np.flatnonzero(~np.isnan(block))
        keys = ~best_first_keys(block[places])
        if last - first < 1 << HALF:
            inside = (keys - np.uint32(first << HALF)) >> HALF < last - first  # lower keys wrap around
            places, keys = places[inside], keys[inside]
        yield rows, places, keys


def key_groups(counts_H: IntArray, most_sorted: int, most_counted: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of upper halves, each as long as it can be sorted, or counted if that is longer; none without values."""
    ends_H = np.cumsum(counts_H)
    first = int(np.searchsorted(ends_H, 0, side="right"))
    while first < len(counts_H):
        before = int(ends_H[first] - counts_H[first])
        few = int(np.searchsorted(ends_H, before + most_sorted, side="right"))
        last = min(max(few, first + most_counted), len(counts_H))
        yield first, last
        first = max(last, int(np.searchsorted(ends_H, ends_H[last - 1], side="right")))


def _sorted(values: Sliced, first: int, last: int) -> _Twice:
    found, counts = np.unique(np.concatenate([keys for _, _, keys in _chunks(values, first, last)]), return_counts=True)
    twice = 2 * np.cumsum(counts) - counts
    return lambda keys: twice[np.searchsorted(found, keys)]


def _counted(values: Sliced, first: int, last: int) -> _Twice:
    cells, low = np.zeros((last - first) << HALF, np.int64), np.uint32(first << HALF)
    for _, _, keys in _chunks(values, first, last):
        np.add.at(cells, (keys - low).astype(np.intp), 1)
    before = 0
    for start in range(0, len(cells), 1 << HALF):  # in place: counts become twice the mean ranks
        counts = cells[start : start + (1 << HALF)].copy()
        ends = before + np.cumsum(counts)
        cells[start : start + len(counts)] = 2 * ends - counts
        before = int(ends[-1])
    return lambda keys: cells[(keys - low).astype(np.intp)]
