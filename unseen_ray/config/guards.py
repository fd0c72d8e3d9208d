"""The guard of a run: the function that suspects wrong labels, with its options, and what it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.core import dynamics, scores
from unseen_ray.core import guard as builtin_guards
from unseen_ray.core.arrays import RowBlocks
from unseen_ray.errors import FitError
from unseen_ray.plugins import function_of, is_target, name_of, offered, plug_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = ["Guard", "guard_of", "guard_of_stored", "guard_value", "guard_words"]

_OF_AUTO = {"use": "unlikely_label", "many": 0.1}  # of all candidates
_OF_SHARES = ("aum", "label_margin")  # they suspect as many of any data
_SCORES = (*scores.__all__, *dynamics.__all__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A guard with its options bound.

    Attributes:
        function: takes what its signature names, returns (M,) bool.
        name: its name in messages.
        is_own: whether it is the user's own function.
        scores: the scores that it reads, which are always stored.
        needs_probs: whether it reads N x C probabilities.
    """

    function: Callable[..., Any]
    name: str
    is_own: bool
    scores: tuple[str, ...]
    needs_probs: bool

    def suspects(self, values: Mapping[str, Any], count: int) -> np.ndarray:
        """(M,) bool: the samples with suspected wrong labels.

        Args:
            values: everything a guard may read, by parameter name; probabilities in blocks, which a user's guard gets as one array.
            count: M.

        Raises:
            FitError: if a user's guard returns anything else.
        """
        offer = dict(values)
        if self.is_own and self.needs_probs and isinstance(values["probs_MC"], RowBlocks):
            offer["probs_MC"] = values["probs_MC"].whole()
        found = np.asarray(self.function(**offered(self.function, offer)))
        if found.shape != (count,) or found.dtype != np.bool_:
            raise FitError(
                f"guard {self.name} returned {found.dtype} of shape {found.shape}; it must return bool of shape ({count},)."
            )
        return found

    def check(self, seed: int) -> None:
        """Check the options of a built-in guard by calling it on one sample; ConfigError if one is not allowed."""
        if self.is_own:
            return
        one, number = np.zeros(1, np.int64), np.zeros(1, np.float32)
        values: dict[str, Any] = {"ids_M": one, "labels_M": one, "pred_M": one, "p_label_M": number}
        values |= {"probs_MC": np.ones((1, 1)), "seed": seed}
        self.function(**offered(self.function, {**values, **{f"{name}_M": number for name in self.scores}}))


def guard_value(guard: Any, *, policy: Any, mode: str) -> Any:
    """The guard as asked for; without one, `policy: auto` leaves out the least likely labels where they are many."""
    use, options = plug_of(policy)
    if guard == "none" and mode == "unseen" and use == "auto" and options.get("guard", True):
        return dict(_OF_AUTO)
    return guard


def guard_of_stored(asked: Mapping[str, Any]) -> Any:
    """The guard of a stored configuration."""
    return guard_value(asked.get("guard", "none"), policy=asked.get("policy"), mode=asked["mode"])


def guard_words(value: Any) -> str:
    """A guard in a sentence, which tells the one that comes with `policy: auto` from one that was asked for."""
    if value == _OF_AUTO:
        return "the guard of policy auto"
    use, options = plug_of(value)
    words = f"guard {name_of(use)}"
    if use not in _OF_SHARES:
        return words
    cut = options.get("cut", inspect.signature(getattr(builtin_guards, use)).parameters["cut"].default)
    return f"{words} (always a share of {cut:g})"


def guard_of(config: PruneConfig) -> Guard | None:
    """The guard of a run, or None.

    Raises:
        ConfigError: if it cannot be imported, or does not take its options.
    """
    if (value := guard_value(config.guard, policy=config.policy, mode=config.mode)) == "none":
        return None
    function = function_of(value, builtin_guards, field="guard", more=[f"{name}_M" for name in _SCORES])
    use, _ = plug_of(value)
    parameters = inspect.signature(function).parameters
    return Guard(
        function=function,
        name=name_of(use),
        is_own=not isinstance(use, str) or is_target(use),
        scores=tuple(name for name in _SCORES if f"{name}_M" in parameters),
        needs_probs="probs_MC" in parameters,
    )
