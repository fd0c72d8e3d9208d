"""Scores over the epochs of a training, reduced epoch by epoch, so that memory does not grow with the number of epochs.

Shapes: M samples that a model scores, B samples of a batch, C classes, T scored epochs, J epochs of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray
from unseen_ray.core.predictions import EpochView
from unseen_ray.errors import ConfigError

__all__ = [
    "ChangeSpread",
    "EpochView",
    "Forgets",
    "Mean",
    "Places",
    "Reducer",
    "Spread",
    "Trajectory",
    "TwoVariances",
    "scored_epochs",
]

Places = NDArray[np.intp] | slice


class Reducer(Protocol):
    """Reduces one number per epoch and sample to one score per sample.

    Attributes:
        state: arrays with one row per sample; a checkpoint needs nothing else.
    """

    state: dict[str, NDArray[Any]]

    def add(self, places: Places, values_B: FloatArray, index: int) -> None:
        """Add the values of some samples after the scored epoch `index`, counted from 0."""
        ...

    def result(self) -> FloatArray:
        """(M,) scores, after all epochs were added; higher is kept first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A score over epochs.

    Attributes:
        series: (B,) values after each scored epoch, from an `EpochView`.
        reduce: makes the `Reducer` from the number of samples and the scored epochs, counted from 1; ConfigError if
            there are too few epochs.
        compares: whether the series reads `before_BC`, the only N x C array that is kept.
    """

    series: Callable[[EpochView], FloatArray]
    reduce: Callable[[int, Sequence[int]], Reducer]
    compares: bool = False


def scored_epochs(epochs: int, every: int) -> tuple[int, ...]:
    """The epochs after which a model scores, counted from 1: every `every`-th, and the last.

    >>> scored_epochs(7, 3)
    (3, 6, 7)
    """
    return (*range(every, epochs, every), epochs)


class Mean:
    """The mean over epochs.

    Args:
        samples: M.
        numbers: (T,) of the scored epochs.
        epochs: which of them count: the first `epochs`, those of a list, or all for None.
        total: return the sum instead.
    """

    def __init__(
        self, samples: int, numbers: Sequence[int], *, epochs: int | Sequence[int] | None = None, total: bool = False
    ) -> None:
        self._counted = _counted(numbers, epochs)
        self._total = total
        self.state: dict[str, NDArray[Any]] = {"sum": np.zeros(samples)}

    def add(self, places: Places, values_B: FloatArray, index: int) -> None:
        """See `Reducer`."""
        if index in self._counted:
            self.state["sum"][places] += values_B

    def result(self) -> FloatArray:
        """See `Reducer`."""
        return self.state["sum"] / (1 if self._total else len(self._counted))


class Forgets:
    """How often a sample is predicted right after one scored epoch and wrong after the next.

    Args:
        samples: M.
        numbers: (T,) of the scored epochs.
        never_learned: score of samples that were never right; None for the number of epochs.
    """

    def __init__(self, samples: int, numbers: Sequence[int], *, never_learned: float | None = None) -> None:
        _window(2, len(numbers), least=2)
        self._never = float(len(numbers) if never_learned is None else never_learned)
        self.state: dict[str, NDArray[Any]] = {
            "last": np.zeros(samples, bool),
            "ever": np.zeros(samples, bool),
            "count": np.zeros(samples, np.int32),
        }

    def add(self, places: Places, values_B: FloatArray, index: int) -> None:
        """See `Reducer`; values are whether a sample is right."""
        right_B = values_B.astype(bool)
        self.state["count"][places] += self.state["last"][places] & ~right_B
        self.state["last"][places] = right_B
        self.state["ever"][places] |= right_B

    def result(self) -> FloatArray:
        """See `Reducer`."""
        return np.where(self.state["ever"], self.state["count"], self._never).astype(np.float64)


class Spread:
    """Ten times the sample standard deviation within a window, averaged over all windows.

    Args:
        samples: M.
        numbers: (T,) of the scored epochs.
        window: J; capped at the number of epochs.
        epochs: how many of the first epochs count; None for all.
        weighted: multiply the deviation by one minus the mean of the window.
        last_window: whether the window that ends with the last epoch counts, even if it is not the only one.
    """

    def __init__(
        self,
        samples: int,
        numbers: Sequence[int],
        *,
        window: int,
        epochs: int | None = None,
        weighted: bool = False,
        last_window: bool = True,
    ) -> None:
        counted = len(_counted(numbers, epochs))
        self._window, self._weighted = _window(window, counted, least=2), weighted
        self._counted = counted if last_window or counted == self._window else counted - 1
        self.state: dict[str, NDArray[Any]] = {
            "ring": np.zeros((samples, self._window), np.float32),
            "sum": np.zeros(samples),
        }

    def add(self, places: Places, values_B: FloatArray, index: int) -> None:
        """See `Reducer`."""
        if index >= self._counted:
            return
        self.state["ring"][places, index % self._window] = values_B
        if index >= self._window - 1:
            ring_BJ = self.state["ring"][places].astype(np.float64)
            mean_B = ring_BJ.mean(axis=1)
            spread_B = 10 * np.sqrt(np.square(ring_BJ - mean_B[:, None]).sum(axis=1) / (self._window - 1))
            self.state["sum"][places] += spread_B * (1 - mean_B) if self._weighted else spread_B

    def result(self) -> FloatArray:
        """See `Reducer`."""
        return self.state["sum"] / (self._counted - self._window + 1)


class ChangeSpread:
    """Moving average over windows of the norm of the J - 1 changes within a window, less their mean.

    Args:
        samples: M.
        numbers: (T,) of the scored epochs.
        window: J; capped at the number of epochs.
        epochs: how many of the first epochs count; None for all.
        decay: weight of the newest window; earlier ones are multiplied by 1 - decay.
    """

    def __init__(self, samples: int, numbers: Sequence[int], *, window: int, epochs: int | None, decay: float) -> None:
        self._counted = len(_counted(numbers, epochs))
        self._window, self._decay = _window(window, self._counted, least=3), decay
        self.state: dict[str, NDArray[Any]] = {
            "ring": np.zeros((samples, self._window - 1), np.float32),
            "average": np.zeros(samples),
        }

    def add(self, places: Places, values_B: FloatArray, index: int) -> None:
        """See `Reducer`; the first epoch has no change."""
        if index == 0 or index >= self._counted:
            return
        self.state["ring"][places, (index - 1) % (self._window - 1)] = values_B
        if index >= self._window - 1:
            ring_BJ = self.state["ring"][places].astype(np.float64)
            length_B = np.sqrt(np.square(ring_BJ - ring_BJ.mean(axis=1, keepdims=True)).sum(axis=1))
            before_B = self.state["average"][places]
            self.state["average"][places] = (1 - self._decay) * before_B + self._decay * length_B

    def result(self) -> FloatArray:
        """See `Reducer`."""
        return self.state["average"]


class TwoVariances:
    """The sample variance within the first window plus that within a later one.

    Args:
        samples: M.
        numbers: (T,) of the scored epochs.
        window: epochs of each window; capped at half of them.
        late: the epoch with which the later window begins; None for the middle.
    """

    def __init__(self, samples: int, numbers: Sequence[int], *, window: int, late: int | None = None) -> None:
        self._window = _window(window, len(numbers) // 2, least=2, of="twice ")
        first = len(numbers) // 2 if late is None else sum(number < late for number in numbers)
        if not self._window <= first <= len(numbers) - self._window:
            raise ConfigError(
                f"score option late={late}: no {self._window} scored epochs from there on are after the first {self._window}. "
                f"Models score after epochs {', '.join(map(str, numbers[:3]))} to {numbers[-1]}. Name another one, or lower window."
            )
        self._firsts = {"early": 0, "late": first}
        self.state: dict[str, NDArray[Any]] = {
            f"{name}_{what}": np.zeros(samples) for name in self._firsts for what in ("mean", "squares")
        }

    def add(self, places: Places, values_B: FloatArray, index: int) -> None:
        """See `Reducer`."""
        for name, first in self._firsts.items():
            if first <= index < first + self._window:
                mean, squares = self.state[f"{name}_mean"], self.state[f"{name}_squares"]
                steps_B = values_B - mean[places]
                mean[places] += steps_B / (index - first + 1)
                squares[places] += steps_B * (values_B - mean[places])

    def result(self) -> FloatArray:
        """See `Reducer`."""
        variances_M: FloatArray = (self.state["early_squares"] + self.state["late_squares"]) / (self._window - 1)
        return variances_M


def _counted(numbers: Sequence[int], epochs: int | Sequence[int] | None) -> list[int]:
    """Positions in `numbers` of the epochs that count."""
    if epochs is None:
        return list(range(len(numbers)))
    if isinstance(epochs, int):
        counted = [index for index, number in enumerate(numbers) if number <= epochs]
        missing: object = None if counted else epochs
    else:
        counted = [index for index, number in enumerate(numbers) if number in set(epochs)]
        missing = next((number for number in epochs if number not in numbers), None)
    if missing is not None:
        raise ConfigError(
            f"score option epochs={epochs!r} asks for epoch {missing}, but models score after epochs "
            f"{', '.join(map(str, numbers[:3]))} to {numbers[-1]}. Name these, or set score_every: 1."
        )
    return counted


def _window(window: int, epochs: int, *, least: int, of: str = "") -> int:
    if epochs < least:
        raise ConfigError(
            f"a score over windows of epochs needs {of}{least} scored epochs, but there {'is' if epochs == 1 else 'are'} {of}{epochs}. "
            "Raise recipe.epochs, or lower score_every."
        )
    return min(window, epochs)
