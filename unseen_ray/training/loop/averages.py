"""A moving average of a model's weights, which predicts better than the weights of the last step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]

_PREFIX, _STEPS = "average.", "average_steps"


class WeightAverage:
    """The exponential moving average of all weights and of the statistics of norms.

    The decay of step t, from 1, is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.

    Args:
        model: in training; its weights stay where they are.
        decay: the share of the average that a step keeps.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (NeurIPS 2017).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._steps = torch.zeros((), dtype=torch.int64)
        self._current = {
            name: value
            for name, value in model.state_dict().items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        self._average = {name: value.clone() for name, value in self._current.items()}

    def update(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        steps = int(self._steps)
        with torch.no_grad():
            average: Any = get_ema_multi_avg_fn(min(self._decay, (1 + steps) / (10 + steps)))  # type: ignore[no-untyped-call]
            average(list(self._average.values()), list(self._current.values()), steps)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in place of the weights of the last step, which are put back at the end."""
        weights = {name: value.clone() for name, value in self._current.items()}
        self.put_in_place()
        try:
            yield
        finally:
            self._put(weights)

    def put_in_place(self) -> None:
        """Replace the model's weights by the average."""
        self._put(self._average)

    def tensors(self) -> dict[str, Tensor]:
        """The average, by the names of a checkpoint."""
        return {_STEPS: self._steps, **{_PREFIX + name: value for name, value in self._average.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self._current[name].copy_(value)
