"""Scores over epochs while a model trains: after each scored epoch it predicts the samples that it scores."""

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
_CARRIED = 64 << 20  # the most bytes of predictions that a checkpoint contains


class TrajectoryRecorder:
    """Holds a few numbers per sample and, for scores that compare epochs, the previous predictions in half precision.

    Large predictions are not stored in checkpoints. Checkpoints are then written only after scored epochs, whose model gives the same
    predictions again (to the bit on a CPU). Scores that are not requested and need more epochs than there are, are left out.

    Args:
        model: the model in training, on the loader's device.
        loader: loads the batches.
        ids_M: (M,) ids to predict, strictly increasing.
        labels_M: (M,) their classes.
        recipe: the recipe, with `precision` resolved.
        scores: the run's scores; those over epochs are recorded.
        epochs: number of epochs of the training.
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
        num_classes: int,
    ) -> None:
        self._model, self._loader, self._ids, self._labels, self._recipe = model, loader, ids_M, labels_M, recipe
        self._scores = scores
        self.epochs = scored_epochs(epochs, scores.every)
        self._trajectories = sufficient(scores, self.epochs)
        self._reducers: dict[str, Reducer] = {
            name: trajectory.reduce(len(ids_M), self.epochs) for name, trajectory in self._trajectories.items()
        }
        compares = any(trajectory.compares for trajectory in self._trajectories.values())
        self._before = torch.zeros((len(ids_M), num_classes), dtype=torch.float16) if compares else None
        self._carried = self._before is not None and self._before.nbytes <= _CARRIED
        self._done = 0

    def record(self, epoch: int) -> None:
        """Predict the samples after a scored epoch, except for the last one, whose predictions `add` takes."""
        if epoch in self.epochs[:-1]:
            for predictions in self._predict():
                self._add(predictions, self.epochs.index(epoch))
            self._done = self.epochs.index(epoch) + 1

    def add(self, predictions: Predictions) -> None:
        """Add predictions of the trained model."""
        self._add(predictions, len(self.epochs) - 1)

    def columns(self, rows: slice = slice(None)) -> dict[str, FloatArray]:
        """(M,) float32 for each score over epochs, or of some rows, after the trained model's predictions of them were added."""
        return {name: reducer.result()[rows].astype(np.float32) for name, reducer in self._reducers.items()}

    def may_stop(self, epoch: int) -> bool:
        """Whether a checkpoint after this epoch has all that is needed to resume."""
        return self._before is None or self._carried or epoch in self.epochs[:-1]

    def may_stop_within(self) -> bool:
        """Whether a checkpoint within an epoch, whose model cannot repeat the previous predictions, has all that is needed."""
        return self._before is None or self._carried

    def key(self) -> str:
        """A digest of what is recorded."""
        lines = [*self._scores.named, str(self.epochs)]
        return hashlib.sha256("\n".join(lines).encode() + self._ids.tobytes()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint, by name."""
        kept = {
            f"{_PREFIX}{name}.{field}": torch.from_numpy(values)
            for name, reducer in self._reducers.items()
            for field, values in reducer.state.items()
        }
        return {**kept, _BEFORE: self._before} if self._before is not None and self._carried else kept

    def fits(self, tensors: Mapping[str, Tensor], epoch: int) -> bool:
        """Whether `restore` can resume from these tensors."""
        saved = {name: value for name, value in tensors.items() if name.startswith(_PREFIX)}
        return self.may_stop(epoch) and _kinds(saved) == _kinds(self.tensors())

    def restore(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        """Resume after `epoch` from the result of `tensors`; the model must already be restored."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self._done = sum(number <= epoch for number in self.epochs[:-1])
        if self._before is not None and not self._carried:  # the checkpoint's model repeats what was too large to store
            for predictions in self._predict():
                places = self._places(predictions)
                self._keep(EpochView(predictions.log_probs_BC, self._labels[places]), places)

    def _predict(self) -> Iterator[Predictions]:
        return predict(self._model, self._loader, self._ids, self._recipe, between_epochs=True)

    def _add(self, predictions: Predictions, index: int) -> None:
        if index > self._done:
            raise FitError(f"epoch {self.epochs[index]} is scored before epoch {self.epochs[self._done]} was.")
        places = self._places(predictions)
        before = None if self._before is None or index == 0 else self._before[places].float().numpy()
        view = EpochView(predictions.log_probs_BC, self._labels[places], before, exact=self._scores.exact)
        for name, reducer in self._reducers.items():
            values_B = np.asarray(self._trajectories[name].series(view))
            if values_B.shape != predictions.ids_B.shape:
                raise FitError(
                    f"score {name} returned {values_B.shape} for {len(predictions.ids_B)} samples; its series must return one number each."
                )
            reducer.add(places, values_B, index)
        if self._before is not None:
            self._keep(view, places)

    def _keep(self, view: EpochView, places: Places) -> None:
        assert self._before is not None
        self._before[places] = torch.from_numpy(view.log_floored_BC)

    def _places(self, predictions: Predictions) -> slice:
        """The positions of a batch in `ids_M`; `predict` keeps their order."""
        start = int(np.searchsorted(self._ids, predictions.ids_B[0]))
        return slice(start, start + len(predictions.ids_B))


def sufficient(scores: StoredScores, numbers: Sequence[int]) -> dict[str, Trajectory]:
    """The scores over epochs for which there are enough scored epochs.

    Raises:
        ConfigError: if there are too few for a requested score.
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
