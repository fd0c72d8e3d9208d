"""The table of an evaluation: accuracies of the arms, what the differences are worth, and when the pruning has paid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from unseen_ray.job import EvalResult

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
        seconds: of all trainings together.
        choosing_s: seconds of workers that one choice of the subset took; 0 where it is drawn, None where it is not known.
    """

    name: str
    samples: int
    selections: int
    accuracies: tuple[float, ...]
    class_accuracy: tuple[float, ...]
    class_samples: tuple[float, ...]
    seconds: float
    choosing_s: float | None

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
        """Standard deviation over trainings on the same subset, pooled; NaN where each has one."""
        spreads = [_std(row) for row in self.by_selection()]
        return math.sqrt(statistics.fmean(spread**2 for spread in spreads))

    @property
    def std_selections(self) -> float:
        """Standard deviation over the subsets of their mean accuracies, NaN for one subset."""
        return _std([statistics.fmean(row) for row in self.by_selection()])

    @property
    def seconds_each(self) -> float:
        """Mean seconds of a training."""
        return self.seconds / len(self.accuracies)

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
        derived = ("mean", "std", "std_trainings", "std_selections", "seconds_each", "worst_class", "class_spread")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def _measured(self) -> list[float]:
        return [value for value in self.class_accuracy if not math.isnan(value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much more accurate the coreset is than a baseline, over pairs of trainings with the same seeds.

    Attributes:
        baseline: the arm's name.
        mean: accuracy of the coreset less that of the baseline.
        low, high: 95 % confidence interval of it (Student's t over the pairs), NaN for one pair.
        pairs: how many.
    """

    baseline: str
    mean: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When choosing the coreset has paid for itself.

    Attributes:
        choosing_s: seconds of workers that the choice took.
        saved_s: seconds that a training on the coreset is shorter than one on everything.
        trainings: after how many trainings on the coreset the sum is even; None where none is shorter.
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
        break_even: measured where `full` is among the arms and the choice's cost is known, else None.
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
    name: str, results: Sequence[EvalResult], class_samples: Sequence[np.ndarray], choosing_s: float | None
) -> Arm:
    """A line from its trainings, in the order of (selection, repeat).

    Args:
        name: the arm's.
        results: of each training.
        class_samples: (C,) training samples of each class, for each training.
        choosing_s: see `Arm`.
    """
    return Arm(
        name=name,
        samples=results[0].trained,
        selections=len({result.selection for result in results}),
        accuracies=tuple(result.accuracy for result in results),
        class_accuracy=tuple(map(float, np.mean([result.class_accuracy for result in results], axis=0))),
        class_samples=tuple(map(float, np.mean(class_samples, axis=0))),
        seconds=round(sum(result.seconds for result in results), 3),
        choosing_s=choosing_s,
    )


def differences_of(arms: Sequence[Arm]) -> tuple[Difference, ...]:
    """The first arm against each other one."""
    first, *others = arms
    return tuple(_difference(first, other) for other in others)


def break_even_of(arms: Sequence[Arm]) -> BreakEven | None:
    """From the first arm's cost and the time of `full`; None where either is missing."""
    coreset, full = arms[0], next((arm for arm in arms if arm.name == "full"), None)
    if full is None or coreset.choosing_s is None:
        return None
    saved_s = full.seconds_each - coreset.seconds_each
    trainings = coreset.choosing_s / saved_s if saved_s > 0 else None
    return BreakEven(choosing_s=round(coreset.choosing_s, 3), saved_s=round(saved_s, 3), trainings=trainings)


def without_nan(value: Any) -> Any:
    """Nested values with None for each NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _difference(first: Arm, other: Arm) -> Difference:
    from scipy.special import stdtrit

    pairs = np.array(first.accuracies) - np.array(other.accuracies)
    mean = float(pairs.mean())
    half = math.nan
    if len(pairs) > 1:
        half = float(stdtrit(len(pairs) - 1, (1 + _LEVEL) / 2) * pairs.std(ddof=1) / math.sqrt(len(pairs)))
    return Difference(baseline=other.name, mean=mean, low=mean - half, high=mean + half, pairs=len(pairs))


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
