"""What every kind of training has in common: a task's frame, from its ids to its votes on storage. Needs no torch."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unseen_ray.config.score_columns import StoredScores, stored_scores
from unseen_ray.core.arrays import IdArray, LabelArray
from unseen_ray.core.predictions import Predictions
from unseen_ray.core.tasks import EvalTask, ScoreTask, check_unseen
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.tasks import Job, Progress
from unseen_ray.runs.votes import find_receipt, write_votes
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.vote_buffer import VoteBuffer

if TYPE_CHECKING:
    from unseen_ray.core.samples.population import Population
    from unseen_ray.data.images.planes import Plane
    from unseen_ray.data.sources.registry import Source

__all__ = ["Answering", "TaskRunner"]

_LOOK_EVERY_S = 10.0

Answering = Callable[[IdArray, VoteBuffer], Iterable[EpochStats | Predictions]]
"""Trains on ids and answers for those of the sheet, telling of its epochs on the way."""


@dataclass(slots=True)
class _ReceiptPoll:
    """Looks at once, then every ten seconds, for a task's votes: whoever was given up for dead may still bring them.

    Attributes:
        find: the receipt of the task, if its votes are on storage.
    """

    find: Callable[[], Receipt | None]
    _next: float = 0.0

    def look(self) -> Receipt | None:
        """The receipt, if it is time to look and the votes stand."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + _LOOK_EVERY_S
        return self.find()


@dataclass(slots=True, kw_only=True, eq=False)
class TaskRunner:
    """One process's hold on a run, and how it tells of its tasks.

    Args:
        job: what the tasks share.
        labels_N: labels of all rows of the source.
        plane: its pixels.
        source: opens the source, for a user's own training.
        device: where tasks are done: the model of a GPU, or `cpu`.
    """

    job: Job
    labels_N: LabelArray
    plane: Plane
    source: Callable[[], Source]
    device: str
    population: Population = field(init=False)
    _scores: StoredScores | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.population = self.job.population(self.labels_N)

    @property
    def scores(self) -> StoredScores:
        """What scoring stores; functions that the configuration names are imported where something is scored, and only there."""
        self._scores = self._scores or stored_scores(self.job.config)
        return self._scores

    def score(
        self, task: ScoreTask, answering: Answering, stored: Callable[[], object]
    ) -> Iterator[Progress | Receipt]:
        """Have a task's model trained and its answers scored; the last value is the receipt, given once the votes are on storage.

        Args:
            task: what to do.
            answering: trains and answers.
            stored: is called when the votes are on storage.

        Raises:
            LeakError: if samples would be scored that the model was trained on.
            FitError: if the training diverges, or a user's function answers with something unusable.
        """
        started = time.perf_counter()
        train_ids, ids = task.train.resolve(self.population), task.scored.resolve(self.population)
        check_unseen(task, ids, self.population)
        key, folder = self.job.task_key(task, self.population), Folder(self.job.out)
        find = functools.partial(find_receipt, folder, task.stage, task.index, key)
        if (known := find()) is not None:
            yield known
            return
        yield self.begun(task.name)
        votes = VoteBuffer(task, ids, self.population.labels_of(ids), self.job, self.scores)
        last, lookout = EpochStats(epoch=0, epochs=0), _ReceiptPoll(find)
        for event in answering(train_ids, votes):
            if isinstance(event, EpochStats):
                last = event
                yield self.trained(task, len(train_ids), event)
                if (known := lookout.look()) is not None:
                    stored()
                    yield known
                    return
            else:
                votes.add(event, self.population)
                if votes.due():
                    yield self._event(task.name, doing="score", done=votes.done, total=len(votes.ids_M))
        part = votes.finish()
        accuracy = float((part.pred_M == votes.labels_M).mean())
        receipt = self._receipt(task, len(train_ids), len(ids), accuracy, last, time.perf_counter() - started)
        receipt = write_votes(folder, task.stage, key, part, receipt)
        stored()
        yield receipt

    def begun(self, name: str) -> Progress:
        """That a task has begun."""
        return self._event(name, doing="train", done=0, total=0)

    def trained(self, task: ScoreTask | EvalTask, trained: int, stats: EpochStats) -> Progress:
        """That a model was trained for another epoch, on so many samples."""
        config, workers = self.job.config, self.job.workers_of(task)
        return self._event(
            task.name,
            doing="train",
            done=stats.epoch,
            total=stats.epochs,
            loss=stats.loss,
            accuracy=stats.accuracy,
            images_per_s=stats.images_per_s,
            earlier=stats.trained_s == 0,
            passes=0 if config.fit else config.recipe.passes_after(stats.epoch, trained, workers=workers),
        )

    def _receipt(
        self, task: ScoreTask, trained: int, scored: int, accuracy: float, last: EpochStats, seconds: float
    ) -> Receipt:
        """What to say of finished work; `seconds` are this start's, to which come those of earlier ones."""
        workers = self.job.workers_of(task)
        worker_seconds = round(seconds + last.earlier_s * workers, 3)
        return Receipt(
            index=task.index,
            task=task.name,
            files={},
            trained=trained,
            scored=scored,
            image_passes=0 if self.job.config.fit else self.job.config.recipe.image_passes(trained, workers=workers),
            accuracy=accuracy,
            train_accuracy=last.accuracy,
            seconds=round(seconds + last.earlier_s, 3),
            worker_seconds=worker_seconds,
            gpu_seconds=worker_seconds if self.device != "cpu" else 0.0,
            node=platform.node(),
            device=self.device,
            reused=False,
        )

    def _event(self, name: str, **facts: Any) -> Progress:
        return Progress(task=name, node=platform.node(), device=self.device, **facts)
