"""The report's plots as SVG that takes its colours from the page, so that it fits the light and the dark theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = [
    "FIRST",
    "GRID",
    "INK",
    "SECOND",
    "accuracies",
    "class_points",
    "class_shares",
    "density",
    "histogram",
    "shortened",
    "svg",
]

# Stand-ins: `svg` replaces them by variables of the page's style, which follow the theme.
INK, GRID, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", GRID: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # names of classes are text
}
_NAMED_CLASSES = 30
_LEVELS, _LARGEST = 12, 8.0


def histogram(edges: Sequence[float], counts: dict[str, list[int]], *, label: str, title: str) -> str:
    """Histogram of a score, one outline per mode."""

    def draw(axes: Axes) -> None:
        # Dashes, too: a print may have no colours.
        for (colour, dashes), (mode, values) in zip(((FIRST, "-"), (SECOND, "--")), counts.items(), strict=False):
            heights = np.array(values) / sum(values)
            axes.stairs(heights, edges, color=colour, linewidth=2, linestyle=dashes, label=mode)
        axes.set_xlabel(label)
        axes.set_ylabel("share of the samples")
        if len(counts) > 1:
            axes.legend()

    return svg(draw, title=title)


def density(cells: Sequence[Sequence[int]], *, across: str, up: str, title: str) -> str:
    """Two rankings of the same samples: the area of a circle is the number of samples in its cell."""

    def draw(axes: Axes) -> None:
        counts = np.array(cells, float)
        levels = np.ceil(_LEVELS * counts / counts.max()).astype(int)
        for level in range(1, _LEVELS + 1):  # a circle's area goes with the count
            x, y = np.nonzero(levels == level)
            size = _LARGEST * np.sqrt(level / _LEVELS)
            axes.plot(
                (x + 0.5) / len(counts), (y + 0.5) / len(counts), "o", markersize=size, color=FIRST, markeredgewidth=0
            )
        axes.set_xlabel(across)
        axes.set_ylabel(up)

    return svg(draw, title=title, size=(6.4, 4.6))


def class_points(
    hardness: Sequence[float], share: Sequence[float], names: Sequence[str], *, label: str, title: str
) -> str:
    """The share kept of each class over how accurate it is; few classes bear their names."""

    def draw(axes: Axes) -> None:
        axes.scatter(hardness, share, s=24, color=FIRST)
        if len(names) <= _NAMED_CLASSES:
            for x, y, name in zip(hardness, share, names, strict=True):
                axes.annotate(shortened(name), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=9)
        axes.set_xlabel(label)
        axes.set_ylabel("share kept")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))

    return svg(draw, title=title, size=(6.4, 3.8))


def class_shares(names: Sequence[str], shares: Sequence[float], *, mean: float, title: str) -> str:
    """The share kept of each class, the largest on top, beside that of the whole set."""
    order = np.argsort(np.array(shares), kind="stable")

    def draw(axes: Axes) -> None:
        places = np.arange(len(order))
        axes.barh(places, [shares[row] for row in order], height=0.7, color=FIRST)
        axes.axvline(mean, color=SECOND, linestyle="--", linewidth=1.5, label=f"of all samples: {mean:.0%}")
        axes.set_yticks(places, [shortened(names[row]) for row in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlim(0, min(1, 1.1 * max([mean, *shares])))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("share kept")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)

    return svg(draw, title=title, size=(6.4, 1.2 + 0.24 * max(len(order), 4)))


def accuracies(names: Sequence[str], trainings: Sequence[Sequence[float]], *, title: str) -> str:
    """Accuracy of each training on each set, their mean, and its standard deviation, which stays within 0 and 1."""

    def draw(axes: Axes) -> None:
        for place, values in enumerate(reversed(trainings)):
            mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            ends = np.clip([mean - std, mean + std], 0, 1)
            axes.plot(ends, [place, place], color=FIRST, linewidth=2)
            axes.plot(values, np.full(len(values), place - 0.22), "|", color=SECOND, markersize=9, markeredgewidth=1.5)
            axes.plot([mean], [place], "o", color=FIRST, markersize=8)
        axes.set_yticks(range(len(names)), [shortened(name) for name in reversed(names)])
        axes.set_ylim(-0.6, len(names) - 0.4)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, 0), min(high, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="x", color=GRID, linewidth=0.5)
        axes.set_xlabel("accuracy after the last epoch")

    return svg(draw, title=title, size=(6.4, 0.9 + 0.5 * len(names)))


def shortened(text: str, most: int = 24) -> str:
    """A name that leaves room for the plot."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def svg(draw: Callable[[Axes], None], *, title: str, size: tuple[float, float] = (6.4, 3.4)) -> str:
    """An SVG element with an alternative text."""
    # The salt makes the SVG's ids, and with them the page's bytes, the same from run to run.
    style: Any = {**_STYLE, "svg.hashsalt": title}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts come from the browser, which has the letters
        # Not by pyplot, whose figures are global and stay in memory.
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # ids repeat from plot to plot, and must be unique in a page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Without a size of its own, a plot takes the width of its column.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def _attribute(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
