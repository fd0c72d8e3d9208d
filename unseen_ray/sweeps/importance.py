"""Which hyperparameters matter: their shares of the variance of a sweep's results, and the effect of each value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.core.seeds import derive, rng_for

__all__ = ["Effect", "Importance", "groups_of", "importances"]

_MOST_GROUPS = 6
_RESAMPLES = 500
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The effect of a hyperparameter's value.

    Attributes:
        value: the value, or the range of values, as text.
        trials: number of trials with it.
        mean: expected result with it, averaged over the other hyperparameters of all trials.
        low, high: its 95 % bootstrap interval over the trials.
    """

    value: str
    trials: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How much of the results' variance a hyperparameter explains beyond all others.

    Attributes:
        knob: its name.
        share: share of the variance, less what chance alone would explain (omega squared); may be negative.
        low, high: its 95 % bootstrap interval over the trials.
        effects: the effect of each value.
    """

    knob: str
    share: float
    low: float
    high: float
    effects: tuple[Effect, ...]


def importances(groups: dict[str, tuple[list[str], IntArray]], results_T: FloatArray) -> list[Importance]:
    """The hyperparameters by their share of the variance, largest first, from an additive model of their values.

    Interactions are not included in any share. Hyperparameters with one value are left out.

    Args:
        groups: for each hyperparameter, the names of its values, and (T,) the index of each trial's value; see `groups_of`.
        results_T: (T,) the results.

    Returns:
        Empty if the trials are too few to tell the hyperparameters apart.
    """
    groups = {knob: (names, codes_T) for knob, (names, codes_T) in groups.items() if len(np.unique(codes_T)) > 1}
    total = len(results_T)
    parameters = 1 + sum(len(names) - 1 for names, _ in groups.values())
    # At least one degree of freedom must be left to estimate the noise.
    if not groups or total < parameters + 2 or np.ptp(results_T) == 0:
        return []
    shares, means = _explained(groups, results_T, np.arange(total))
    rng = rng_for(derive(0, "importance"))
    # Trials are resampled, not residuals: the noise of a trial may depend on its hyperparameters.
    drawn = [_explained(groups, results_T, rng.integers(total, size=total)) for _ in range(_RESAMPLES)]
    found = []
    for knob, (names, codes_T) in groups.items():
        low, high = _interval([each_shares[knob] for each_shares, _ in drawn])
        effects = []
        for code, name in enumerate(names):
            its = _interval([each_means[knob][code] for _, each_means in drawn])
            effects.append(
                Effect(
                    value=name,
                    trials=int((codes_T == code).sum()),
                    mean=float(means[knob][code]),
                    low=its[0],
                    high=its[1],
                )
            )
        found.append(Importance(knob=knob, share=float(shares[knob]), low=low, high=high, effects=tuple(effects)))
    return sorted(found, key=lambda importance: -importance.share)


def groups_of(values_T: Sequence[Any]) -> tuple[list[str], IntArray]:
    """The values of a hyperparameter as groups: one per value, or quartiles of the trials if there are many numbers.

    Args:
        values_T: (T,) the value of each trial; None if it had no effect there.
    """
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values_T)
    if numbers and len(set(values_T)) > _MOST_GROUPS:
        array = np.asarray(values_T, float)
        edges = np.quantile(array, [0.25, 0.5, 0.75])
        codes_T = np.searchsorted(edges, array, side="right")
        kept, codes_T = np.unique(codes_T, return_inverse=True)
        names = [f"{array[codes_T == code].min():g} to {array[codes_T == code].max():g}" for code in range(len(kept))]
        return names, codes_T
    distinct = sorted(set(map(_text, values_T))) if not numbers else [_text(value) for value in sorted(set(values_T))]
    return distinct, np.array([distinct.index(_text(value)) for value in values_T], np.int64)


def _explained(
    groups: dict[str, tuple[list[str], IntArray]], results_T: FloatArray, rows: IntArray
) -> tuple[dict[str, float], dict[str, FloatArray]]:
    """Omega squared of each hyperparameter, and the mean of each of its values, over some of the trials."""
    y = results_T[rows]
    blocks = {knob: _indicators(codes_T[rows], len(names)) for knob, (names, codes_T) in groups.items()}
    left, rank, weights = _fit(list(blocks.values()), y)
    spread = float(((y - y.mean()) ** 2).sum())
    noise = left / max(len(y) - rank, 1)
    shares, means, at = {}, {}, 1
    for knob, block in blocks.items():
        without, rank_without, _ = _fit([other for name, other in blocks.items() if name != knob], y)
        # Omega squared: the noise that these columns explain by chance is taken off.
        shares[knob] = (without - left - (rank - rank_without) * noise) / (spread + noise) if spread else 0.0
        its = np.concatenate([[0.0], weights[at : at + block.shape[1]]])
        at += block.shape[1]
        held = np.bincount(groups[knob][1][rows], minlength=len(its)) / len(y)
        means[knob] = np.where(held > 0, y.mean() + its - float((its * held).sum()), np.nan)
    return shares, means


def _fit(blocks: list[FloatArray], y: FloatArray) -> tuple[float, int, FloatArray]:
    """Squared residuals, rank and weights of the least squares fit on a constant and blocks of columns."""
    design = np.concatenate([np.ones((len(y), 1)), *blocks], axis=1)
    weights, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(((y - design @ weights) ** 2).sum()), int(rank), weights


def _indicators(codes_T: IntArray, count: int) -> FloatArray:
    """(T, count - 1) dummy coding; the first value is the reference."""
    columns: FloatArray = (codes_T[:, None] == np.arange(1, count)).astype(float)
    return columns


def _interval(values: Sequence[float]) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    # A resample may lack a value, whose mean is then NaN.
    low, high = np.nanquantile(np.asarray(values, float), [tail, 1 - tail])
    return float(low), float(high)


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
