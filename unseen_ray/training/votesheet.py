"""A task's votes, filled in batch by batch; what was not asked for is refused."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.population import Population
from unseen_ray.core.scorebook import ScoreFunction
from unseen_ray.core.tasks import ScoreTask, VotePart, check_unseen
from unseen_ray.errors import FitError
from unseen_ray.job import Job

__all__ = ["VoteSheet"]


class VoteSheet:
    """The answers of one model to the samples of its task."""

    def __init__(
        self, task: ScoreTask, ids_M: IdArray, labels_M: IntArray, job: Job, functions: dict[str, ScoreFunction]
    ) -> None:
        self.task, self.ids_M, self.labels_M, self.functions = task, ids_M, labels_M, functions
        self.done = 0
        self._answered = np.zeros(len(ids_M), bool)
        self._said = time.monotonic()
        self._pred = np.empty(len(ids_M), np.int64)
        self._p_top = np.empty(len(ids_M), np.float32)
        self._p_label = np.empty(len(ids_M), np.float32)
        self._scores = {name: np.empty(len(ids_M), np.float32) for name in functions}
        self._probs = np.empty((len(ids_M), job.num_classes), np.float32) if job.keeps_probs() else None

    def due(self, every_s: float = 1.0) -> bool:
        """Whether it is time to report progress again."""
        if time.monotonic() - self._said < every_s:
            return False
        self._said = time.monotonic()
        return True

    def add(self, ids_B: IdArray, log_probs_BC: FloatArray, population: Population) -> None:
        """Score a batch of answers."""
        places = np.searchsorted(self.ids_M, ids_B)
        if places.size and (places.max() >= len(self.ids_M) or not np.array_equal(self.ids_M[places], ids_B)):
            check_unseen(self.task, ids_B, population)
        if self._answered[places].any() or len(np.unique(places)) < len(places):
            raise FitError(
                f"{self.task.name} answered twice for the same sample. Answer once for each of task.unseen_ids."
            )
        self._answered[places] = True
        labels = self.labels_M[places]
        self._pred[places] = log_probs_BC.argmax(axis=1)
        self._p_top[places] = np.exp(log_probs_BC.max(axis=1))
        self._p_label[places] = np.exp(log_probs_BC[np.arange(len(labels)), labels])
        for name, function in self.functions.items():
            self._scores[name][places] = _checked(name, function(log_probs_BC, labels), len(labels))
        if self._probs is not None:
            self._probs[places] = np.exp(log_probs_BC)
        self.done += len(ids_B)

    def finish(self) -> VotePart:
        """The votes, once every sample has its answer."""
        missing = np.flatnonzero(~self._answered)
        if missing.size:
            raise FitError(
                f"{self.task.name} left {missing.size} of {len(self.ids_M)} samples unanswered; "
                f"the first is id {self.ids_M[missing[0]]}. Answer for each of task.unseen_ids."
            )
        return VotePart(
            index=self.task.index,
            ids_M=self.ids_M,
            pred_M=self._pred,
            p_top_M=self._p_top,
            p_label_M=self._p_label,
            scores=self._scores,
            probs_MC=self._probs,
        )


def _checked(name: str, values: Any, size_b: int) -> FloatArray:
    values = np.asarray(values)
    if values.shape != (size_b,):
        raise FitError(
            f"score {name} returned shape {values.shape} for {size_b} samples; it must return one number a sample."
        )
    if not np.isfinite(values).all():
        raise FitError(f"score {name} returned {values[~np.isfinite(values)][0]}; scores must be finite.")
    finite: FloatArray = values.astype(np.float32)
    return finite
