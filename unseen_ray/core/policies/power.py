"""The power policy: random draws weighted by a power of the rank or of the score.

Source: Kolossov, Montanari and Tandon, Towards a statistical theory of data selection under weak supervision (ICLR 2024),
arXiv 2309.14563. The best power depends on the fraction kept and may be negative.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.base import Positions, best_first, check_choice, check_finite, from_zero, weighted_draws
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.core.stats import mean_ranks

__all__ = ["power", "power_draws"]


def power(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    gamma: float = 1.0,
    of: str = "rank",
) -> Positions:
    """Draw at random with weights that are a power of the rank: from the easiest over uniform to the hardest.

    Draws without replacement with weights w^gamma. Of `rank`, w is (rank - 0.5) / M, with the lowest score at rank 1 and equal scores
    at their mean rank. Of `score`, w is the score; where the lowest one is negative, all are shifted up by it. A weight of 0 is drawn
    last if gamma is positive, and first if it is negative.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M and kept_C are unused.
        gamma: the power, usually -1 to 2: 0 is `random`, a larger one prefers harder samples, a negative one easier ones.
        of: `rank`, whatever the scale of the score, or `score`.

    Returns:
        (budget,) positions in the order of the draw.

    Raises:
        ConfigError: if `gamma` is not finite or `of` is neither.
    """
    check_finite("gamma", gamma)
    check_choice("of", of, ("rank", "score"))
    low = float(scores_M.min(initial=0.0))
    weights_M = mean_ranks(scores_M) if of == "rank" else from_zero(scores_M, low)
    return best_first(power_draws(weights_M, ids_M, gamma, seed), ids_M, derive(seed, "random"), budget)


# Also called for chunks of a table, by `core.outofcore`.
def power_draws(weights_M: FloatArray, ids_M: IdArray, gamma: float, seed: int) -> NDArray[np.float64]:
    """(M,) draws of `power`, of which it takes the highest."""
    keys = tie_keys(ids_M, derive(seed, "random"))
    with np.errstate(divide="ignore"):
        log_weights_M = gamma * np.log(weights_M) if gamma else np.zeros(len(ids_M))
    # Inverted, so that equal weights give the order of `random`, lowest key first.
    return weighted_draws(log_weights_M, ~keys)
