"""Policies: which of the scored candidates are kept.

All policies share these arguments and may add options of their own:

- scores_M: (M,) float scores of the candidates; a higher score is harder and is kept first.
- labels_M: (M,) int64 classes, 0 to C - 1.
- ids_M: (M,) int64 sample ids, each once, in any order.
- budget: how many samples to keep, 0 to M.
- kept_C: (C,) int64, how many samples of each class earlier stages kept.
- seed: non-negative; decides between equal scores and between equal remainders, and draws where a policy is random.

They return (budget,) positions into the candidates' arrays, without repeats. Every random choice is a function of (seed, id), so that
the samples kept depend neither on the order of the candidates nor on how they are sharded.
"""

from __future__ import annotations

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.by_class import class_balanced, class_floor, class_quota
from unseen_ray.core.policies.by_features import d2, k_center
from unseen_ray.core.policies.distances import given_features
from unseen_ray.core.policies.formulas import beta_draws, beta_shape, filled, strata_of
from unseen_ray.core.policies.ranking import Positions, best_first, check_share
from unseen_ray.core.policies.window_search import best_first_place
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError

__all__ = [
    "beta",
    "ccs",
    "class_balanced",
    "class_floor",
    "class_quota",
    "d2",
    "k_center",
    "moderate",
    "random",
    "top",
    "window",
]


def top(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep the highest scores; equal scores by the seeded hash of the id.

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
    return best_first(scores_M, ids_M, seed)[:budget]


def random(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep a uniformly random subset, whatever the scores: the baseline for every other policy.

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
    """Keep samples of every difficulty: equally many from each stratum of the score, leaving out the hardest `cut`.

    After the cut, the range of scores is divided into strata of equal width, the last one closed. From the smallest stratum to the
    largest, each gives an equal share of the remaining budget, or all it has; samples of a stratum are drawn at random. Less is cut
    where fewer than `budget` candidates would remain.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M and kept_C are unused.
        strata: number of strata, 1 or more.
        cut: share of the candidates with the highest scores to leave out, from 0 up to but not 1; useful with noisy labels.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `strata` or `cut` is outside its range.

    Source: Zheng et al., Coverage-centric Coreset Selection (ICLR 2023), Algorithm 1.
    """
    if isinstance(strata, bool) or not isinstance(strata, int) or strata < 1:
        raise ConfigError(f"policy option strata={strata!r} must be a whole number, 1 or more.")
    check_share("cut", cut)
    order = best_first(scores_M, ids_M, seed)
    left = order[min(round(cut * len(order)), len(order) - budget) :]
    return left[_from_strata(scores_M[left], ids_M[left], budget, seed, strata)] if len(left) else left


def _from_strata(scores_L: FloatArray, ids_L: IdArray, budget: int, seed: int, strata: int) -> Positions:
    """(budget,) positions into the candidates that the cut of `ccs` leaves, at least one."""
    stratum_L = strata_of(scores_L, float(scores_L.min()), float(scores_L.max()), strata)
    by_key = np.lexsort((tie_keys(ids_L, derive(seed, "strata")), stratum_L))
    sizes = np.bincount(stratum_L, minlength=strata)
    starts = np.cumsum(sizes) - sizes
    takes = filled(sizes, budget)
    chosen: Positions = np.concatenate([by_key[a : a + take] for a, take in zip(starts, takes, strict=True)])
    return chosen


def window(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    start: float | str = 0.1,
    features_MD: FloatArray | None = None,
) -> Positions:
    """Keep a window of the order: the hardest samples after the very hardest `start`, which are left out.

    With `start: auto`, features choose the window. Of the windows that begin at 0, 0.05, 0.1, ... it is the one whose samples let a
    ridge regression on features classify most candidates correctly; the first of equally good ones.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M and kept_C are used by `auto` only.
        start: share of the candidates above the window, from 0 up to but not 1; less where the window would pass the end. Or `auto`.
        features_MD: (M, D) float16 or float32 features of the candidates, for `auto`.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `start` is outside its range, or is `auto` without features; FitError if a feature is not finite.

    Source: Choi, Ki and Chung, BWS: Best Window Selection (ICML 2024), arXiv 2406.03057, for `auto`; the penalty of the regression,
    0.01 of the features' variance, is our choice.
    """
    order = best_first(scores_M, ids_M, seed)
    if start == "auto":
        features = given_features(features_MD, "window with start: auto")
        first = best_first_place(order, labels_M, budget, features, classes=len(kept_C))
    elif isinstance(start, str):
        raise ConfigError(f"policy option start={start!r} is outside 0 up to 1: it is a share, or auto.")
    else:
        check_share("start", start)
        first = min(round(start * len(order)), len(order) - budget)
    return order[first : first + budget]


def moderate(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep the middle of the order: neither the hardest nor the easiest, as many left out at either end.

    Args:
        scores_M: (M,) scores, higher is harder.
        labels_M: (M,) int64 classes; unused here.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M; where an odd number is left out, the hardest end loses one less.
        kept_C: (C,) what earlier stages kept of each class; unused here.
        seed: orders the ties.

    Returns:
        (budget,) positions.

    Source: Xia et al., Moderate Coreset (ICLR 2023), with a score in place of the distance to the class's median feature.
    """
    order = best_first(scores_M, ids_M, seed)
    first = (len(order) - budget) // 2
    return order[first : first + budget]


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
) -> Positions:
    """Draw by score and difficulty: the fewer samples are kept, the easier the ones it prefers.

    Draws without replacement with weights score * Beta(a, b).pdf(p_y), b = 15 (1 - m) (1 - r^c), a = 16 - b, where r is the pruned
    share and m the mean p_y of the ten highest scores. Negative scores are shifted up by the lowest one. Draws follow Efraimidis and
    Spirakis (2006), from the seeded hash of the id.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M is unused, kept_C counts as kept in r.
        p_label_M: (M,) probability of the true class after the last epoch, mean over votes.
        consistency_M: (M,) the score `consistency`, one minus the mean of that probability over epochs; None if it is not stored.
        over: where p_y comes from: `last` epoch, or all `epochs` as in the paper.
        c: above 0; the larger, the more must be pruned before easy samples are preferred.

    Returns:
        (budget,) positions in the order of the draw.

    Raises:
        ConfigError: if `c` or `over` is outside its range, or `over` is `epochs` without `consistency_M`.

    Source: Cho, Shin and Yun, DUAL (ICML 2025), arXiv 2502.06905; c = 4 is the default of its code for CIFAR.
    """
    probs_M = _chosen_probs(p_label_M, consistency_M, c, over)
    return _beta_drawn(scores_M, probs_M, ids_M, budget, kept=int(kept_C.sum()), seed=seed, c=c)


def _chosen_probs(p_label_M: FloatArray, consistency_M: FloatArray | None, c: float, over: str) -> FloatArray:
    """(M,) the probabilities p_y that `over` names, once the options of `beta` are checked."""
    if isinstance(c, bool) or not isinstance(c, (int, float)) or not 0 < c < np.inf:
        raise ConfigError(f"policy option c={c!r} must be a number above 0.")
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


def _beta_drawn(
    scores_M: FloatArray, probs_M: FloatArray, ids_M: IdArray, budget: int, *, kept: int, seed: int, c: float
) -> Positions:
    if not len(ids_M):
        return np.empty(0, np.intp)
    hardest = best_first(scores_M, ids_M, seed)[:10]
    b = beta_shape(probs_M[hardest], candidates=len(ids_M), budget=budget, kept=kept, c=c)
    low, high = float(scores_M.min()), float(scores_M.max())
    draws, keys = beta_draws(scores_M, probs_M, ids_M, b=b, low=low, high=high, seed=seed)
    return np.lexsort((keys, -draws))[:budget]
