"""How the coreset grows: from fractions, or a first fraction and a spacing, to exact sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unseen_ray.errors import ConfigError

__all__ = ["Spacing", "Stage", "spaced_fractions", "stages_of"]

Spacing = Literal["even", "geometric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the growth.

    Attributes:
        index: 0 is the K-fold stage.
        added: samples chosen in this stage.
        target: coreset size after it.
    """

    index: int
    added: int
    target: int


def spaced_fractions(first: float, keep: float, stages: int, spacing: Spacing = "even") -> list[float]:
    """Fractions from `first` to `keep`, in equal steps or equal ratios.

    >>> spaced_fractions(0.25, 0.75, 3)
    [0.25, 0.5, 0.75]
    """
    if stages == 1:
        return [keep]
    shares = [index / (stages - 1) for index in range(stages)]
    if spacing == "even":
        between = [first + (keep - first) * share for share in shares]
    else:
        between = [first * (keep / first) ** share for share in shares]
    return [*between[:-1], keep]  # not the computed end, which rounding may have moved


def stages_of(fractions: Sequence[float], num_samples: int) -> tuple[Stage, ...]:
    """Turn fractions of N into stages; each target is `round(fraction * N)`, with halves rounded to even.

    Raises:
        ConfigError: if a stage would add nothing, or nothing would be pruned.
    """
    if not fractions:
        raise ConfigError("the schedule is empty; give at least one fraction. The last one is keep.")
    targets = [round(fraction * num_samples) for fraction in fractions]
    if targets[0] < 1 or targets[-1] >= num_samples:
        raise ConfigError(
            f"the targets {targets} must lie within 1..{num_samples - 1}: N is {num_samples}. Choose another keep or schedule."
        )
    stages = []
    before = 0
    for index, target in enumerate(targets):
        if target <= before:
            raise ConfigError(
                f"stage {index} of the schedule would add nothing: the targets are {targets} of N = {num_samples}. "
                "They must increase strictly; use fewer stages or larger steps."
            )
        stages.append(Stage(index=index, added=target - before, target=target))
        before = target
    return tuple(stages)
