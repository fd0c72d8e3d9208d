"""The table of an evaluation: accuracies of the arms, what the differences are worth, and when the pruning has paid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from unseen_ray.runs.tasks import EvalResult
from unseen_ray.storage.checked_json import without_nan

__all__ = ["Arm", "BreakEven", "Budget", "Difference", "Evaluation", "arm_of", "break_even_of", "differences_of"]

Budget = Literal["epochs", "iterations"]
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One line of the table.

    Attributes:
        name: `coreset`, or a baseline.
        samples: how many the models trained on.
        selections: among how many choices of the subset the trainings are divided, evenly and in order; `full` is one set
            that is trained as often as the others.
        accuracies: of each training, after the last epoch.
        class_accuracy: (C,) mean over trainings, NaN where the test set has none of a class.
        class_samples: (C,) mean number of training samples of each class.
        seconds: of all trainings together, each added up over the workers that shared it.
        seconds_each: their median.
        seconds_std: their standard deviation (n - 1), NaN for one.
        choosing_s: seconds of workers that one choice of the subset took; 0 where it is drawn, None where it is not known.
        devices: what they ran on.
        choosing_devices: what the models ran on that a choice was made by; empty where it is not known, or the subset is drawn.
        drawn: whether every training had a subset of its own, or all the same set: no choice is made twice.
    """

    name: str
    samples: int
    selections: int
    accuracies: tuple[float, ...]
    class_accuracy: tuple[float, ...]
    class_samples: tuple[float, ...]
    seconds: float
    seconds_each: float
    seconds_std: float
    choosing_s: float | None
    devices: tuple[str, ...]
    choosing_devices: tuple[str, ...]
    drawn: bool

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over all trainings (n - 1), NaN for one."""
        return _std(self.accuracies)

    @property
    def std_trainings(self) -> float:
        """Standard deviation over trainings on the same subset, pooled; NaN where each has one, or a subset of its own."""
        if self.drawn:
            return math.nan
        spreads = [_std(row) for row in self.by_selection()]
        return math.sqrt(statistics.fmean(spread**2 for spread in spreads))

    @property
    def std_selections(self) -> float:
        """Standard deviation that choosing again adds: of the subsets' means, less what training again explains of it.

        0 where training again explains all; NaN for one subset, or where none is chosen twice or trained twice.
        """
        rows = self.by_selection()
        return math.sqrt(
            max(_std([statistics.fmean(row) for row in rows]) ** 2 - self.std_trainings**2 / len(rows[0]), 0.0)
        )

    @property
    def worst_class(self) -> float:
        """Accuracy of the class that does worst."""
        return min(self._measured())

    @property
    def class_spread(self) -> float:
        """Standard deviation of the classes' accuracies around their mean (n): the disparity between classes."""
        return statistics.pstdev(self._measured())

    def by_selection(self) -> list[tuple[float, ...]]:
        """The accuracies of each subset's trainings."""
        each = len(self.accuracies) // self.selections
        return [self.accuracies[start : start + each] for start in range(0, len(self.accuracies), each)]

    def to_json(self) -> dict[str, Any]:
        """Fields and what follows from them."""
        derived = ("mean", "std", "std_trainings", "std_selections", "worst_class", "class_spread")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def _measured(self) -> list[float]:
        return [value for value in self.class_accuracy if not math.isnan(value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much more accurate the coreset is than a baseline.

    Several choices of the coreset are compared choice by choice, by the means of their trainings (Student's t over the
    choices): the interval is for the method. The trainings of one choice are compared as two samples (Welch's t): the
    interval is for this coreset alone.

    Attributes:
        baseline: the arm's name.
        mean: accuracy of the coreset less that of the baseline.
        low, high: 95 % confidence interval of it, NaN where there is too little to tell.
        choices: of the coreset.
    """

    baseline: str
    mean: float
    low: float
    high: float
    choices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When choosing the coreset has paid for itself.

    Attributes:
        choosing_s: seconds of workers that the choice took.
        saved_s: seconds of workers that a training on the coreset is shorter than one on everything, by their medians.
        trainings: after how many trainings on the coreset the sum is even; None where none is shorter by more than twice the
            standard error of the measured seconds.
    """

    choosing_s: float
    saved_s: float
    trainings: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The table, with what it was measured on, by which recipe, on what hardware and with which versions.

    Every arm was trained by the one recipe; a table never mixes two.

    Attributes:
        test, test_samples: what was measured on.
        model, recipe: what was trained.
        budget: `epochs`: every arm as many passes over its own samples; `iterations`: every arm as many steps as everything gets.
        environment: versions and hardware.
        class_names: names of the classes, by number.
        arms: the lines, `coreset` first.
        differences: the coreset against each baseline.
        break_even: measured where `full` is among the arms, makes more steps than the coreset and ran on the same device, and
            the choice's cost is known; else None.
    """

    test: str
    test_samples: int
    model: str
    recipe: dict[str, Any]
    budget: Budget
    environment: dict[str, Any]
    class_names: tuple[str, ...]
    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]
    break_even: BreakEven | None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        values: dict[str, Any] = without_nan({**asdict(self), "arms": [arm.to_json() for arm in self.arms]})
        return values


def arm_of(
    name: str,
    results: Sequence[EvalResult],
    class_samples: Sequence[np.ndarray],
    *,
    choosing_s: float | None,
    choosing_devices: tuple[str, ...] = (),
    drawn: bool = False,
) -> Arm:
    """A line from its trainings, in the order of (selection, repeat).

    Args:
        name: the arm's.
        results: of each training.
        class_samples: (C,) training samples of each class, for each training.
        choosing_s, choosing_devices, drawn: see `Arm`.
    """
    seconds = [result.worker_seconds for result in results]
    return Arm(
        name=name,
        samples=results[0].trained,
        selections=len({result.selection for result in results}),
        accuracies=tuple(result.accuracy for result in results),
        class_accuracy=tuple(map(float, np.mean([result.class_accuracy for result in results], axis=0))),
        class_samples=tuple(map(float, np.mean(class_samples, axis=0))),
        seconds=round(sum(seconds), 3),
        seconds_each=round(statistics.median(seconds), 3),
        seconds_std=_std(seconds),
        choosing_s=choosing_s,
        devices=tuple(sorted({result.device for result in results})),
        choosing_devices=choosing_devices,
        drawn=drawn,
    )


def differences_of(arms: Sequence[Arm]) -> tuple[Difference, ...]:
    """The first arm against each other one."""
    first, *others = arms
    return tuple(_difference(first, other) for other in others)


def break_even_of(arms: Sequence[Arm]) -> BreakEven | None:
    """From the first arm's cost and the time of `full`; None where either is missing, or different devices did these."""
    coreset, full = arms[0], next((arm for arm in arms if arm.name == "full"), None)
    if full is None or coreset.choosing_s is None or coreset.devices != full.devices:
        return None
    if coreset.choosing_devices and coreset.choosing_devices != full.devices:
        return None
    saved_s = full.seconds_each - coreset.seconds_each
    error_s = math.sqrt(
        sum(arm.seconds_std**2 / len(arm.accuracies) for arm in (coreset, full) if len(arm.accuracies) > 1)
    )
    trainings = coreset.choosing_s / saved_s if saved_s > 2 * error_s else None
    return BreakEven(choosing_s=round(coreset.choosing_s, 3), saved_s=round(saved_s, 3), trainings=trainings)


def _difference(first: Arm, other: Arm) -> Difference:
    if first.selections > 1:
        means = [[statistics.fmean(row) for row in arm.by_selection()] for arm in (first, other)]
        gains = [one - two for one, two in zip(*means, strict=True)]
        error, freedom = _std(gains) / math.sqrt(len(gains)), len(gains) - 1.0
    else:
        error, freedom = _welch(first.accuracies, other.accuracies)
    mean, half = first.mean - other.mean, _half_width(error, freedom)
    return Difference(baseline=other.name, mean=mean, low=mean - half, high=mean + half, choices=first.selections)


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Standard error of a difference of means and its degrees of freedom; Welch, Biometrika 34 (1947)."""
    one, two = (_std(values) ** 2 / len(values) for values in (first, second))
    if math.isnan(one + two) or one + two == 0:
        return (math.nan, math.nan) if math.isnan(one + two) else (0.0, 1.0)
    return math.sqrt(one + two), (one + two) ** 2 / (one**2 / (len(first) - 1) + two**2 / (len(second) - 1))


def _half_width(error: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return math.nan if math.isnan(error) else float(stdtrit(freedom, (1 + _LEVEL) / 2)) * error


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
