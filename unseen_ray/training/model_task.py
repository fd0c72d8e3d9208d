"""Tasks that train a model by the recipe: train, predict, score, write votes; or train and measure. Used by every executor."""

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
from numpy.typing import NDArray
from torch import nn

from unseen_ray.config.models import model_builder
from unseen_ray.core.seeds import digest_ids, fit_seed, torch_seed_for
from unseen_ray.core.tasks import EvalTask
from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.data.sources.class_numbers import labels_as_in
from unseen_ray.data.sources.registry import open_source
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import name_of, plug_of
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Progress
from unseen_ray.storage.filesystem import is_uri
from unseen_ray.training.hardware import check_precision, memory_explained, numerics, seed_generators
from unseen_ray.training.initial_weights import start_from
from unseen_ray.training.loop.batches import BatchLoader, Pixels, WorkerShare, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.fit import FitPlan, finished_fit, fit
from unseen_ray.training.loop.predict import predict
from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder
from unseen_ray.training.task_runner import ScoringTask
from unseen_ray.training.vote_buffer import FeatureBuffer

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.core.tasks import ScoreTask
    from unseen_ray.data.images.pixel_store import PixelStore
    from unseen_ray.training.task_runner import TaskRunner

__all__ = ["ModelTask", "TestSet", "build_model"]


@dataclass(frozen=True, slots=True, eq=False)
class TestSet:
    """What a model is measured on: ids of a pixel store, and their classes."""

    pixel_store: PixelStore
    ids_M: IdArray
    labels_M: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """A model with all that its training needs."""

    model: nn.Module
    loader: BatchLoader
    plan: FitPlan
    checkpoints: Checkpoints

    def train(self, recorder: TrajectoryRecorder | None = None) -> Iterator[EpochStats]:
        """Train, or finish an interrupted training; see `fit.fit`."""
        return fit(self.model, self.loader, self.plan, self.checkpoints, recorder)

    def load_trained(self) -> EpochStats:
        """Load the weights that other workers have trained together.

        Raises:
            StorageError: if they are not on storage.
        """
        return finished_fit(self.model, self.loader, self.plan, self.checkpoints)

    def predict(self, ids_M: IdArray, features: FeatureBuffer | None) -> Iterator[Predictions]:
        """Predictions of the trained model; `features` collects what enters its last layer."""
        for predictions in predict(self.model, self.loader, ids_M, self.plan.recipe, features=features is not None):
            if features is not None:
                features.add(predictions)
            yield predictions


@dataclass(slots=True, kw_only=True, eq=False)
class ModelTask:
    """Runs the tasks of a run that trains a model by its recipe, one after the other, on one device.

    Args:
        runner: what the tasks share.
        device: where to train.
    """

    runner: TaskRunner
    device: torch.device
    _pixels: list[Pixels] = field(init=False, default_factory=list)
    _test: TestSet | None = field(init=False, default=None)

    def score(self, task: ScoreTask) -> Iterator[Progress | Receipt]:
        """Train the task's model, score its samples and write the votes; the last value is the receipt.

        Raises:
            LeakError: if the task would score samples that its model is trained on.
            FitError: if the training diverges, or a prediction or a score is not a number.
        """
        scoring = ScoringTask(self.runner, task)
        if (receipt := scoring.stored_receipt()) is not None:
            yield receipt
            return
        yield self.runner.begun(task.name)
        with self._numerics():
            fitting = self._fit(scoring.train_ids, task, WorkerShare())
            recorder = self._recorder(fitting, scoring.ids_M) if self.runner.scores.over_epochs else None
            scoring.over_epochs = None if recorder is None else recorder.columns
            stats = EpochStats(epoch=0, epochs=0)
            for stats in self._train(fitting, task, recorder):
                yield self.runner.trained(task, fitting.plan.samples, stats)
                if (receipt := scoring.polled_receipt()) is not None:
                    fitting.checkpoints.clear()
                    yield receipt
                    return
            features = FeatureBuffer(self.runner.population.ids_N) if self.runner.job.keeps_features(task) else None
            for ids in scoring.left():
                for predictions in fitting.predict(ids, features):
                    if recorder is not None:
                        recorder.add(predictions)
                    yield from scoring.add(predictions)
            if features is not None:
                # Only features of one model lie in one space: it also gives those of the samples that it does not score.
                rest = np.setdiff1d(self.runner.population.ids_N, scoring.ids_M, assume_unique=True)
                for _ in fitting.predict(rest, features):
                    pass
        receipt = scoring.write(stats, features_ND=None if features is None else features.finish())
        fitting.checkpoints.clear()  # not before the votes are on storage: a crash in between costs no training
        yield receipt

    def evaluate(self, task: EvalTask) -> Iterator[Progress | EvalResult]:
        """Train on the task's subset and measure on what it names, else on the test set, after the last epoch."""
        test = self._measured_on(task)  # before the clock starts: the first task of a worker decodes it
        started = time.perf_counter()
        yield self.runner.begun(task.name)
        train_ids = task.train.resolve(self.runner.population)
        is_right = np.zeros(len(test.ids_M), bool)
        stats = EpochStats(epoch=0, epochs=0)
        with self._numerics():
            fitting = self._fit(train_ids, task, WorkerShare())
            for stats in self._train(fitting, task):
                yield self.runner.trained(task, fitting.plan.samples, stats)
            loader = BatchLoader(self._pixels_of(test.pixel_store), fitting.loader.norm)
            done = 0
            for predictions in predict(fitting.model, loader, test.ids_M, fitting.plan.recipe):
                stop = done + len(predictions.ids_B)
                is_right[done:stop] = predictions.log_probs_BC.argmax(axis=1) == test.labels_M[done:stop]
                done = stop
        yield self._result(task, test, is_right, fitting.plan.samples, stats, time.perf_counter() - started)
        fitting.checkpoints.clear()

    def _measured_on(self, task: EvalTask) -> TestSet:
        if task.measured is not None:
            return _rows_of_source(self.runner, task.measured.resolve(self.runner.population))
        if self._test is None:
            self._test = _open_test(self.runner)
        return self._test

    def _result(
        self,
        task: EvalTask,
        test: TestSet,
        is_right: NDArray[np.bool_],
        trained: int,
        stats: EpochStats,
        seconds: float,
    ) -> EvalResult:
        job = self.runner.job
        present = np.bincount(test.labels_M, minlength=job.num_classes)
        correct = np.bincount(test.labels_M[is_right], minlength=job.num_classes)
        return EvalResult(
            task=task.name,
            arm=task.arm,
            selection=task.selection,
            repeat=task.repeat,
            trained=trained,
            accuracy=float(is_right.mean()),
            class_accuracy=tuple(float(c / n) if n else math.nan for c, n in zip(correct, present, strict=True)),
            seconds=round(seconds + stats.earlier_s, 3),
            worker_seconds=job.worker_seconds(task, seconds, stats.earlier_s, stats.shared_s),
            node=platform.node(),
            device=self.runner.device,
        )

    def train_shard(self, task: ScoreTask | EvalTask, shard: WorkerShare) -> Iterator[Progress]:
        """Train as one of several workers that share a fit; its model is in the fit's last checkpoint then."""
        with self._numerics():
            train_ids = task.train.resolve(self.runner.population)
            yield self.runner.begun(task.name)
            fitting = self._fit(train_ids, task, shard)
            for stats in fitting.train():
                yield self.runner.trained(task, fitting.plan.samples, stats)
            fitting.checkpoints.check_written()

    def _recorder(self, fitting: _Fit, ids_M: IdArray) -> TrajectoryRecorder:
        return TrajectoryRecorder(
            fitting.model,
            fitting.loader,
            ids_M,
            self.runner.population.labels_of(ids_M),
            fitting.plan.recipe,
            scores=self.runner.scores,
            epochs=fitting.plan.epochs,
            num_classes=self.runner.job.num_classes,
        )

    def _train(
        self, fitting: _Fit, task: ScoreTask | EvalTask, recorder: TrajectoryRecorder | None = None
    ) -> Iterable[EpochStats]:
        return fitting.train(recorder) if self.runner.job.workers_of(task) == 1 else [fitting.load_trained()]

    def _fit(self, train_ids: IdArray, task: ScoreTask | EvalTask, shard: WorkerShare) -> _Fit:
        """A fresh model with all that its training needs."""
        runner, config = self.runner, self.runner.job.config
        check_precision(config.recipe.precision, self.device)
        seed = fit_seed(config.seed, digest_ids(train_ids), task.repeat)
        seed_generators(torch_seed_for(seed), self.device)
        model = build_model(config.model, runner.job.num_classes)
        start_from(model, config.recipe)
        model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        plan = FitPlan(
            ids_M=train_ids,
            labels_M=runner.population.labels_of(train_ids),
            num_classes=runner.job.num_classes,
            recipe=runner.job.recipe_of(task),
            seed=seed,
            shard=shard,
            workers=runner.job.workers_of(task),
            draw=task.draw if isinstance(task, EvalTask) else None,
            common_epoch=runner.job.common_epoch(task, runner.population),
        )
        loader = BatchLoader(self._pixels_of(runner.pixel_store), measure(runner.pixel_store, train_ids))
        return _Fit(model=model, loader=loader, plan=plan, checkpoints=self._checkpoints(task))

    def _pixels_of(self, pixel_store: PixelStore) -> Pixels:
        """The pixels of a store on the device, copied there once for all tasks."""
        for pixels in self._pixels:
            if pixels.pixel_store is pixel_store:
                return pixels
        share = self.runner.job.config.gpus_per_fold or 1.0
        self._pixels.append(hold_pixels(pixel_store, self.device, gpu_share=share))
        return self._pixels[-1]

    def _checkpoints(self, task: ScoreTask | EvalTask) -> Checkpoints:
        job = self.runner.job
        key = job.fit_key(task, self.runner.population)
        return Checkpoints(job.folder, key, beside=self.device.type == "cuda" or is_uri(job.out), task=task.name)

    @contextlib.contextmanager
    def _numerics(self) -> Iterator[None]:
        config = self.runner.job.config
        with memory_explained(config), numerics(config.threads, config.recipe.deterministic, self.device):
            yield


def _open_test(runner: TaskRunner) -> TestSet:
    """The test set of a run: its test source, else its holdout."""
    job = runner.job
    if job.test is None:
        return _rows_of_source(runner, runner.population.holdout_ids)
    source = open_source(job.test)
    memory_gb = job.config.pixel_memory_gb
    pixel_store, _ = load_pixel_store(source, job.size_px, memory_gb=memory_gb, files=job.test_pixels)
    labels_M = labels_as_in(source.info, job.class_names, job.num_classes)
    return TestSet(pixel_store, np.arange(len(source.info), dtype=np.int64), labels_M)


def _rows_of_source(runner: TaskRunner, ids_M: IdArray) -> TestSet:
    return TestSet(runner.pixel_store, ids_M, runner.labels_N[ids_M].astype(np.int64))


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
