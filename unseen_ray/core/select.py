"""Policies: which of the scored candidates are kept.

Each takes (M,) scores, labels and ids of the candidates and a budget, and returns (budget,) positions into these
arrays, without repeats. `kept_C` counts what earlier stages kept of each class. Every random choice is a function of
(seed, id), so that a policy gives the same answer whatever the order of the candidates, and on shards.
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
    return best_first(scores_M, ids_M, seed)[:budget]


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
    check_share("cut", cut)
    order = best_first(scores_M, ids_M, seed)
    left = order[min(round(cut * len(order)), len(order) - budget) :]
    if not len(left):
        return left
    stratum = strata_of(scores_M[left], float(scores_M[left].min()), float(scores_M[left].max()), strata)
    by_key = np.lexsort((tie_keys(ids_M[left], derive(seed, "strata")), stratum))
    sizes = np.bincount(stratum, minlength=strata)
    starts = np.cumsum(sizes) - sizes
    takes = filled(sizes, budget)
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
    start: float | str = 0.1,
    features_MD: FloatArray | None = None,
) -> Positions:
    """Keep a window of the order: the hardest after leaving out the very hardest `start`.

    With `start: auto` features choose the place: of the windows that begin at 0, 0.05, 0.1, ... the one from whose samples a ridge
    regression on features learns to put most of the candidates into their class; the first of equally good ones.

    Args:
        scores_M: (M,) scores, higher is harder.
        labels_M: (M,) int64 classes; unused with a number.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class; unused here.
        seed: orders the ties.
        start: share of the candidates above the window, 0 up to 1; less where the window would reach over the end. Or `auto`.
        features_MD: (M, D) float16 or float32 features of the candidates; unused with a number.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `start` is outside its range, or is `auto` and there are no features.
        FitError: if a feature is not finite.

    Source: Choi, Ki and Chung, BWS: Best Window Selection (ICML 2024), arXiv 2406.03057, which places it as `auto` does; the penalty of
    the regression, 0.01 of the features' variance, is ours.
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
    """Draw by score and difficulty: the less is kept, the easier the samples that are favoured.

    Without replacement, in proportion to score * Beta(a, b).pdf(p_y), with b = 15 (1 - m) (1 - r^c) and a = 16 - b; r is the
    share that is pruned, m the mean p_y of the ten highest scores. Weighted draws are those of Efraimidis and Spirakis (2006),
    from the seeded hash of the id. Scores that are not positive count from the lowest one.

    Args:
        scores_M: (M,) scores, higher is drawn sooner.
        labels_M: (M,) int64 classes; unused here.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class; it counts as kept in r.
        seed: which draw.
        p_label_M: (M,) probability of the true class after the last epoch, mean over votes.
        consistency_M: (M,) the score `consistency`, one minus its mean over epochs; None where it is not stored.
        over: which of the two is p_y: `last`, or `epochs`, as the paper has it.
        c: how late easy samples are favoured as more is pruned, above 0.

    Returns:
        (budget,) positions, the first drawn first.

    Raises:
        ConfigError: if `c` or `over` is outside its range, or `over` is `epochs` and nothing was scored over epochs.

    Source: Cho, Shin and Yun, DUAL (ICML 2025), arXiv 2502.06905; c = 4 is the default of its code for CIFAR.
    """
    if isinstance(c, bool) or not isinstance(c, (int, float)) or not 0 < c < np.inf:
        raise ConfigError(f"policy option c={c!r} must be a number above 0.")
    if over not in ("last", "epochs"):
        raise ConfigError(f"policy option over={over!r} is neither last nor epochs.")
    if over == "epochs" and consistency_M is None:
        raise ConfigError(
            "policy beta with over: epochs reads the score consistency, as the mean of votes. Take combine: mean and score_every: 1."
        )
    if not len(ids_M):
        return np.empty(0, np.intp)
    order = best_first(scores_M, ids_M, seed)
    probs_M = p_label_M if over == "last" or consistency_M is None else 1 - consistency_M
    b = beta_shape(probs_M[order[:10]], candidates=len(ids_M), budget=budget, kept=int(kept_C.sum()), c=c)
    ends = {"low": float(scores_M.min()), "high": float(scores_M.max())}
    draws, keys = beta_draws(scores_M, probs_M, ids_M, b=b, **ends, seed=seed)
    return np.lexsort((keys, -draws))[:budget]
