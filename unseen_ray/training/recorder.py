"""Scores over epochs while a model trains: after each scored epoch it answers for the samples that it may score."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from unseen_ray.core.answers import Answers
from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.trajectory import EpochView, Places, Reducer, scored_epochs
from unseen_ray.errors import FitError
from unseen_ray.recipe import Recipe
from unseen_ray.scoring import StoredScores
from unseen_ray.training.feed import Feed
from unseen_ray.training.predict import predict

__all__ = ["Recorder"]

_PREFIX = "over_epochs."


class Recorder:
    """Holds a few numbers a sample, and for scores that compare epochs the answers of the one before, in half precision.

    These answers are not in checkpoints: the model of a checkpoint gives them again, to the same bits on a CPU.

    Args:
        model: as it is trained, on the feed's device.
        feed: batches.
        ids_M: (M,) what to answer for, strictly rising.
        labels_M: (M,) their classes.
        recipe: with `precision` resolved.
        scores: of which those over epochs are recorded.
        epochs: how many the training has.
    """

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        ids_M: IdArray,
        labels_M: IntArray,
        recipe: Recipe,
        *,
        scores: StoredScores,
        epochs: int,
    ) -> None:
        self._model, self._feed, self._ids, self._labels, self._recipe = model, feed, ids_M, labels_M, recipe
        self._scores = scores
        self.epochs = scored_epochs(epochs, scores.every)
        self._reducers: dict[str, Reducer] = {
            name: trajectory.reduce(len(ids_M), self.epochs) for name, trajectory in scores.over_epochs.items()
        }
        self._compares = any(trajectory.compares for trajectory in scores.over_epochs.values())
        self._before: Tensor | None = None
        self._done = 0

    def record(self, epoch: int) -> None:
        """Answer for the samples after an epoch that is scored and not the last, whose answers `add` is given."""
        if epoch in self.epochs[:-1]:
            for answers in predict(self._model, self._feed, self._ids, self._recipe):
                self._add(answers, self.epochs.index(epoch))
            self._done = self.epochs.index(epoch) + 1

    def add(self, answers: Answers) -> None:
        """Take answers of the trained model."""
        self._add(answers, len(self.epochs) - 1)

    def columns(self) -> dict[str, FloatArray]:
        """(M,) float32 for each score over epochs, once the trained model has answered for all."""
        return {name: reducer.result().astype(np.float32) for name, reducer in self._reducers.items()}

    def may_stop(self, epoch: int) -> bool:
        """Whether a checkpoint after this epoch has all that is needed to go on: the model has answered, and is not the last one."""
        return epoch in self.epochs[:-1]

    def key(self) -> str:
        """A digest of what is recorded."""
        said = [*self._scores.named, str(self.epochs)]
        return hashlib.sha256("\n".join(said).encode() + self._ids.tobytes()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name."""
        return {
            f"{_PREFIX}{name}.{field}": torch.from_numpy(values)
            for name, reducer in self._reducers.items()
            for field, values in reducer.state.items()
        }

    def fits(self, tensors: Mapping[str, Tensor], epoch: int) -> bool:
        """Whether `restore` can go on from these tensors."""
        saved, own = _of_recorder(tensors), self.tensors()
        return self.may_stop(epoch) and {n: (v.dtype, v.shape) for n, v in saved.items()} == {
            n: (v.dtype, v.shape) for n, v in own.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        """Go on after `epoch` from what `tensors` gave; the model stands there already."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self._done = self.epochs.index(epoch) + 1
        if self._compares:
            for answers in predict(self._model, self._feed, self._ids, self._recipe):
                places = self._places(answers)
                self._keep(EpochView(answers.log_probs_BC, self._labels[places]), places)

    def _add(self, answers: Answers, index: int) -> None:
        if index > self._done:
            raise FitError(f"epoch {self.epochs[index]} is scored before epoch {self.epochs[self._done]} was.")
        places = self._places(answers)
        before = None if self._before is None or index == 0 else self._before[places].float().numpy()
        view = EpochView(answers.log_probs_BC, self._labels[places], before)
        for name, reducer in self._reducers.items():
            reducer.add(places, self._scores.over_epochs[name].series(view), index)
        if self._compares:
            self._keep(view, places)

    def _keep(self, view: EpochView, places: Places) -> None:
        if self._before is None:
            self._before = torch.empty((len(self._ids), view.log_probs_BC.shape[1]), dtype=torch.float16)
        self._before[places] = torch.from_numpy(view.log_floored_BC)

    def _places(self, answers: Answers) -> slice:
        """Where the samples of a batch stand; `predict` gives them in their order."""
        start = int(np.searchsorted(self._ids, answers.ids_B[0]))
        return slice(start, start + len(answers.ids_B))


def _of_recorder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith(_PREFIX)}
