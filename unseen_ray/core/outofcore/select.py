"""Policies on score tables larger than memory: the same ids as from `core.select`, by several passes over shards.

At once, memory holds a few chunks per thread, and the bins and the buffer of `Memory`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from unseen_ray.core import select
from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Memory, Shards
from unseen_ray.core.outofcore.policies import POLICIES
from unseen_ray.core.outofcore.request import Request
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.core.policies.inside import INSIDE
from unseen_ray.errors import ConfigError

__all__ = ["STREAMED", "choose", "why_not_streamed"]

STREAMED = tuple(POLICIES)
"""Policies that choose from shards."""

_WHOLE_CLASSES = tuple(name for name in INSIDE if name not in ("top", "random"))
_NOT_STREAMED = {
    "window": ("start", ("auto",)),
    "moderate": ("of", ("distance",)),
    "beta": ("over", ("epochs",)),
    "power": ("of", ("rank",)),
    "class_balanced": ("inside", _WHOLE_CLASSES),
    "class_quota": ("inside", _WHOLE_CLASSES),
}
"""By policy, an option with the values that need all candidates at once."""


def why_not_streamed(policy: Any, options: Mapping[str, Any]) -> str | None:
    """Why a policy cannot choose from shards, and which policies can; None if it can.

    Args:
        policy: a name of `core.select`, or a function.
        options: its keyword options.
    """
    name = policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
    if policy in STREAMED:
        option, refused = _NOT_STREAMED.get(policy, ("", ()))
        value = options.get(option, _defaults(policy).get(option))
        value = value.get("use") if isinstance(value, Mapping) else value
        if value not in refused:
            return None
        name = f"{policy} with {option}: {value}"
    return (
        f"policy {name} needs all candidates at once and cannot choose from score shards. Allowed are {', '.join(STREAMED)} "
        "(window with a number as start, moderate and power with of: score, beta with over: last, inside: top or random)."
    )


def choose(
    policy: str,
    shards: Shards,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    options: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
) -> Chosen:
    """Choose from score shards exactly what the policy of that name chooses from the whole table.

    Args:
        policy: one of `STREAMED`.
        shards: reads the columns `id`, `label`, `score` (float32) and for `beta` `p_label`, for `by: recall` `pred`, at every call.
        budget: number of samples to keep, 0 to all.
        kept_C: (C,) number of samples of each class that earlier stages kept.
        seed: the policy's seed.
        options: the policy's options.
        memory: limits of what is held at once.

    Raises:
        ConfigError: if the policy cannot choose from shards, or an option is outside its range.
        DataError: if a score is not finite, a label is not a class, or there are fewer candidates than `budget`.
    """
    options = dict(options or {})
    if (why := why_not_streamed(policy, options)) is not None:
        raise ConfigError(why)
    options = _full_options(policy, options, kept_C, seed)
    request = Request(
        shards=shards, budget=budget, kept_C=kept_C, seed=seed, memory=memory or Memory(), options=options
    )
    return POLICIES[policy](request)


def _full_options(policy: str, options: dict[str, Any], kept_C: IntArray, seed: int) -> dict[str, Any]:
    """The options with the policy's defaults, checked by calling the policy without candidates."""
    function = getattr(select, policy)
    nothing, defaults = np.empty(0, np.int64), _defaults(policy)
    columns = {"pred_M": nothing, "p_label_M": np.empty(0, np.float32)}
    none: dict[str, Any] = {name: column for name, column in columns.items() if name in defaults}
    function(np.empty(0, np.float32), nothing, nothing, 0, kept_C=kept_C, seed=seed, **none, **options)
    return defaults | options


def _defaults(policy: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(select, policy)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}
