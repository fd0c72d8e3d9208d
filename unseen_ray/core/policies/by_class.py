"""Policies that choose within each class."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, first_of_each_class
from unseen_ray.core.outofcore.exact_sums import ExactSums
from unseen_ray.core.policies.base import Positions, best_first, check_number, check_share, filled_up
from unseen_ray.core.policies.inside import picked_inside
from unseen_ray.core.policies.quotas import even_quota, least_quota, misses_of, quota_by_mean
from unseen_ray.errors import ConfigError

__all__ = ["class_balanced", "class_floor", "class_quota"]


def class_balanced(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    inside: str | Mapping[str, Any] = "top",
    p_label_M: FloatArray | None = None,
    consistency_M: FloatArray | None = None,
) -> Positions:
    """Keep the highest scores of each class, every class in proportion to its size.

    The share of a class is `target * N_c / N` of the cumulative target, rounded by largest remainder so that the
    total is exact, less what earlier stages kept of it. A class that already holds more than its share gives nothing,
    and the others make room for it.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`.
        inside: the policy that chooses within a class in place of `top`: a name, or {use: name, option: value}.
        p_label_M, consistency_M: what `beta` reads, for `inside`.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `inside` is not a policy that can choose within a class, or its options are outside their range.
    """
    quota_C = even_quota(labels_M, budget, kept_C, seed)
    given: Any = {"kept_C": kept_C, "seed": seed, "p_label_M": p_label_M, "consistency_M": consistency_M}
    return picked_inside(inside, scores_M, labels_M, ids_M, quota_C, **given)


def class_floor(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    floor: float = 0.5,
) -> Positions:
    """Keep the highest scores, but of no class less than a part of its even share.

    Each class first gets its highest scores up to `floor` of what `class_balanced` would give it, rounded down; one sample at the least
    where that gives any. The rest of the budget goes to the highest scores that are left, of whatever class.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`.
        floor: 0 to 1; 0 is `top` with one sample of each class that `class_balanced` gives any, 1 is `class_balanced`. A class whose even
            share rounds to 0 has no floor.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if `floor` is outside its range.
    """
    check_share("floor", floor, closed=True)
    order = best_first(scores_M, ids_M, seed)
    candidates_C = np.bincount(labels_M, minlength=len(kept_C))
    granted = first_of_each_class(order, labels_M, least_quota(candidates_C, budget, kept_C, seed, floor=floor))
    return filled_up(granted, order, budget)


def class_quota(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    strength: float = 1.0,
    by: str = "score",
    inside: str | Mapping[str, Any] = "top",
    pred_M: IntArray | None = None,
    p_label_M: FloatArray | None = None,
    consistency_M: FloatArray | None = None,
) -> Positions:
    """Keep the highest scores of each class, more of the harder classes: in proportion to size and difficulty.

    The share of a class is in proportion to N_c * d_c^strength, never below what it has nor above what there is of it. d_c is the mean
    score, counted from the lowest one if that is negative, or one minus the recall (DRoP, with `inside: random`) of its candidates.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`.
        strength: 0 or more; 0 minds sizes alone, as `class_balanced` does.
        by: what says how hard a class is: `score`, or `recall` of the votes' predictions `pred_M`, (M,) classes.
        inside, p_label_M, consistency_M: see `class_balanced`.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if an option is outside its range, or `by` is `recall` without `pred_M`.

    Source: Vysogorets, Ahuja and Kempe, DRoP (ICLR 2025), arXiv 2404.05579, Algorithm 1; the mean score is our addition.
    """
    check_number("strength", strength)
    sums, lowest = _difficulty(by, scores_M, labels_M, pred_M, len(kept_C))
    sizes_C = np.bincount(labels_M, minlength=len(kept_C))
    quota_C = quota_by_mean(sums, lowest, sizes_C, budget, kept_C, seed, strength=strength)
    given: Any = {"kept_C": kept_C, "seed": seed, "p_label_M": p_label_M, "consistency_M": consistency_M}
    return picked_inside(inside, scores_M, labels_M, ids_M, quota_C, **given)


def _difficulty(
    by: str, scores_M: FloatArray, labels_M: IntArray, pred_M: IntArray | None, classes: int
) -> tuple[list[Fraction], float]:
    """C exact sums of what says how hard the candidates are, and the lowest of these values."""
    if by == "recall":
        if pred_M is None:
            raise ConfigError("policy class_quota with by: recall reads pred_M, the predicted classes. Pass them too.")
        return [Fraction(count) for count in misses_of(labels_M, pred_M, classes).tolist()], 0.0
    if by != "score":
        raise ConfigError(f"policy option by={by!r} is neither score nor recall.")
    # Floating-point sums would depend on the order of the candidates; quotas must not.
    sums = ExactSums(classes, scores_M.dtype)
    sums.add(labels_M, scores_M)
    return sums.totals(), float(scores_M.min(initial=0.0))
