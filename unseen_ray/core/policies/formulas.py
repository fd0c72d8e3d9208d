"""What policies compute of each sample by itself, once they know a few numbers of all: the same for whole tables and for shards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.seeds import derive, tie_keys

__all__ = ["beta_draws", "beta_shape", "filled", "strata_of"]

_EDGE = 1e-7  # how near to 0 and 1 a probability may come, where a density may be infinite


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


def beta_shape(p_of_hardest: FloatArray, *, candidates: int, budget: int, kept: int, c: float) -> float:
    """The parameter b of the density that `beta` draws by.

    Args:
        p_of_hardest: (10,) probabilities of the true class of the highest scores, the highest first; fewer where there are.
        candidates, budget, kept: how many there are, are to be picked, and were kept before.
        c: the policy's.
    """
    pruned = 1 - (budget + kept) / (candidates + kept)
    return float(15 * (1 - _clipped(p_of_hardest).mean()) * (1 - pruned**c))


def beta_draws(
    scores_M: FloatArray, probs_M: FloatArray, ids_M: IdArray, *, b: float, low: float, high: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """What `beta` orders by: (M,) draws, the highest first, and (M,) the hash of the ids, the lowest first.

    Args:
        scores_M: (M,) scores.
        probs_M: (M,) probability of the true class.
        ids_M: (M,) int64.
        b: see `beta_shape`.
        low, high: the lowest and the highest score of all candidates.
        seed: which draw.
    """
    p = _clipped(probs_M)
    scores = scores_M.astype(np.float64) - min(low, 0.0)
    if high - min(low, 0.0) == 0.0:
        scores += 1.0
    with np.errstate(divide="ignore"):
        log_weights = (15 - b) * np.log(p) + (b - 1) * np.log1p(-p) + np.log(scores)
    keys = tie_keys(ids_M, derive(seed, "beta"))
    uniform = (keys.astype(np.float64) + 0.5) / 2.0**64
    return log_weights - np.log(-np.log(np.clip(uniform, 2.0**-60, 1 - 2.0**-53))), keys


def _clipped(probs_M: FloatArray) -> NDArray[np.float64]:
    clipped: NDArray[np.float64] = np.clip(probs_M.astype(np.float64), _EDGE, 1 - _EDGE)
    return clipped
