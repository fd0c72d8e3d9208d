"""How a budget is split over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.core.seeds import derive, tie_keys

__all__ = [
    "apportion",
    "even_quota",
    "even_share",
    "least_quota",
    "misses_of",
    "quota_by_mean",
    "split_by_weight",
]


def even_quota(labels_M: IntArray, budget: int, kept_C: IntArray, seed: int) -> IntArray:
    """(C,) how many candidates of each class `class_balanced` keeps; they sum to `budget`."""
    return even_share(np.bincount(labels_M, minlength=len(kept_C)), budget, kept_C, seed)


def even_share(candidates_C: IntArray, budget: int, kept_C: IntArray, seed: int) -> IntArray:
    """(C,) `even_quota` of classes with so many candidates."""
    return apportion(budget + int(kept_C.sum()), candidates_C + kept_C, kept_C, seed) - kept_C


def least_quota(candidates_C: IntArray, budget: int, kept_C: IntArray, seed: int, *, floor: float) -> IntArray:
    """(C,) how many candidates of each class `class_floor` grants it, whatever their scores."""
    even_C = even_share(candidates_C, budget, kept_C, seed) + kept_C
    share = Fraction(str(floor))  # the decimal number that was given: 0.29 * 100 is below 29 in binary numbers
    floor_C = np.array([count * share.numerator // share.denominator for count in even_C.tolist()], np.int64)
    least_C = np.maximum(floor_C, np.minimum(even_C, 1))
    granted_C: IntArray = np.maximum(least_C - kept_C, 0)
    return granted_C


def misses_of(labels_M: IntArray, pred_M: IntArray, classes: int) -> IntArray:
    """(C,) how many candidates of each class are predicted as another one."""
    return np.bincount(labels_M[labels_M != pred_M], minlength=classes)


def quota_by_mean(
    sums: Sequence[Fraction],
    lowest: float,
    candidates_C: IntArray,
    budget: int,
    kept_C: IntArray,
    seed: int,
    *,
    strength: float,
) -> IntArray:
    """(C,) how many candidates of each class `class_quota` keeps; they sum to `budget`.

    Args:
        sums: C exact sums of what says how hard the candidates are, so that their order does not matter.
        lowest: the lowest of these values; means count from it where it is below 0.
        candidates_C: (C,) how many there are of each class.
        budget, kept_C, seed, strength: the policy's.
    """
    # A weight below 0 has no meaning as a share, so means are taken from the lowest score on.
    base = Fraction(min(lowest, 0.0))
    counts = candidates_C.tolist()
    means_C = np.array([float(total / max(n, 1) - base * (n > 0)) for total, n in zip(sums, counts, strict=True)])
    # All means 0: sizes alone decide.
    if not means_C.any():
        means_C += 1.0
    sizes_C = candidates_C + kept_C
    weights_C = sizes_C * (means_C / means_C.max()) ** strength
    return split_by_weight(budget + int(kept_C.sum()), weights_C, kept_C, sizes_C, seed) - kept_C


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
        # A class cannot give back what earlier stages kept of it.
        over = quota < kept_C[free_C]
        if not over.any():
            quota_C[free_C] = quota
            break
        free_C[np.flatnonzero(free_C)[over]] = False
    return quota_C


def split_by_weight(target: int, weights_C: FloatArray, low_C: IntArray, high_C: IntArray, seed: int) -> IntArray:
    """Split `target` over classes in proportion to weights, each between its bounds, exactly.

    One level for all classes, found by bisection, then largest remainder; equal remainders by the seeded hash of the class.

    Args:
        target: the total, low_C.sum() to high_C.sum().
        weights_C: (C,) float64, 0 and more.
        low_C, high_C: (C,) int64 bounds.
        seed: orders equal remainders.

    Returns:
        (C,) int64 between the bounds, summing to `target`.
    """
    weights = np.maximum(weights_C, np.finfo(np.float64).tiny)  # a class without weight comes last, not never

    def at(level: float) -> FloatArray:
        return np.clip(np.exp(np.minimum(np.log(weights) + level, 700.0)), low_C, high_C)

    low, high = -800.0, 1500.0
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if at(level).sum() <= target else (low, level)
    shares_C = at(low)
    free_C = (shares_C > low_C) & (shares_C < high_C)
    if free_C.any():  # once more without the bisection's rounding, which would tell equal remainders apart
        weights = weights[free_C] / weights[free_C].max()
        level = (target - float(shares_C[~free_C].sum())) / weights.sum()
        shares_C[free_C] = np.clip(weights * level, low_C[free_C], high_C[free_C])
    quota_C = np.floor(shares_C).astype(np.int64)
    keys_C = tie_keys(np.arange(len(quota_C), dtype=np.int64), derive(seed, "remainders"))
    # Remainders that differ only by rounding count as equal, so that the hash decides on every machine.
    order = np.lexsort((keys_C, np.round(quota_C - shares_C, 9)))
    while (left := target - int(quota_C.sum())) > 0:
        open_ = order[quota_C[order] < high_C[order]][:left]
        quota_C[open_] += 1
    return quota_C
