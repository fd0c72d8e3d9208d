"""How well a difference is known: its confidence interval, and how many trainings one of a given width takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from unseen_ray.pruning.trials.measured import LEVEL

__all__ = ["MOST_SEEDS", "next_seeds", "seeds_for"]

MOST_SEEDS = 20
"""Trainings of each subset after which `until` stops, whatever the interval."""

_MOST = 10_000


def seeds_for(ours: Sequence[float], theirs: Sequence[float], half_width: float) -> int | None:
    """The fewest trainings of each of two sets whose Welch interval of the difference has at most a half-width.

    It takes the standard deviations that were observed: with s1, s2 and n trainings each, the half-width is
    t(n) sqrt((s1^2 + s2^2) / n), with t the quantile of Student's t with (n - 1)(s1^2 + s2^2)^2 / (s1^4 + s2^4) degrees of freedom.

    Args:
        ours, theirs: accuracies of the trainings so far, two or more of each.
        half_width: in the unit of the accuracies, above 0.

    Returns:
        2 or more; None beyond 10,000, and where all trainings of each set came out alike.
    """
    from scipy.stats import t

    a, b = statistics.variance(ours), statistics.variance(theirs)
    if a + b == 0:
        return None
    counts = np.arange(2, _MOST + 1)
    freedom = (counts - 1) * ((a + b) ** 2 / (a**2 + b**2))
    enough = t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt((a + b) / counts) <= half_width
    return int(counts[enough.argmax()]) if enough.any() else None


def next_seeds(seeds: int, half_widths: Sequence[float], needed: Sequence[int | None], until: float) -> int | None:
    """How often to train each subset next, so that every interval gets narrow enough; None if they are, or at MOST_SEEDS.

    At most twice as often as so far, since a deviation of few trainings is itself uncertain. The rule looks at widths alone, and not at
    the difference (Chow and Robbins, 1965), so that it does not favour an answer.

    Args:
        seeds: trainings of each subset so far.
        half_widths: of the intervals; NaN for one training, and where all came out alike.
        needed: what `seeds_for` says of each.
        until: the half-width to reach.
    """
    if seeds >= MOST_SEEDS or all(width <= until for width in half_widths):
        return None
    wanted = max(_MOST if number is None else number for number in needed)
    return min(max(wanted, seeds + 1), 2 * seeds, MOST_SEEDS)
