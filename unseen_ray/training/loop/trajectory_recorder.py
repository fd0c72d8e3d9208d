"""Scores over epochs while a model trains: after each scored epoch it answers for the samples that it may score."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unseen_ray.core.trajectory import EpochView, Places, Reducer, Trajectory, scored_epochs
from unseen_ray.errors import ConfigError, FitError
from unseen_ray.training.loop.predict import predict

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.config.score_columns import StoredScores
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.training.loop.batches import BatchLoader

__all__ = ["TrajectoryRecorder"]

logger = logging.getLogger(__name__)

_PREFIX = "over_epochs."
_BEFORE = _PREFIX + "before"
_CARRIED = 64 << 20  # bytes of answers that a checkpoint carries


class TrajectoryRecorder:
    """Holds a few numbers a sample, and for scores that compare epochs the answers of the one before, in half precision.

    Where these answers are many they are not in checkpoints, which are then written after scored epochs alone: the model of such a
    checkpoint gives them again, to the same bits on a CPU. Scores that nobody asks for and the epochs do not suffice for are left out.

    Args:
        model: as it is trained, on the loader's device.
        loader: batches.
        ids_M: (M,) what to answer for, strictly rising.
        labels_M: (M,) their classes.
        recipe: with `precision` resolved.
        scores: of which those over epochs are recorded.
        epochs: how many the training has.
        least_epochs: how many the shortest training of the stage has, so that all leave out the same.
        num_classes: C.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: BatchLoader,
        ids_M: IdArray,
        labels_M: IntArray,
        recipe: Recipe,
        *,
        scores: StoredScores,
        epochs: int,
        least_epochs: int,
        num_classes: int,
    ) -> None:
        self._model, self._feed, self._ids, self._labels, self._recipe = model, loader, ids_M, labels_M, recipe
        self._scores = scores
        self.epochs = scored_epochs(epochs, scores.every)
        self._trajectories = sufficient(scores, scored_epochs(least_epochs, scores.every))
        self._reducers: dict[str, Reducer] = {
            name: trajectory.reduce(len(ids_M), self.epochs) for name, trajectory in self._trajectories.items()
        }
        compares = any(trajectory.compares for trajectory in self._trajectories.values())
        self._before = torch.zeros((len(ids_M), num_classes), dtype=torch.float16) if compares else None
        self._carried = self._before is not None and self._before.nbytes <= _CARRIED
        self._done = 0

    def record(self, epoch: int) -> None:
        """Answer for the samples after an epoch that is scored and not the last, whose answers `add` is given."""
        if epoch in self.epochs[:-1]:
            for answers in self._answers():
                self._add(answers, self.epochs.index(epoch))
            self._done = self.epochs.index(epoch) + 1

    def add(self, answers: Predictions) -> None:
        """Take answers of the trained model."""
        self._add(answers, len(self.epochs) - 1)

    def columns(self) -> dict[str, FloatArray]:
        """(M,) float32 for each score over epochs, once the trained model has answered for all."""
        return {name: reducer.result().astype(np.float32) for name, reducer in self._reducers.items()}

    def may_stop(self, epoch: int) -> bool:
        """Whether a checkpoint after this epoch has all that is needed to go on."""
        return self._before is None or self._carried or epoch in self.epochs[:-1]

    def may_stop_within(self) -> bool:
        """Whether a checkpoint within an epoch, whose model is no longer that of the epoch before, has all that is needed."""
        return self._before is None or self._carried

    def key(self) -> str:
        """A digest of what is recorded."""
        said = [*self._scores.named, str(self.epochs)]
        return hashlib.sha256("\n".join(said).encode() + self._ids.tobytes()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name."""
        kept = {
            f"{_PREFIX}{name}.{field}": torch.from_numpy(values)
            for name, reducer in self._reducers.items()
            for field, values in reducer.state.items()
        }
        return {**kept, _BEFORE: self._before} if self._before is not None and self._carried else kept

    def fits(self, tensors: Mapping[str, Tensor], epoch: int) -> bool:
        """Whether `restore` can go on from these tensors."""
        saved = {name: value for name, value in tensors.items() if name.startswith(_PREFIX)}
        return self.may_stop(epoch) and _kinds(saved) == _kinds(self.tensors())

    def restore(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        """Go on after `epoch` from what `tensors` gave; the model stands there already."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self._done = sum(number <= epoch for number in self.epochs[:-1])
        if self._before is not None and not self._carried:
            for answers in self._answers():
                places = self._places(answers)
                self._keep(EpochView(answers.log_probs_BC, self._labels[places]), places)

    def _answers(self) -> Iterator[Predictions]:
        return predict(self._model, self._feed, self._ids, self._recipe, between_epochs=True)

    def _add(self, answers: Predictions, index: int) -> None:
        if index > self._done:
            raise FitError(f"epoch {self.epochs[index]} is scored before epoch {self.epochs[self._done]} was.")
        places = self._places(answers)
        before = None if self._before is None or index == 0 else self._before[places].float().numpy()
        view = EpochView(answers.log_probs_BC, self._labels[places], before)
        for name, reducer in self._reducers.items():
            values_B = np.asarray(self._trajectories[name].series(view))
            if values_B.shape != answers.ids_B.shape:
                raise FitError(
                    f"score {name} took {values_B.shape} of {len(answers.ids_B)} samples; its series must return one number a sample."
                )
            reducer.add(places, values_B, index)
        if self._before is not None:
            self._keep(view, places)

    def _keep(self, view: EpochView, places: Places) -> None:
        assert self._before is not None
        self._before[places] = torch.from_numpy(view.log_floored_BC)

    def _places(self, answers: Predictions) -> slice:
        """Where the samples of a batch stand; `predict` gives them in their order."""
        start = int(np.searchsorted(self._ids, answers.ids_B[0]))
        return slice(start, start + len(answers.ids_B))


def sufficient(scores: StoredScores, numbers: Sequence[int]) -> dict[str, Trajectory]:
    """The scores over epochs that these scored epochs suffice for.

    Raises:
        ConfigError: if they do not suffice for one that somebody asks for.
    """
    found: dict[str, Trajectory] = {}
    for name, trajectory in scores.over_epochs.items():
        try:
            trajectory.reduce(0, numbers)
        except ConfigError as error:
            if name in scores.asked:
                raise
            logger.info("score %s is left out: %s", name, error)
            continue
        found[name] = trajectory
    return found


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (value.dtype, value.shape) for name, value in tensors.items()}
