"""The beta policy of DUAL pruning: random draws weighted by score and difficulty.

Source: Cho, Shin and Yun, DUAL (ICML 2025), arXiv 2502.06905; c = 4 is the default of its code for CIFAR.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.base import Positions, best_first, check_number, check_share, from_zero, weighted_draws
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["HARDEST", "beta", "beta_draws", "beta_shape"]

HARDEST = 10
"""How many of the highest scores tell how hard the hardest samples are."""

_EDGE = 1e-7  # how near to 0 and 1 a probability may come, where a density may be infinite


def beta(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    p_label_M: FloatArray,
    consistency_M: FloatArray | None = None,
    c: float = 4.0,
    over: str = "last",
    mu: float | None = None,
) -> Positions:
    """Draw by score and difficulty: the fewer samples are kept, the easier the ones it prefers.

    Draws without replacement with weights score * Beta(a, b).pdf(p_y), b = 15 (1 - mu) (1 - r^c), a = 16 - b, where r is the pruned
    share. Negative scores are shifted up by the lowest one. By a score that is highest for wrong predictions mu is near 0, by `dual` 0.5.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M is unused, kept_C counts as kept in r.
        p_label_M: (M,) probability of the true class after the last epoch, mean over votes.
        consistency_M: (M,) one minus its mean over epochs, which is the score `consistency`; None if it is not stored.
        over: where p_y comes from: `last` epoch, or all `epochs` as in the paper.
        c: above 0; the larger, the more must be pruned before easy samples are preferred.
        mu: 0 to 1, in place of the mean p_y of the ten highest scores.

    Returns:
        (budget,) positions in the order of the draw.

    Raises:
        ConfigError: if an option is outside its range, or `over` is `epochs` without `consistency_M`.
    """
    probs_M = _chosen_probs(p_label_M, consistency_M, c, over, mu)
    if not len(ids_M):
        return np.empty(0, np.intp)
    hardest = probs_M[best_first(scores_M, ids_M, seed, HARDEST)] if mu is None else np.array([mu])
    b = beta_shape(hardest, candidates=len(ids_M), budget=budget, kept=int(kept_C.sum()), c=c)
    draws = beta_draws(scores_M, probs_M, ids_M, b=b, low=scores_M.min(), high=scores_M.max(), seed=seed)
    return best_first(draws, ids_M, derive(seed, "beta"), budget)


def _chosen_probs(
    p_label_M: FloatArray, consistency_M: FloatArray | None, c: float, over: str, mu: float | None
) -> FloatArray:
    """(M,) the probabilities p_y that `over` names, once the options of `beta` are checked."""
    check_number("c", c, positive=True)
    if mu is not None:
        check_share("mu", mu, closed=True)
    if over not in ("last", "epochs"):
        raise ConfigError(f"policy option over={over!r} is neither last nor epochs.")
    if over == "last":
        return p_label_M
    if consistency_M is None:
        raise ConfigError(
            "policy beta with over: epochs reads the score consistency, as the mean of votes. Take combine: mean and score_every: 1."
        )
    probs_M: FloatArray = 1 - consistency_M
    return probs_M


# The two below are also called for chunks of a table, by `core.outofcore`.
def beta_shape(p_of_hardest: FloatArray, *, candidates: int, budget: int, kept: int, c: float) -> float:
    """The parameter b of the density that `beta` draws by.

    Args:
        p_of_hardest: (`HARDEST`,) p_y of the highest scores, the highest first, or fewer; mu is their mean.
        candidates, budget, kept: how many there are, are to be picked, and were kept before.
        c: the policy's.
    """
    pruned = 1 - (budget + kept) / (candidates + kept)
    return float(15 * (1 - _clipped(p_of_hardest).mean()) * (1 - pruned**c))


def beta_draws(
    scores_M: FloatArray, probs_M: FloatArray, ids_M: IdArray, *, b: float, low: float, high: float, seed: int
) -> NDArray[np.float64]:
    """(M,) draws of `beta`, of which it takes the highest.

    Args:
        scores_M: (M,) scores.
        probs_M: (M,) probability of the true class.
        ids_M: (M,) int64.
        b: see `beta_shape`.
        low, high: the lowest and the highest score of all candidates.
        seed: which draw.
    """
    p = _clipped(probs_M)
    scores = from_zero(scores_M, low)
    # Weights that are all 0 would draw nothing: draw by difficulty alone.
    if high == min(low, 0.0):
        scores += 1.0
    with np.errstate(divide="ignore"):
        log_weights = (15 - b) * np.log(p) + (b - 1) * np.log1p(-p) + np.log(scores)
    return weighted_draws(log_weights, tie_keys(ids_M, derive(seed, "beta")))


def _clipped(probs_M: FloatArray) -> NDArray[np.float64]:
    clipped: NDArray[np.float64] = np.clip(probs_M.astype(np.float64), _EDGE, 1 - _EDGE)
    return clipped
