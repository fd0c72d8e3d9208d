"""Which policy chooses within a class, where another one says how many of each class are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, first_of_each_class
from unseen_ray.core.policies.base import Positions, best_first
from unseen_ray.core.policies.beta import beta
from unseen_ray.core.policies.by_rank import mix, moderate, random, top, window
from unseen_ray.core.policies.ccs import ccs
from unseen_ray.core.policies.power import power
from unseen_ray.errors import ConfigError

__all__ = ["INSIDE", "picked_inside"]

INSIDE: dict[str, Callable[..., Positions]] = {
    policy.__name__: policy for policy in (beta, ccs, mix, moderate, power, random, top, window)
}
"""The policies that may choose within a class."""

_GIVEN = ("kept_C", "seed", "p_label_M", "consistency_M", "features_MD")


def picked_inside(
    inside: Any,
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    quota_C: IntArray,
    *,
    kept_C: IntArray,
    seed: int,
    p_label_M: FloatArray | None,
    consistency_M: FloatArray | None,
) -> Positions:
    """The picks of each class, by a policy that is given this class alone.

    Args:
        inside: a name in `INSIDE`, or a mapping {use: name, option: value}.
        scores_M, labels_M, ids_M, kept_C, seed: see `core.select`.
        quota_C: (C,) how many of each class.
        p_label_M, consistency_M: (M,) what `beta` reads; None if there is none.

    Returns:
        (quota_C.sum(),) positions, class by class.

    Raises:
        ConfigError: if there is no such policy, it takes no such option, or lacks what it reads.
    """
    use, options = _read(inside)
    if use == "top":  # without a loop over the classes
        return first_of_each_class(best_first(scores_M, ids_M, seed), labels_M, quota_C)
    columns = {"p_label_M": p_label_M, "consistency_M": consistency_M} if use == "beta" else {}
    if use == "beta" and p_label_M is None:
        raise ConfigError("policy option inside: beta reads p_label_M, the probability of the true class. Pass it too.")
    chosen = [np.empty(0, np.intp)]
    by_class, ends_C = np.argsort(labels_M, kind="stable"), np.cumsum(np.bincount(labels_M, minlength=len(quota_C)))
    for number, rows in enumerate(np.split(by_class, ends_C[:-1])):
        of_class: Any = {name: None if values is None else values[rows] for name, values in columns.items()}
        candidates = scores_M[rows], np.zeros(len(rows), np.int64), ids_M[rows], int(quota_C[number])
        kept = kept_C[number : number + 1]
        chosen.append(rows[INSIDE[use](*candidates, kept_C=kept, seed=seed, **of_class, **options)])
    return np.concatenate(chosen)


def _read(inside: Any) -> tuple[str, dict[str, Any]]:
    """The name and the options of the policy within a class."""
    options = dict(inside) if isinstance(inside, Mapping) else {}
    use = options.pop("use", None) if isinstance(inside, Mapping) else inside
    if not isinstance(use, str) or use not in INSIDE:
        raise ConfigError(
            f"policy option inside={inside!r} cannot choose within a class. Write one of {', '.join(INSIDE)}, or {{use: one of them, "
            "option: value}. Policies that split the budget over classes themselves do not nest."
        )
    takes = [name for name in list(inspect.signature(INSIDE[use]).parameters)[4:] if name not in _GIVEN]
    if unknown := [name for name in options if name not in takes]:
        raise ConfigError(
            f"policy option inside: {use} takes no option {unknown[0]!r}; it takes {', '.join(takes) or 'none'}."
        )
    if options.get("start") == "auto" or options.get("of") == "distance":
        raise ConfigError(
            f"policy option inside: {use} reads no features within a class. Give start as a number, or of: score."
        )
    return use, options
