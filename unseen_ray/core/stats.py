"""Statistics of scores: how they are distributed, and how well two sets of them agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from unseen_ray.core.arrays import FloatArray, IntArray

__all__ = [
    "common_range",
    "correlation",
    "fullest_bin",
    "is_near_chance",
    "mean_ranks",
    "rank_correlation",
    "rank_correlations",
]


def common_range(columns: Iterable[FloatArray]) -> tuple[float, float]:
    """The lowest and the highest value of several scores: the range of bins in which to compare them."""
    ends = [(float(values.min()), float(values.max())) for values in columns]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return low, high if high > low else low + 1.0


def fullest_bin(values_M: FloatArray, within: tuple[float, float], bins: int = 20) -> float:
    """Share of the samples in the fullest of equal bins: how much their scores bunch together.

    Args:
        values_M: (M,) scores.
        within: range of the bins; the `common_range` of all scores that are compared.
        bins: number of bins.
    """
    exact = values_M.astype(np.float64)  # in float32, edges between neighbouring values would coincide
    return float(np.histogram(exact, bins, range=within)[0].max() / len(values_M))


def is_near_chance(accuracy: float, sizes_C: IntArray) -> bool:
    """Whether an accuracy is hardly above that of always predicting the largest class."""
    largest = float(sizes_C.max() / sizes_C.sum())
    return accuracy < min(2 * largest, 0.9 * largest + 0.1)


def mean_ranks(values_M: FloatArray) -> FloatArray:
    """(rank - 0.5) / M of each value; tied values share their mean rank. The lowest is near 0, the highest near 1.

    >>> mean_ranks(np.array([3.0, 1.0, 3.0, 2.0]))
    array([0.75 , 0.125, 0.75 , 0.375])
    """
    _, inverse, counts = np.unique(values_M, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends) / 2 / len(values_M))[inverse]


def correlation(first_C: FloatArray, second_C: FloatArray) -> float:
    """Pearson correlation of the finite pairs of two (C,) arrays; NaN for fewer than three, or if an array is constant."""
    both = np.isfinite(first_C) & np.isfinite(second_C)
    first, second = first_C[both], second_C[both]
    if len(first) < 3 or np.ptp(first) < 1e-12 or np.ptp(second) < 1e-12:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def rank_correlation(first_M: FloatArray, second_M: FloatArray) -> float:
    """Spearman's rank correlation of two (M,) scores; tied scores share their mean rank. NaN if either is constant.

    >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    return rank_correlations([first_M, second_M])[0][1]


def rank_correlations(columns: Sequence[FloatArray]) -> list[list[float]]:
    """The matrix of `rank_correlation` of several scores of the same samples."""
    ranks = [mean_ranks(values) - 0.5 for values in columns]  # centred, since mean ranks average 0.5
    lengths = [math.sqrt(float(values @ values)) for values in ranks]
    return [
        [float(one @ other) / (a * b) if a * b > 0 else math.nan for other, b in zip(ranks, lengths, strict=True)]
        for one, a in zip(ranks, lengths, strict=True)
    ]
