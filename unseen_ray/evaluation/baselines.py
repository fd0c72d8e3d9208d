"""Random subsets to compare a coreset with, drawn by a seeded hash of the ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, first_of_each_class
from unseen_ray.core.seeds import derive, tie_keys

__all__ = ["matched_subset", "random_subset"]


def random_subset(ids_N: IdArray, size: int, seed: int) -> IdArray:
    """A uniformly random subset.

    Args:
        ids_N: (N,) int64 sample ids.
        size: size of the subset, 0 to N.
        seed: selects the subset.

    Returns:
        (size,) int64 ids, sorted.
    """
    return np.sort(ids_N[_shuffled(ids_N, seed)[:size]])


def matched_subset(labels_N: IntArray, ids_N: IdArray, counts_C: IntArray, seed: int) -> IdArray:
    """A random subset with the coreset's class counts, which shows the effect of the choice within each class.

    Args:
        labels_N: (N,) int64 classes.
        ids_N: (N,) int64 sample ids.
        counts_C: (C,) number of samples to draw of each class, at most its size.
        seed: selects the subset.

    Returns:
        (counts_C.sum(),) int64 ids, sorted.
    """
    return np.sort(ids_N[first_of_each_class(_shuffled(ids_N, seed), labels_N, counts_C)])


def _shuffled(ids_N: IdArray, seed: int) -> NDArray[np.intp]:
    return np.argsort(tie_keys(ids_N, derive(seed, "random")))
