"""What all tasks of a run share in one process, and the parts of a scoring task around its training. Needs no torch."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.score_columns import StoredScores
from unseen_ray.core.tasks import EvalTask, ScoreTask, check_unseen
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Job, Progress
from unseen_ray.runs.votes import find_part, find_receipt, write_part, write_votes
from unseen_ray.training.mapped_ids import ids_of
from unseen_ray.training.vote_buffer import VoteBuffer

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, LabelArray
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.core.samples.population import Population
    from unseen_ray.core.tasks import VotePart
    from unseen_ray.data.images.pixel_store import PixelStore
    from unseen_ray.data.sources.info import Source
    from unseen_ray.training.loop.epochs import EpochStats

__all__ = ["ScoringTask", "TaskRunner"]

_POLL_EVERY_S = 10.0
_REPORT_EVERY_S = 1.0


@dataclass(slots=True, kw_only=True, eq=False)
class TaskRunner:
    """One process's view of a run, and the events that it reports about its tasks.

    Args:
        job: what the tasks share.
        labels_N: labels of all rows of the source.
        pixel_store: its pixels.
        source: opens the source, for a user's own training.
        device: where tasks run: the model of a GPU, or `cpu`.
    """

    job: Job
    labels_N: LabelArray
    pixel_store: PixelStore
    source: Callable[[], Source]
    device: str
    population: Population = field(init=False)

    def __post_init__(self) -> None:
        self.population = self.job.population(self.labels_N)

    @property
    def scores(self) -> StoredScores:
        """What scoring stores. Functions that the configuration names are imported on first use: an evaluation needs none."""
        return self.job.resolved.scores

    def begun(self, name: str) -> Progress:
        """The event that a task has begun."""
        return self._progress(name, doing="train", done=0, total=0)

    def trained(self, task: ScoreTask | EvalTask, samples: int, stats: EpochStats) -> Progress:
        """The event that a model was trained on its `samples` for another epoch."""
        job, workers = self.job, self.job.workers_of(task)
        return self._progress(
            task.name,
            doing="train",
            done=stats.epoch,
            total=stats.epochs,
            loss=stats.loss,
            accuracy=stats.accuracy,
            images_per_s=stats.images_per_s,
            earlier=stats.trained_s == 0,
            passes=0 if job.config.fit else job.recipe_of(task).passes_after(stats.epoch, samples, workers=workers),
        )

    def scored(self, task: ScoreTask, done: int, total: int) -> Progress:
        """The event that a model has scored `done` of its `total` samples."""
        return self._progress(task.name, doing="score", done=done, total=total)

    def _progress(self, name: str, **facts: Any) -> Progress:
        return Progress(task=name, node=platform.node(), device=self.device, **facts)


class ScoringTask:
    """A scoring task in this process: its ids, its votes so far, and where they are written.

    Args:
        runner: the run.
        task: what to do.

    Attributes:
        train_ids: (T,) int64 ids to train on.
        ids_M: (M,) int64 ids to score, strictly rising.
        key: the name of its votes, a digest of all that determines them.
        over_epochs: gives for each score over epochs those of a slice of the ids, whose predictions it has got; None without.

    Raises:
        LeakError: if the task would score samples that its model is trained on.
    """

    def __init__(self, runner: TaskRunner, task: ScoreTask) -> None:
        self.runner, self.task = runner, task
        self._started = time.perf_counter()
        most = runner.job.limits.rows_in_memory
        self.train_ids, self.ids_M = (ids_of(each, runner.population, most) for each in (task.train, task.scored))
        check_unseen(task, self.ids_M, runner.population)
        self.key = runner.job.task_key(task, runner.population)
        self.over_epochs: Callable[[slice], Mapping[str, FloatArray]] | None = None
        self._folder = runner.job.folder
        self._files: dict[int, Mapping[str, str]] = {}  # of the parts
        self._right = 0
        self._poll = _Interval(_POLL_EVERY_S, at_once=True)
        self._report = _Interval(_REPORT_EVERY_S)

    @cached_property
    def votes(self) -> VoteBuffer:
        """The votes so far. Made on first use: a task whose votes are already on storage imports no score function."""
        return VoteBuffer(self.task, self.ids_M, self.runner.population, self.runner.job, self.runner.scores)

    def left(self) -> Iterator[IdArray]:
        """The ids to predict, part by part: those of a long task whose votes are on storage already are left out."""
        for number, rows in enumerate(self.votes.ranges):
            if not self._is_stored(number):
                yield self.ids_M[rows]

    def _is_stored(self, number: int) -> bool:
        """Whether a part's votes were stored by an earlier start, or by a worker that was taken for dead."""
        if number == len(self.votes.ranges) - 1:  # is written last: the task would be done
            return False
        found = find_part(self._folder, self.task.stage, self.task.index, number, self.key)
        if found is None or not np.array_equal(found[0], self.ids_M[self.votes.ranges[number]]):
            return False
        self.votes.skip(number)
        self._count(number, *found)
        return True

    def _count(self, number: int, ids_M: IdArray, pred_M: IntArray, files: Mapping[str, str]) -> None:
        self._right += int((pred_M == self.runner.population.labels_of(ids_M)).sum())
        self._files[number] = files

    def stored_receipt(self) -> Receipt | None:
        """The task's receipt, if its votes are on storage."""
        return find_receipt(self._folder, self.task.stage, self.task.index, self.key)

    def polled_receipt(self) -> Receipt | None:
        """The same, looked up at most every ten seconds.

        A worker that lost its driver, but not the storage, may still write the votes of a task that was started again.
        """
        return self.stored_receipt() if self._poll.is_over() else None

    def add(self, predictions: Predictions) -> Iterator[Progress]:
        """Score a batch of predictions, write the parts that it completes, but for the last one; yields an event once a second.

        Raises:
            LeakError, FitError: as `VoteBuffer.add`.
        """
        for number in self.votes.add(predictions):
            if number < len(self.votes.ranges) - 1:
                part = self._part(number)
                files = write_part(self._folder, self.task.stage, self.key, number, part)
                self._count(number, part.ids_M, part.pred_M, files)
        if self._report.is_over():
            yield self.runner.scored(self.task, self.votes.done, len(self.ids_M))

    def _part(self, number: int, features_ND: FloatArray | None = None) -> VotePart:
        over_epochs = {} if self.over_epochs is None else self.over_epochs(self.votes.ranges[number])
        return self.votes.take(number, over_epochs, features_ND)

    def write(self, stats: EpochStats | None = None, *, features_ND: FloatArray | None = None) -> Receipt:
        """Write the votes, or their last part, and the receipt, which is returned.

        Args:
            stats: of the last epoch; None where the user's own fit trains.
            features_ND: (N, D) features of all samples, where this model's are kept.

        Raises:
            FitError: if a sample has no prediction, or a score is not finite.
        """
        self.votes.check_complete()
        last = len(self.votes.ranges) - 1
        part = self._part(last, features_ND)
        self._count(last, part.ids_M, part.pred_M, {})
        receipt = self._receipt(self._right / len(self.ids_M), stats)
        earlier = {file: digest for number in range(last) for file, digest in self._files[number].items()}
        return write_votes(self._folder, self.task.stage, self.key, part, receipt, earlier)

    def _receipt(self, accuracy: float, stats: EpochStats | None) -> Receipt:
        runner, trained = self.runner, len(self.train_ids)
        job, workers = runner.job, runner.job.workers_of(self.task)
        epoch = job.common_epoch(self.task, runner.population) or trained
        # A fit that was resumed also took the seconds of its earlier starts, on all of its workers.
        seconds, earlier_s = time.perf_counter() - self._started, 0.0 if stats is None else stats.earlier_s
        shared_s = 0.0 if stats is None else stats.shared_s
        worker_seconds = job.worker_seconds(self.task, seconds, earlier_s, shared_s)
        return Receipt(
            index=self.task.index,
            task=self.task.name,
            files={},
            trained=trained,
            scored=len(self.ids_M),
            image_passes=0 if job.config.fit else job.config.recipe.image_passes(epoch, workers=workers),
            accuracy=accuracy,
            train_accuracy=float("nan") if stats is None else stats.accuracy,
            seconds=round(seconds + earlier_s, 3),
            worker_seconds=worker_seconds,
            gpu_seconds=worker_seconds if runner.device != "cpu" else 0.0,
            node=platform.node(),
            device=runner.device,
            reused=False,
        )


class _Interval:
    """Over at most once in `every_s` seconds; with `at_once` also at the first call."""

    def __init__(self, every_s: float, *, at_once: bool = False) -> None:
        self._every_s = every_s
        self._next = time.monotonic() + (0.0 if at_once else every_s)

    def is_over(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True
