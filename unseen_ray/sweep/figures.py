"""The plots of a sweep's page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.reporting.figures import FIRST, GRID, SECOND, svg
from unseen_ray.sweep.importance import Importance

__all__ = ["front", "importance_bars", "parallel_coordinates"]

_FAINTEST, _BEST_SHOWN = 0.12, 5
_LONGEST_NAME = 14


def parallel_coordinates(groups: dict[str, tuple[list[str], IntArray]], results_T: FloatArray, *, title: str) -> str:
    """A line a trial through its values to its accuracy on the right; the more accurate, the stronger; the best ones in colour.

    Args:
        groups: see `core.importance.groups_of`.
        results_T: (T,) accuracies.
        title: the alternative text.
    """
    knobs = list(groups)
    low, high = float(results_T.min()), float(results_T.max())
    height_T = (results_T - low) / (high - low) if high > low else np.full(len(results_T), 0.5)
    beside = _spread_of(len(results_T))

    def draw(axes: Axes) -> None:
        columns = [
            (codes_T + beside) / max(len(names) - 1, 1) if len(names) > 1 else 0.5 + beside
            for names, codes_T in groups.values()
        ]
        lines_TP = np.stack([*columns, height_T], axis=1)
        order = np.argsort(height_T, kind="stable")
        strong = set(order[-_BEST_SHOWN:].tolist())
        for trial in order:
            alpha = _FAINTEST + (1 - _FAINTEST) * float(height_T[trial]) ** 2
            points = np.stack([np.arange(len(knobs) + 1), lines_TP[trial]], axis=1)
            best = int(trial) in strong
            axes.add_collection(
                LineCollection(
                    [points], colors=SECOND if best else FIRST, alpha=1 if best else alpha, linewidths=2 if best else 1
                )
            )
        for place, (names, _) in enumerate(groups.values()):
            axes.axvline(place, color=GRID, linewidth=1)
            for code, name in enumerate(names):
                height = code / max(len(names) - 1, 1) if len(names) > 1 else 0.5
                axes.annotate(_short(name), (place, height), xytext=(4, 3), textcoords="offset points", fontsize=9)
        axes.axvline(len(knobs), color=GRID, linewidth=1)
        for height, value in ((0, low), (1, high)):
            axes.annotate(f"{value:.4f}", (len(knobs), height), xytext=(4, 3), textcoords="offset points", fontsize=9)
        axes.set_xticks(range(len(knobs) + 1), [*map(_short, knobs), "accuracy"])
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(knobs) + 0.5)
        axes.set_ylim(-0.12, 1.15)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return svg(draw, title=title, size=(max(6.4, 1.5 * (len(knobs) + 1)), 4.2))


def importance_bars(found: Sequence[Importance], *, title: str) -> str:
    """The share of the variance that each knob explains, with its interval."""

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
    """Accuracy over what choosing costs; the front as a line."""

    def draw(axes: Axes) -> None:
        axes.scatter(costs_T, results_T, s=22, color=FIRST, alpha=0.6, linewidths=0)
        best = [place for place in np.argsort(costs_T, kind="stable") if on_front_T[place]]
        axes.plot(costs_T[best], results_T[best], "o-", color=SECOND, linewidth=1.5, markersize=7, label="front")
        axes.set_xlabel(f"{unit} to choose a coreset")
        axes.set_ylabel("accuracy on the holdout")
        axes.grid(color=GRID, linewidth=0.5)
        axes.legend()

    return svg(draw, title=title, size=(6.4, 4.0))


def _spread_of(count: int) -> FloatArray:
    """(T,) small shifts, so that lines through the same values lie beside each other."""
    return np.linspace(-0.06, 0.06, count) if count > 1 else np.zeros(count)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
