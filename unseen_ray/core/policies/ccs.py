"""Coverage-centric selection (CCS): samples from every stratum of the scores, so that easy and hard ones are both kept."""

from __future__ import annotations

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, first_of_each_class
from unseen_ray.core.policies.base import Positions, best_first, check_count, check_share
from unseen_ray.core.seeds import derive, tie_keys

__all__ = ["ccs", "filled", "strata_of"]


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
    """Keep samples of every difficulty: equally many from each stratum of the score, leaving out the hardest `cut`.

    After the cut, the range of scores is divided into strata of equal width, the last one closed. From the smallest stratum to the
    largest, each gives an equal share of the remaining budget, or all it has; samples of a stratum are drawn at random. Less is cut
    where fewer than `budget` candidates would remain.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M and kept_C are unused.
        strata: number of strata, 1 or more.
        cut: share of the candidates with the highest scores to leave out, from 0 up to but not 1; useful with noisy labels.

    Returns:
        (budget,) positions, stratum by stratum.

    Raises:
        ConfigError: if `strata` or `cut` is outside its range.

    Source: Zheng et al., Coverage-centric Coreset Selection (ICLR 2023), Algorithm 1.
    """
    check_count("strata", strata)
    check_share("cut", cut)
    order = best_first(scores_M, ids_M, seed)
    # Cutting before the range is divided keeps outliers from stretching the strata.
    left = order[min(round(cut * len(order)), len(order) - budget) :]
    return left[_from_strata(scores_M[left], ids_M[left], budget, seed, strata)] if len(left) else left


def _from_strata(scores_L: FloatArray, ids_L: IdArray, budget: int, seed: int, strata: int) -> Positions:
    """(budget,) positions into the candidates that the cut of `ccs` leaves, at least one."""
    stratum_L = strata_of(scores_L, float(scores_L.min()), float(scores_L.max()), strata)
    # The first of a stratum by a seeded hash are a random draw that does not depend on the order of the candidates.
    by_key = np.argsort(tie_keys(ids_L, derive(seed, "strata")))
    return first_of_each_class(by_key, stratum_L, filled(np.bincount(stratum_L, minlength=strata), budget))


# The two below are also called for chunks of a table, by `core.outofcore`.
def strata_of(scores_M: FloatArray, low: float, high: float, strata: int) -> IntArray:
    """(M,) which stratum of the range from `low` to `high` each score lies in, of equal widths, the last one closed."""
    stratum = np.zeros(len(scores_M), np.int64)
    width = (np.float64(high) - np.float64(low)) / strata
    if width > 0:
        stratum = np.minimum(((scores_M.astype(np.float64) - low) / width).astype(np.int64), strata - 1)
    return stratum


def filled(sizes: IntArray, budget: int) -> IntArray:
    """What each stratum gives: from the smallest on, an equal share of what is left, or all that it has."""
    takes = np.zeros(len(sizes), np.int64)
    order = np.argsort(sizes, kind="stable")
    for place, stratum in enumerate(order):
        takes[stratum] = min(int(sizes[stratum]), budget // (len(order) - place))
        budget -= int(takes[stratum])
    return takes
