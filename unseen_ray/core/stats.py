"""How scores lie, and how far two runs agree on them."""

from __future__ import annotations

import math

import numpy as np

from unseen_ray.core.arrays import FloatArray
from unseen_ray.core.scorebook import mean_ranks

__all__ = ["fullest_bin", "rank_correlation"]


def fullest_bin(values_M: FloatArray, bins: int = 20) -> float:
    """Share of the samples in the fullest of equal bins between the lowest and the highest score: how much they bunch together.

    Args:
        values_M: (M,) scores.
        bins: how many.
    """
    return float(np.histogram(values_M, bins)[0].max() / len(values_M))


def rank_correlation(first_M: FloatArray, second_M: FloatArray) -> float:
    """Pearson correlation of the ranks (Spearman's), tied scores sharing their mean rank; NaN where one has a single value.

    Args:
        first_M: (M,) scores.
        second_M: (M,) scores of the same samples.

    >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    first, second = (mean_ranks(values) - 0.5 for values in (first_M, second_M))  # mean ranks are 0.5 on average
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / scale if scale > 0 else math.nan
