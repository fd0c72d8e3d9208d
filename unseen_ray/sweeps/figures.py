"""The plots of a sweep's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.reporting.figures import FIRST, GRID, SECOND, svg
from unseen_ray.sweeps.importance import Importance

__all__ = ["front", "importance_bars", "parallel_coordinates"]

_FAINTEST, _BEST_SHOWN = 0.12, 5
_LONGEST_NAME = 14


def parallel_coordinates(
    groups: dict[str, tuple[list[str], IntArray]], results_T: FloatArray, *, title: str, narrow: bool = False
) -> str:
    """One line per trial through its values to its accuracy on the right; better trials are darker, the best in colour.

    Args:
        groups: see `importance.groups_of`.
        results_T: (T,) accuracies.
        title: the alternative text.
        narrow: for the width of a phone.
    """
    low, high = float(results_T.min()), float(results_T.max())
    height_T = (results_T - low) / (high - low) if high > low else np.full(len(results_T), 0.5)
    beside = _spread_of(len(results_T))
    columns = [
        (codes_T + beside) / max(len(names) - 1, 1) if len(names) > 1 else 0.5 + beside
        for names, codes_T in groups.values()
    ]

    def draw(axes: Axes) -> None:
        _draw_trials(axes, np.stack([*columns, height_T], axis=1))
        for place, (names, _) in enumerate(groups.values()):
            heights = np.linspace(0, 1, len(names)) if len(names) > 1 else [0.5]
            _draw_axis(axes, place, {float(height): _short(name) for height, name in zip(heights, names, strict=True)})
        _draw_axis(axes, len(groups), {0: f"{low:.4f}", 1: f"{high:.4f}"})
        axes.set_xticks(range(len(groups) + 1), [*map(_short, groups), "accuracy"], fontsize=8 if narrow else None)
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(groups) + 0.5)
        axes.set_ylim(-0.12, 1.15)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    axes_shown = len(groups) + 1
    return svg(draw, title=title, size=(max(4.5, axes_shown), 5) if narrow else (max(11, 1.5 * axes_shown), 4.2))


def _draw_trials(axes: Axes, lines_TP: FloatArray) -> None:
    """One line per trial through its heights on the axes; the last is its accuracy. Better trials are drawn over others."""
    order = np.argsort(lines_TP[:, -1], kind="stable")
    strong = set(order[-_BEST_SHOWN:].tolist())
    for trial in order.tolist():
        best = trial in strong
        alpha = 1 if best else _FAINTEST + (1 - _FAINTEST) * float(lines_TP[trial, -1]) ** 2
        points = np.stack([np.arange(lines_TP.shape[1]), lines_TP[trial]], axis=1)
        style: dict[str, Any] = {"colors": SECOND if best else FIRST, "alpha": alpha, "linewidths": 2 if best else 1}
        axes.add_collection(LineCollection([points], **style))


def _draw_axis(axes: Axes, place: int, names: dict[float, str]) -> None:
    axes.axvline(place, color=GRID, linewidth=1)
    for height, name in names.items():
        axes.annotate(name, (place, height), xytext=(4, 3), textcoords="offset points", fontsize=9)


def importance_bars(found: Sequence[Importance], *, title: str) -> str:
    """The share of the variance that each hyperparameter explains, with its interval."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(found))[::-1]
        shares = np.array([max(each.share, 0.0) for each in found])
        axes.barh(places, shares, height=0.5, color=FIRST)
        for place, each in zip(places, found, strict=True):
            axes.plot([max(each.low, 0), max(each.high, 0)], [place, place], color=SECOND, linewidth=2)
        axes.set_yticks(places, [each.knob for each in found])
        axes.set_xlim(left=0)
        axes.set_xlabel("share of the variance of the accuracies")
        axes.grid(axis="x", color=GRID, linewidth=0.5)

    return svg(draw, title=title, size=(6.4, 1.0 + 0.45 * len(found)))


def front(costs_T: FloatArray, results_T: FloatArray, on_front_T: Sequence[bool], *, unit: str, title: str) -> str:
    """Accuracy against the cost of choosing, with the Pareto front as a line."""

    def draw(axes: Axes) -> None:
        axes.scatter(costs_T, results_T, s=22, color=FIRST, alpha=0.6, linewidths=0)
        best = [place for place in np.argsort(costs_T, kind="stable") if on_front_T[place]]
        axes.plot(costs_T[best], results_T[best], "o-", color=SECOND, linewidth=1.5, markersize=7, label="Pareto front")
        axes.set_xlabel(f"{unit} to choose a coreset")
        axes.set_ylabel("accuracy on the holdout")
        axes.grid(color=GRID, linewidth=0.5)
        axes.legend()

    return svg(draw, title=title, size=(6.4, 4.0))


def _spread_of(count: int) -> FloatArray:
    """(T,) small shifts that keep lines through the same values apart."""
    return np.linspace(-0.06, 0.06, count) if count > 1 else np.zeros(count)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
