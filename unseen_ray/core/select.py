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
from unseen_ray.errors import ConfigError

__all__ = ["ccs", "class_balanced", "random", "top", "window"]

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


def ccs(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    strata: int = 50,
    cut: float = 0.0,
) -> Positions:
    """Keep samples of every difficulty: equally many of each stratum of the score, without the hardest `cut`.

    After the cut the scores' range is divided into strata of equal width, the last one closed. From the smallest stratum
    to the largest, each gives an equal share of what is left of the budget, or all that it has; within a stratum the
    choice is random. Where fewer than `budget` would be left, less is cut.

    Args:
        scores_M: (M,) scores, higher is harder.
        labels_M: (M,) int64 classes; unused here.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class; unused here.
        seed: orders the ties, and which samples of a stratum.
        strata: how many, 1 or more.
        cut: share of the candidates with the highest scores that is left out, 0 up to 1: noise, where labels are noisy.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `strata` or `cut` is outside its range.

    Source: Zheng et al., Coverage-centric Coreset Selection (ICLR 2023), Algorithm 1.
    """
    if isinstance(strata, bool) or not isinstance(strata, int) or strata < 1:
        raise ConfigError(f"policy option strata={strata!r} must be a whole number, 1 or more.")
    _check_share("cut", cut)
    order = _best_first(scores_M, ids_M, seed)
    left = order[min(round(cut * len(order)), len(order) - budget) :]
    if not len(left):
        return left
    scores = scores_M[left].astype(np.float64)
    low, high = scores.min(), scores.max()
    width = (high - low) / strata
    stratum = np.zeros(len(left), np.int64)
    if width > 0:
        stratum = np.minimum(((scores - low) / width).astype(np.int64), strata - 1)
    by_key = np.lexsort((tie_keys(ids_M[left], derive(seed, "strata")), stratum))
    sizes = np.bincount(stratum, minlength=strata)
    starts = np.cumsum(sizes) - sizes
    takes = _filled(sizes, budget)
    chosen: Positions = np.concatenate([by_key[a : a + take] for a, take in zip(starts, takes, strict=True)])
    return left[chosen]


def window(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    start: float = 0.1,
) -> Positions:
    """Keep a window of the order: the hardest after leaving out the very hardest `start`.

    Args:
        scores_M: (M,) scores, higher is harder.
        labels_M: (M,) int64 classes; unused here.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class; unused here.
        seed: orders the ties.
        start: share of the candidates above the window, 0 up to 1; less where the window would reach over the end.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `start` is outside its range.

    Source: Choi et al., BWS: Best Window Selection (2024), arXiv 2406.03057, with the window's place given.
    """
    _check_share("start", start)
    order = _best_first(scores_M, ids_M, seed)
    first = min(round(start * len(order)), len(order) - budget)
    return order[first : first + budget]


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


def _filled(sizes: IntArray, budget: int) -> IntArray:
    """What each stratum gives: from the smallest on, an equal share of what is left, or all that it has."""
    takes = np.zeros(len(sizes), np.int64)
    order = np.argsort(sizes, kind="stable")
    for place, stratum in enumerate(order):
        takes[stratum] = min(int(sizes[stratum]), budget // (len(order) - place))
        budget -= int(takes[stratum])
    return takes


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"policy option {name}={value!r} is outside 0 up to 1: it is a share of the candidates.")
