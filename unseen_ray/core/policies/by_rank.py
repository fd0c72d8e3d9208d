"""Policies that choose by place in the order of the scores: the top, a window, the middle, at random, or partly so."""

from __future__ import annotations

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.base import Positions, best_first, check_choice, check_share, filled_up
from unseen_ray.core.policies.distances import distances_from_median, given_features
from unseen_ray.core.policies.window_search import best_first_place
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["mix", "moderate", "random", "top", "window"]


def top(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep the highest scores; equal scores by the seeded hash of the id.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M and kept_C are unused.

    Returns:
        (budget,) positions, the highest score first.

    Source: UNSEEN (AAAI 2026), Figure 3.
    """
    return best_first(scores_M, ids_M, seed, budget)


def random(
    scores_M: FloatArray, labels_M: IntArray, ids_M: IdArray, budget: int, *, kept_C: IntArray, seed: int
) -> Positions:
    """Keep a uniformly random subset, whatever the scores: the baseline for every other policy.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; only ids_M, budget and seed are used.

    Returns:
        (budget,) positions.
    """
    # A seed of its own: the order of ties among scores must not say which samples the baseline keeps.
    return np.argsort(tie_keys(ids_M, derive(seed, "random")))[:budget]


def mix(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    share: float = 0.5,
) -> Positions:
    """Keep the highest scores up to a share of the budget, and draw the rest uniformly from all others.

    The draw follows the order of `random`, past the samples that are already kept: the first `1 - share` of what `random` keeps is kept.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M and kept_C are unused.
        share: of the budget by score, 0 to 1, rounded to whole samples; 0 is `random`, 1 is `top`.

    Returns:
        (budget,) positions, first those by score, the highest first.

    Raises:
        ConfigError: if `share` is outside its range.

    Source: Ayed and Hayou, Data pruning and neural scaling laws: fundamental limitations of score-based algorithms (TMLR 2023).
    """
    check_share("share", share, closed=True)
    highest = best_first(scores_M, ids_M, seed, round(share * budget))
    drawn = random(scores_M, labels_M, ids_M, len(ids_M), kept_C=kept_C, seed=seed)
    return filled_up(highest, drawn, budget)


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
        (budget,) positions, the highest score first.

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
        raise ConfigError(f"policy option start={start!r} is not in [0, 1): it is a share, or auto.")
    else:
        check_share("start", start)
        first = min(round(start * len(order)), len(order) - budget)
    return order[first : first + budget]


def moderate(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    of: str = "score",
    features_MD: FloatArray | None = None,
) -> Positions:
    """Keep the middle of the order: neither the hardest nor the easiest, as many left out at either end.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; labels_M is used by `distance` only, kept_C is unused.
        of: what is ordered. `score`, or `distance`, the paper's: from the coordinate-wise median of the features of the class.
        features_MD: (M, D) float16 or float32 features of the candidates, for `distance`.

    Returns:
        (budget,) positions, the highest first; where an odd number is left out, the hardest end loses one less.

    Raises:
        ConfigError: if `of` is neither, or is `distance` without features; FitError if a feature is not finite.

    Source: Xia et al., Moderate Coreset (ICLR 2023); by default with a score in place of its distance.
    """
    check_choice("of", of, ("score", "distance"))
    if of == "distance":
        scores_M = distances_from_median(given_features(features_MD, "moderate with of: distance"), labels_M)
    order = best_first(scores_M, ids_M, seed)
    first = (len(order) - budget) // 2
    return order[first : first + budget]
