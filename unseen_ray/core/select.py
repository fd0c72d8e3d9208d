"""Policies: which of the scored candidates are kept.

Each takes (M,) scores, labels and ids of the candidates and a budget, and returns (budget,) positions into these
arrays, without repeats. `kept_C` counts what earlier stages kept of each class. Every random choice is a function of
(seed, id), so that a policy gives the same answer whatever the order of the candidates, and on shards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, first_of_each_class
from unseen_ray.core.seeds import derive, tie_keys

__all__ = ["class_balanced", "random", "top"]

Positions = NDArray[np.intp]


def top(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep the highest scores; ties by the seeded hash of the id.

    Args:
        scores_M: (M,) scores, higher kept first.
        labels_M: (M,) int64 classes; unused here.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class; unused here.
        seed: orders the ties.

    Returns:
        (budget,) positions.

    Source: UNSEEN (AAAI 2026), Figure 3.
    """
    return _best_first(scores_M, ids_M, seed)[:budget]


def class_balanced(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep the highest scores of each class, every class in proportion to its size.

    The share of a class is `target * N_c / N` of the cumulative target, rounded by largest remainder so that the
    total is exact, less what earlier stages kept of it. A class that already holds more than its share gives nothing,
    and the others make room for it.

    Args:
        scores_M: (M,) scores, higher kept first.
        labels_M: (M,) int64 classes.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class.
        seed: orders the ties, of samples and of remainders.

    Returns:
        (budget,) positions.
    """
    candidates_C = np.bincount(labels_M, minlength=len(kept_C))
    quota_C = apportion(budget + int(kept_C.sum()), candidates_C + kept_C, kept_C, seed) - kept_C
    return first_of_each_class(_best_first(scores_M, ids_M, seed), labels_M, quota_C)


def random(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep a uniformly random subset, whatever the scores: the baseline that every other policy must beat.

    Args:
        scores_M: (M,) scores; unused here.
        labels_M: (M,) int64 classes; unused here.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class; unused here.
        seed: which subset.

    Returns:
        (budget,) positions.
    """
    return np.argsort(tie_keys(ids_M, derive(seed, "random")))[:budget]


def apportion(target: int, sizes_C: IntArray, kept_C: IntArray, seed: int) -> IntArray:
    """Split `target` over classes in proportion to their sizes, exactly, giving no class less than it already has.

    Largest remainder (Hamilton); equal remainders by the seeded hash of the class. Where a class already holds more
    than its share, it is fixed at what it has and the rest is split over the others again.

    Args:
        target: the total, kept_C.sum() to sizes_C.sum().
        sizes_C: (C,) samples of each class, chosen or not.
        kept_C: (C,) the floor of each class.
        seed: orders equal remainders.

    Returns:
        (C,) int64 between kept_C and sizes_C, summing to `target`.
    """
    keys_C = tie_keys(np.arange(len(sizes_C), dtype=np.int64), derive(seed, "remainders"))
    quota_C = kept_C.astype(np.int64).copy()
    free_C = sizes_C > 0
    while free_C.any():
        sizes, left = sizes_C[free_C], target - int(quota_C[~free_C].sum())
        products = [left * int(size) for size in sizes]  # Python's integers are exact whatever the sizes
        total = int(sizes.sum())
        quota = np.array([product // total for product in products], np.int64)
        remainder = np.array([product % total / total for product in products])
        order = np.lexsort((keys_C[free_C], -remainder))
        quota[order[: left - int(quota.sum())]] += 1
        over = quota < kept_C[free_C]
        if not over.any():
            quota_C[free_C] = quota
            break
        free_C[np.flatnonzero(free_C)[over]] = False
    return quota_C


def _best_first(scores_M: FloatArray, ids_M: IdArray, seed: int) -> Positions:
    return np.lexsort((tie_keys(ids_M, seed), -scores_M))
