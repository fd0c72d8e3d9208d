"""Which knob of a sweep matters: shares of the variance of its results, and what each value is worth, with intervals."""

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
    """What a value of a knob is worth.

    Attributes:
        value: the value, or the range of values, as text.
        trials: how many had it.
        mean: the result to expect with it, the other knobs as they were over all trials.
        low, high: 95 % interval of it, by resampling the trials.
    """

    value: str
    trials: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How much of the variance of the results a knob explains beyond all others.

    Attributes:
        knob: its name.
        share: of the variance; that which chance alone would explain is taken off (omega squared), so it may be below 0.
        low, high: 95 % interval of it, by resampling the trials.
        effects: what each of its values is worth.
    """

    knob: str
    share: float
    low: float
    high: float
    effects: tuple[Effect, ...]


def importances(groups: dict[str, tuple[list[str], IntArray]], results_T: FloatArray) -> list[Importance]:
    """The knobs by how much they explain, the most important first, by an additive model of their values.

    What knobs do only together is in none of the shares. Knobs with one value have no share.

    Args:
        groups: by knob, the names of its values, and (T,) which of them each trial had; see `groups_of`.
        results_T: (T,) what came out.

    Returns:
        Empty where the trials are too few to tell the knobs apart.
    """
    groups = {knob: (names, codes_T) for knob, (names, codes_T) in groups.items() if len(np.unique(codes_T)) > 1}
    total = len(results_T)
    parameters = 1 + sum(len(names) - 1 for names, _ in groups.values())
    if not groups or total < parameters + 2 or np.ptp(results_T) == 0:
        return []
    shares, means = _explained(groups, results_T, np.arange(total))
    rng = rng_for(derive(0, "importance"))
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
    """The values of a knob as groups: each value one, many numbers as quarters of the trials.

    Args:
        values_T: (T,) the value of each trial; None where the knob had no effect.
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
    """Omega squared of each knob, and the mean of each of its values, of some of the trials."""
    y = results_T[rows]
    blocks = {knob: _indicators(codes_T[rows], len(names)) for knob, (names, codes_T) in groups.items()}
    left, rank, weights = _fit(list(blocks.values()), y)
    spread = float(((y - y.mean()) ** 2).sum())
    noise = left / max(len(y) - rank, 1)
    shares, means, at = {}, {}, 1
    for knob, block in blocks.items():
        without, rank_without, _ = _fit([other for name, other in blocks.items() if name != knob], y)
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
    """(T, count - 1): which value a trial had, the first one left out."""
    columns: FloatArray = (codes_T[:, None] == np.arange(1, count)).astype(float)
    return columns


def _interval(values: Sequence[float]) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(np.asarray(values, float), [tail, 1 - tail])
    return float(low), float(high)


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
