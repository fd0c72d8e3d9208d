"""The work of one task where a model of ours trains: train, predict, score, measure. Used by every executor."""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unseen_ray.config.models import model_builder
from unseen_ray.core.seeds import digest_ids, fit_seed, torch_seed_for
from unseen_ray.data.images.loading import load_plane
from unseen_ray.data.sources.registry import open_source
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import name_of, plug_of
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Progress
from unseen_ray.storage.filesystem import Folder, is_uri
from unseen_ray.training.hardware import check_precision, numerics, seed_generators
from unseen_ray.training.initial_weights import start_from
from unseen_ray.training.loop.batches import BatchLoader, Pixels, Share, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.fit import FitPlan, finished_fit, fit
from unseen_ray.training.loop.predict import predict
from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder
from unseen_ray.training.vote_buffer import FeatureBuffer, VoteBuffer

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.data.images.planes import Plane
    from unseen_ray.training.task_runner import TaskRunner

__all__ = ["ModelTask", "TestSet", "build_model", "open_test"]


@dataclass(frozen=True, slots=True, eq=False)
class TestSet:
    """What `evaluate` measures on: ids of a plane, and their classes."""

    plane: Plane
    ids_M: IdArray
    labels_M: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """A model about to be trained, with all that it takes."""

    model: nn.Module
    feed: BatchLoader
    plan: FitPlan
    checkpoints: Checkpoints

    def train(self, recorder: TrajectoryRecorder | None = None) -> Iterator[EpochStats]:
        """The training, or what is left of it; see `fit.fit`."""
        return fit(self.model, self.feed, self.plan, self.checkpoints, recorder)

    def fetch(self) -> EpochStats:
        """The model as other workers have trained it together.

        Raises:
            StorageError: if what they left is not on storage.
        """
        return finished_fit(self.model, self.feed, self.plan, self.checkpoints)


@dataclass(slots=True, kw_only=True, eq=False)
class ModelTask:
    """Does any task of a run on one device.

    Args:
        desk: the run.
        device: where to train.
    """

    runner: TaskRunner
    device: torch.device
    _pixels: list[Pixels] = field(init=False, default_factory=list)

    def score(self, task: ScoreTask) -> Iterator[Progress | Receipt]:
        """Train the task's model and score what it may; see `TaskRunner.score`."""
        checkpoints = self._checkpoints(task)
        yield from self.runner.score(
            task, lambda train_ids, votes: self._answers(task, train_ids, checkpoints, votes), checkpoints.clear
        )

    def evaluate(self, task: EvalTask, test: TestSet) -> Iterator[Progress | EvalResult]:
        """Train on the task's subset and measure on the test set after the last epoch."""
        started = time.perf_counter()
        job = self.runner.job
        yield self.runner.begun(task.name)
        ids, recipe = task.train.resolve(self.runner.population), job.config.recipe
        right = np.zeros(len(test.ids_M), bool)
        stats = EpochStats(epoch=0, epochs=0)
        with self._numerics():
            training = self._fit(ids, task, Share(), self._checkpoints(task))
            for stats in self._train(training, task):
                yield self.runner.trained(task, len(ids), stats)
            feed = BatchLoader(self._held(test.plane), training.feed.norm)
            done = 0
            for answers in predict(training.model, feed, test.ids_M, recipe):
                stop = done + len(answers.ids_B)
                right[done:stop] = answers.log_probs_BC.argmax(axis=1) == test.labels_M[done:stop]
                done = stop
        present = np.bincount(test.labels_M, minlength=job.num_classes)
        correct = np.bincount(test.labels_M[right], minlength=job.num_classes)
        seconds = time.perf_counter() - started
        yield EvalResult(
            task=task.name,
            arm=task.arm,
            selection=task.selection,
            repeat=task.repeat,
            trained=len(ids),
            accuracy=float(right.mean()),
            class_accuracy=tuple(float(c / n) if n else math.nan for c, n in zip(correct, present, strict=True)),
            seconds=round(seconds + stats.earlier_s, 3),
            worker_seconds=round(seconds + stats.earlier_s * job.workers_of(task), 3),
            node=platform.node(),
            device=self.runner.device,
        )
        training.checkpoints.clear()

    def train_share(self, task: ScoreTask | EvalTask, share: Share) -> Iterator[Progress]:
        """This worker's part of a fit that several do together; the model is in its last checkpoint then."""
        with self._numerics():
            ids = task.train.resolve(self.runner.population)
            yield self.runner.begun(task.name)
            training = self._fit(ids, task, share, self._checkpoints(task))
            for stats in training.train():
                yield self.runner.trained(task, len(ids), stats)
            training.checkpoints.check_written()

    def _answers(
        self, task: ScoreTask, train_ids: IdArray, checkpoints: Checkpoints, votes: VoteBuffer
    ) -> Iterator[EpochStats | Predictions]:
        runner = self.runner
        with self._numerics():
            training = self._fit(train_ids, task, Share(), checkpoints)
            recorder = self._recorder(task, training, votes) if runner.scores.over_epochs else None
            yield from self._train(training, task, recorder)
            sheet = FeatureBuffer(runner.population.ids_N) if runner.job.keeps_features(task) else None
            for answers in self._predict(training, votes.ids_M, sheet):
                if recorder is not None:
                    recorder.add(answers)
                yield answers
            if recorder is not None:
                votes.over_epochs = recorder.columns()
            if sheet is not None:  # the rest by the same model, so that all lie in one space; it scores none of them
                for _ in self._predict(training, np.setdiff1d(train_ids, votes.ids_M, assume_unique=True), sheet):
                    pass
                votes.features_ND = sheet.finish()

    def _predict(self, training: _Fit, ids: IdArray, sheet: FeatureBuffer | None) -> Iterator[Predictions]:
        recipe = self.runner.job.config.recipe
        for answers in predict(training.model, training.feed, ids, recipe, features=sheet is not None):
            if sheet is not None:
                sheet.add(answers)
            yield answers

    def _recorder(self, task: ScoreTask, training: _Fit, votes: VoteBuffer) -> TrajectoryRecorder:
        config, total = self.runner.job.config, len(self.runner.population)
        largest = -(-total // config.folds) if config.train_on == "fold" else total - total // config.folds
        trained = len(training.plan.ids_M) if task.fold is None else largest
        return TrajectoryRecorder(
            training.model,
            training.feed,
            votes.ids_M,
            votes.labels_M,
            config.recipe,
            scores=self.runner.scores,
            epochs=training.plan.epochs,
            least_epochs=config.recipe.epochs_in_all(trained),
            num_classes=self.runner.job.num_classes,
        )

    def _train(
        self, training: _Fit, task: ScoreTask | EvalTask, recorder: TrajectoryRecorder | None = None
    ) -> Iterable[EpochStats]:
        return training.train(recorder) if self.runner.job.workers_of(task) == 1 else [training.fetch()]

    def _fit(self, train_ids: IdArray, task: ScoreTask | EvalTask, share: Share, checkpoints: Checkpoints) -> _Fit:
        """A fresh model and what it takes to train it."""
        config = self.runner.job.config
        check_precision(config.recipe.precision, self.device)
        seed = fit_seed(config.seed, digest_ids(train_ids), task.repeat)
        seed_generators(torch_seed_for(seed), self.device)
        model = build_model(config.model, self.runner.job.num_classes)
        start_from(model, config.recipe)
        model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        plan = FitPlan(
            ids_M=train_ids,
            labels_M=self.runner.population.labels_of(train_ids),
            num_classes=self.runner.job.num_classes,
            recipe=config.recipe,
            seed=seed,
            share=share,
        )
        feed = BatchLoader(self._held(self.runner.plane), measure(self.runner.plane, train_ids))
        return _Fit(model=model, feed=feed, plan=plan, checkpoints=checkpoints)

    def _held(self, plane: Plane) -> Pixels:
        """A plane's pixels on the device, brought there once."""
        for held in self._pixels:
            if held.plane is plane:
                return held
        self._pixels.append(hold_pixels(plane, self.device))
        return self._pixels[-1]

    def _checkpoints(self, task: ScoreTask | EvalTask) -> Checkpoints:
        key = self.runner.job.fit_key(task, self.runner.population)
        out = self.runner.job.out
        return Checkpoints(Folder(out), key, beside=self.device.type == "cuda" or is_uri(out), task=task.name)

    def _numerics(self) -> contextlib.AbstractContextManager[None]:
        config = self.runner.job.config
        return numerics(config.threads, config.recipe.deterministic, self.device)


def open_test(runner: TaskRunner) -> TestSet:
    """What a run's evaluation measures on: its test source, else its holdout."""
    job = runner.job
    if job.test is None:
        ids = runner.population.holdout_ids
        return TestSet(runner.plane, ids, runner.labels_N[ids].astype(np.int64))
    source = open_source(job.test)
    plane, _ = load_plane(source, job.size_px)
    return TestSet(plane, np.arange(len(source.info), dtype=np.int64), source.info.labels_N.astype(np.int64))


def build_model(value: Any, num_classes: int) -> nn.Module:
    """A fresh model: a named one, `package.module:function`, or the user's function, called with `num_classes`.

    Raises:
        ConfigError: if it cannot be imported or called, or returns no module.
    """
    model = model_builder(value)(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model {name_of(plug_of(value)[0])} returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model
