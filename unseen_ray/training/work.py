"""The work of one task: open, train, predict, score, put the votes on storage. Used by every executor."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from unseen_ray.catalog import model_builder
from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.population import Population
from unseen_ray.core.scorebook import ScoreFunction
from unseen_ray.core.seeds import digest_ids, fit_seed, torch_seed_for
from unseen_ray.core.tasks import EvalTask, ScoreTask, VotePart, check_unseen
from unseen_ray.data.loading import load_plane
from unseen_ray.data.plane import Plane
from unseen_ray.errors import ConfigError, FitError
from unseen_ray.job import EvalResult, Job, Progress, Receipt, score_functions
from unseen_ray.resolve import name_of, plug_of
from unseen_ray.sources import Source, open_source
from unseen_ray.storage import Folder
from unseen_ray.training.batches import Normalisation, measure
from unseen_ray.training.custom import custom_log_probs
from unseen_ray.training.fit import EpochStats, fit
from unseen_ray.training.hardware import check_precision, device_name, numerics
from unseen_ray.training.predict import predict
from unseen_ray.votes import find_receipt, write_votes

__all__ = ["TestSet", "Workbench", "build_model", "open_test"]

Answers = Iterator[tuple[IdArray, FloatArray]]


@dataclass(frozen=True, slots=True, eq=False)
class TestSet:
    """What `evaluate` measures on: ids of a plane, and their classes."""

    plane: Plane
    ids_M: IdArray
    labels_M: IntArray


@dataclass(slots=True, kw_only=True, eq=False)
class Workbench:
    """One process's hold on a run: does any of its tasks, on one device.

    Args:
        job: what the tasks share.
        labels_N: labels of all rows of the source.
        plane: its pixels.
        source: opens the source, for a user's own training.
        device: where to train.
    """

    job: Job
    labels_N: IntArray
    plane: Plane
    source: Callable[[], Source]
    device: torch.device
    population: Population = field(init=False)
    functions: dict[str, ScoreFunction] = field(init=False)

    def __post_init__(self) -> None:
        self.population = self.job.population(self.labels_N)
        self.functions = score_functions(self.job.config)

    def score(self, task: ScoreTask) -> Iterator[Progress | Receipt]:
        """Train the task's model and score what it may; the last value is the receipt, given once the votes are on storage.

        Raises:
            LeakError: if samples would be scored that the model was trained on.
            FitError: if the training diverges, or a user's function answers with something unusable.
        """
        started = time.perf_counter()
        train_ids, ids = task.train.resolve(self.population), task.scored.resolve(self.population)
        check_unseen(task, ids, self.population)
        key, folder = self.job.task_key(task, self.population), Folder(self.job.out)
        known = find_receipt(folder, task.stage, task.index, key)
        if known is not None:
            yield known
            return
        yield self._begun(task.name)
        votes = _VoteSheet(task, ids, self.population.labels_of(ids), self.job, self.functions)
        last = None
        for event in self._answers(task, train_ids):
            if isinstance(event, EpochStats):
                last = event
                yield self._trained(task.name, event)
            else:
                answered, log_probs = event
                votes.add(answered, log_probs, self.population)
                if votes.due():
                    yield self._scoring(task.name, votes)
        part = votes.finish()
        seconds = time.perf_counter() - started
        batch, steps = self.job.config.recipe.plan(len(train_ids))
        receipt = Receipt(
            index=task.index,
            task=task.name,
            files={},
            trained=len(train_ids),
            scored=len(ids),
            image_passes=0 if self.job.config.fit else batch * steps,
            accuracy=float((part.pred_M == votes.labels_M).mean()),
            train_accuracy=last.accuracy if last else math.nan,
            seconds=round(seconds, 3),
            gpu_seconds=round(seconds, 3) if self.device.type == "cuda" else 0.0,
            node=platform.node(),
            device=device_name(self.device),
        )
        yield write_votes(folder, task.stage, key, part, receipt)

    def evaluate(self, task: EvalTask, test: TestSet) -> Iterator[Progress | EvalResult]:
        """Train on the task's subset and measure on the test set after the last epoch."""
        started = time.perf_counter()
        yield self._begun(task.name)
        ids = task.train.resolve(self.population)
        right = np.zeros(len(test.ids_M), bool)
        with numerics(self.job.config.threads, self.job.config.recipe.deterministic, self.device):
            model, norm = self._fresh_model(ids, task.repeat)
            for stats in self._train(model, ids, task.repeat, norm):
                yield self._trained(task.name, stats)
            answers = predict(model, test.plane, test.ids_M, self.job.config.recipe, norm=norm, device=self.device)
            done = 0
            for _, log_probs in answers:
                stop = done + len(log_probs)
                right[done:stop] = log_probs.argmax(axis=1) == test.labels_M[done:stop]
                done = stop
        present = np.bincount(test.labels_M, minlength=self.job.num_classes)
        correct = np.bincount(test.labels_M[right], minlength=self.job.num_classes)
        yield EvalResult(
            arm=task.arm,
            repeat=task.repeat,
            trained=len(ids),
            accuracy=float(right.mean()),
            class_accuracy=tuple(float(c / n) if n else math.nan for c, n in zip(correct, present, strict=True)),
            seconds=round(time.perf_counter() - started, 3),
            node=platform.node(),
            device=device_name(self.device),
        )

    def _answers(self, task: ScoreTask, train_ids: IdArray) -> Iterator[EpochStats | tuple[IdArray, FloatArray]]:
        config = self.job.config
        if config.fit is not None:
            with numerics(config.threads, config.recipe.deterministic, self.device):
                yield from custom_log_probs(self.job, task, self.population, self.plane, self.source, self.labels_N)
            return
        with numerics(config.threads, config.recipe.deterministic, self.device):
            model, norm = self._fresh_model(train_ids, task.repeat)
            yield from self._train(model, train_ids, task.repeat, norm)
            ids = task.scored.resolve(self.population)
            yield from predict(model, self.plane, ids, config.recipe, norm=norm, device=self.device)

    def _fresh_model(self, train_ids: IdArray, repeat: int) -> tuple[nn.Module, Normalisation]:
        config = self.job.config
        check_precision(config.recipe.precision, self.device)
        seed = fit_seed(config.seed, digest_ids(train_ids), repeat)
        torch.manual_seed(torch_seed_for(seed))
        model = build_model(config.model, self.job.num_classes)
        model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, measure(self.plane, train_ids)

    def _train(self, model: nn.Module, train_ids: IdArray, repeat: int, norm: Normalisation) -> Iterable[EpochStats]:
        config = self.job.config
        return fit(
            model,
            self.plane,
            train_ids,
            self.population.labels_of(train_ids),
            config.recipe,
            num_classes=self.job.num_classes,
            norm=norm,
            seed=fit_seed(config.seed, digest_ids(train_ids), repeat),
            device=self.device,
        )

    def _event(self, name: str, **facts: Any) -> Progress:
        return Progress(task=name, node=platform.node(), device=device_name(self.device), **facts)

    def _begun(self, name: str) -> Progress:
        return self._event(name, doing="train", done=0, total=0)

    def _trained(self, name: str, stats: EpochStats) -> Progress:
        return self._event(
            name,
            doing="train",
            done=stats.epoch,
            total=stats.epochs,
            loss=stats.loss,
            accuracy=stats.accuracy,
            images_per_s=stats.images_per_s,
        )

    def _scoring(self, name: str, votes: _VoteSheet) -> Progress:
        return self._event(name, doing="score", done=votes.done, total=len(votes.ids_M))


def open_test(bench: Workbench) -> TestSet:
    """What a run's evaluation measures on: its test source, else its holdout."""
    job = bench.job
    if job.test is None:
        ids = bench.population.holdout_ids
        return TestSet(bench.plane, ids, bench.labels_N[ids])
    source = open_source(job.test)
    plane, _ = load_plane(source, job.size_px)
    return TestSet(plane, np.arange(len(source.info), dtype=np.int64), source.info.labels_N)


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


class _VoteSheet:
    """Fills in a task's votes batch by batch, and refuses what was not asked for."""

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
