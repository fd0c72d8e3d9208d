"""The table of an evaluation: accuracies of its arms, confidence intervals of the differences, and when pruning saves time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unseen_ray.errors import ConfigError
from unseen_ray.evaluation.precision import seeds_for
from unseen_ray.pruning.trials.measured import interval
from unseen_ray.storage.checked_json import without_nan

if TYPE_CHECKING:
    from unseen_ray.runs.tasks import EvalResult

__all__ = [
    "Arm",
    "AskedBudget",
    "BreakEven",
    "Budget",
    "Difference",
    "Evaluation",
    "arm_of",
    "break_even_of",
    "differences_of",
]

Budget = Literal["epochs", "iterations"]
AskedBudget = Literal["epochs", "iterations", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One line of the table: a training set, and the models trained on it.

    Attributes:
        name: `coreset`, or the name of a baseline.
        samples: size of the training set, or of an epoch where each draws anew.
        selections: number of choices of the subset; the trainings are grouped by them, in order. `full` is always the
            same set, trained as often as the others.
        accuracies: of each training, after the last epoch.
        class_accuracy: (C,) mean over trainings; NaN for a class that the test set does not have.
        class_samples: (C,) mean number of training samples of each class.
        seconds: worker-seconds of all trainings.
        seconds_each: their median.
        seconds_std: their spread, 1.4826 times the median absolute deviation, NaN for one: an estimate of the standard deviation that
            the first training of a process, which takes longer, leaves alone.
        choosing_s: worker-seconds that one choice of the subset took; 0 if it is drawn, None if unknown.
        devices: the devices of the trainings.
        choosing_devices: the devices of the scoring models; empty if unknown, or if the subset is drawn.
        drawn: whether the arm is not, or not only, chosen by scores: it draws anew for every training, or is the full set.
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
        """Pooled standard deviation over trainings on the same subset; NaN with one training each, or if drawn."""
        if self.drawn:
            return math.nan
        spreads = [_std(row) for row in self.by_selection()]
        return math.sqrt(statistics.fmean(spread**2 for spread in spreads))

    @property
    def std_selections(self) -> float:
        """Standard deviation that selecting again adds: that of the subsets' means, less the part due to training again.

        0 if training again explains all of it; NaN with one selection, with one training each, or if drawn.
        """
        rows = self.by_selection()
        return math.sqrt(
            max(_std([statistics.fmean(row) for row in rows]) ** 2 - self.std_trainings**2 / len(rows[0]), 0.0)
        )

    @property
    def worst_class(self) -> float:
        """Accuracy of the worst class."""
        return min(self._measured())

    @property
    def class_spread(self) -> float:
        """Population standard deviation of the class accuracies."""
        return statistics.pstdev(self._measured())

    def by_selection(self) -> list[tuple[float, ...]]:
        """The accuracies of each subset's trainings."""
        each = len(self.accuracies) // self.selections
        return [self.accuracies[start : start + each] for start in range(0, len(self.accuracies), each)]

    def to_json(self) -> dict[str, Any]:
        """The fields and the properties, ready for JSON."""
        derived = ("mean", "std", "std_trainings", "std_selections", "worst_class", "class_spread")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def _measured(self) -> list[float]:
        return [value for value in self.class_accuracy if not math.isnan(value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much more accurate the coreset is than a baseline.

    With several selections, the means of their trainings are compared in pairs (paired t-test): the interval is about the
    method. With one selection, the trainings are two samples (Welch's t-test): the interval is about this coreset alone.

    Attributes:
        baseline: the arm's name.
        mean: accuracy of the coreset minus that of the baseline.
        low, high: its 95 % confidence interval; NaN if there are too few trainings.
        choices: number of selections of the coreset.
    """

    baseline: str
    mean: float
    low: float
    high: float
    choices: int

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When pruning has saved more time than choosing the coreset took.

    Attributes:
        choosing_s: worker-seconds that choosing took.
        saved_s: worker-seconds by which a training on the coreset is shorter than one on the full set (medians).
        trainings: number of trainings on the coreset to break even; None if `saved_s` is within two standard errors.
    """

    choosing_s: float
    saved_s: float
    trainings: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The table, with its test set, model, recipe, hardware and versions. Every arm was trained with the same recipe.

    Attributes:
        test, test_samples: name and size of the test set.
        model, recipe: what was trained on each set.
        budget: `epochs`: as many epochs on every set; `iterations`: as many steps on every set as on the full set.
        environment: versions and hardware.
        class_names: names of the classes, by number.
        arms: the lines, `coreset` first.
        differences: the coreset against each baseline.
        break_even: None unless `full` is among the arms, takes more steps than the coreset and ran on the same device, and
            the cost of choosing is known.
        others: the same under other budgets, where several were asked for.
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
    others: tuple[Evaluation, ...] = ()

    @property
    def by_budget(self) -> dict[Budget, Evaluation]:
        """This table and the others by their budgets."""
        return {table.budget: replace(table, others=()) for table in (self, *self.others)}

    def seeds_for(self, points: float, baseline: str = "random") -> int | None:
        """How many trainings of each subset the interval against a baseline takes, by the deviations observed so far.

        Args:
            points: half-width of the interval, in percentage points.
            baseline: the arm's name.

        Returns:
            2 or more; None with one training or several selections, or beyond 10,000.

        Raises:
            ConfigError: if there is no such arm.
        """
        first, other = self.arms[0], next((arm for arm in self.arms if arm.name == baseline), None)
        if other is None:
            raise ConfigError(
                f"baseline={baseline!r} is not in this evaluation; it has {', '.join(arm.name for arm in self.arms)}."
            )
        if first.selections > 1 or len(first.accuracies) < 2:
            return None
        return seeds_for(first.accuracies, other.accuracies, points / 100)

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for JSON; under several budgets, every table in `by_budget`, too."""
        values = asdict(replace(self, others=()))
        del values["others"]
        several = (
            {"by_budget": {name: table.to_json() for name, table in self.by_budget.items()}} if self.others else {}
        )
        found: dict[str, Any] = without_nan({**values, "arms": [arm.to_json() for arm in self.arms], **several})
        return found


def arm_of(
    name: str,
    results: Sequence[EvalResult],
    class_samples: Sequence[np.ndarray],
    *,
    choosing_s: float | None,
    choosing_devices: tuple[str, ...] = (),
    drawn: bool = False,
) -> Arm:
    """A line of the table from its trainings, in the order of (selection, repeat).

    Args:
        name: name of the arm.
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
        seconds_std=_spread(seconds),
        choosing_s=choosing_s,
        devices=tuple(sorted({result.device for result in results})),
        choosing_devices=choosing_devices,
        drawn=drawn,
    )


def differences_of(arms: Sequence[Arm]) -> tuple[Difference, ...]:
    """The first arm compared with every other one."""
    first, *others = arms
    return tuple(_difference(first, other) for other in others)


def break_even_of(arms: Sequence[Arm]) -> BreakEven | None:
    """Break-even of the first arm against `full`; None if either time is unknown, or their devices differ."""
    coreset, full = arms[0], next((arm for arm in arms if arm.name == "full"), None)
    if full is None or coreset.choosing_s is None or coreset.devices != full.devices:
        return None
    # Seconds of a CPU and of a GPU cannot be added up.
    if coreset.choosing_devices and coreset.choosing_devices != full.devices:
        return None
    saved_s = full.seconds_each - coreset.seconds_each
    error_s = 1.25 * math.sqrt(  # of a median, 1.25 times that of a mean
        sum(arm.seconds_std**2 / len(arm.accuracies) for arm in (coreset, full) if len(arm.accuracies) > 1)
    )
    # A difference within its measurement error would promise savings that may not exist.
    trainings = coreset.choosing_s / saved_s if saved_s > 2 * error_s else None
    return BreakEven(choosing_s=round(coreset.choosing_s, 3), saved_s=round(saved_s, 3), trainings=trainings)


def _difference(first: Arm, other: Arm) -> Difference:
    # Selections are the independent units; trainings on one selection share its subset.
    several = first.selections > 1
    values = [
        [statistics.fmean(row) for row in arm.by_selection()] if several else arm.accuracies for arm in (first, other)
    ]
    low, high = interval(*values, paired=several)
    return Difference(baseline=other.name, mean=first.mean - other.mean, low=low, high=high, choices=first.selections)


def _spread(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values) if len(values) > 1 else math.nan


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
