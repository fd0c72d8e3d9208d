"""A run's metrics for Prometheus: Ray's agent on each node exports them as `ray_unseen_ray_*`, counters with `_total`.

They are computed from the events that reach the driver anyway. They cannot fail a run; without an agent they are lost.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unseen_ray.core.tasks import EvalTask, ScoreTask
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Progress

if TYPE_CHECKING:
    from unseen_ray.pruning.executor import Observer

__all__ = ["COUNTERS", "GAUGES", "Meter"]

logger = logging.getLogger(__name__)

COUNTERS = {
    "samples_trained": "images that went through training, over all epochs",
    "samples_scored": "samples scored by models that never saw them",
}
GAUGES = {
    "images_per_s": "images that a task trains on per second, 0 when it does not train",
    "task_state": "0 waiting, 1 training, 2 scoring, 3 done",
    "task_progress": "share of its epochs that a task has trained",
    "retries": "restarts of a task that lost its worker or ran out of memory",
    "worker_seconds": "worker seconds that a task has used",
    "gpu_seconds": "worker seconds on GPUs",
    "stage": "the current stage; -1 during an evaluation",
    "waiting_seconds": "seconds that the run has waited for a worker",
}
_OF_RUN = ("stage", "waiting_seconds")  # their only label is `run`
_WAITING, _TRAINING, _SCORING, _DONE = 0, 1, 2, 3
_EVALUATION = -1
_SHOW_EVERY_S = 1.0


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """The same method, except that the first error is logged and ends all metrics of the run."""

    @functools.wraps(method)
    def guarded(self: Meter, *args: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *args)
        except Exception as error:
            self.broken = True
            logger.warning("metrics of this run stop: %s: %s", type(error).__name__, error)

    return guarded


@dataclass(slots=True)
class _TaskState:
    """What the events have told of a task.

    Attributes:
        stage: its stage.
        passes: images trained on; None before the first epoch of a start.
        scored: samples scored.
        starts: number of restarts.
        before_s, began: seconds of earlier starts, and the start time of this one.
    """

    stage: str
    passes: int | None = None
    scored: int = 0
    starts: int = 0
    before_s: float = 0.0
    began: float | None = None

    def seconds(self) -> float:
        """Seconds of all its starts so far."""
        return self.before_s + (0.0 if self.began is None else time.monotonic() - self.began)


@dataclass(slots=True)
class Meter:
    """Sets the metrics from the events that the driver receives.

    Args:
        run: the run's folder, a tag of every metric.
        gpu_share: the part of a GPU that a fold takes; 1 on CPUs.
        waited_s: tells how long the run has waited.
    """

    run: str
    gpu_share: float = 1.0
    waited_s: Callable[[], float] = lambda: 0.0
    broken: bool = False
    _made: dict[str, Any] = field(default_factory=dict)
    _tasks: dict[str, _TaskState] = field(default_factory=dict)
    _shown: dict[tuple[str, str], float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @_harmless
    def begin(self, tasks: Sequence[ScoreTask | EvalTask]) -> None:
        """Begin the metrics of tasks that are about to start."""
        self._make()
        for task in tasks:
            stage = task.stage if isinstance(task, ScoreTask) else _EVALUATION
            self._tasks[task.name] = _TaskState(str(stage))
            for name in ("task_state", "task_progress", "images_per_s", "retries", "worker_seconds", "gpu_seconds"):
                self._set(name, task.name, 0.0)
            self._set("stage", "", stage)

    @_harmless
    def retried(self, task: str) -> None:
        """Count the restart of a task."""
        state = self._tasks.get(task)
        if state is None:  # decoding has no metrics
            return
        state.starts += 1
        state.before_s, state.began = state.seconds(), None
        self._set("retries", task, state.starts)
        self._set("images_per_s", task, 0.0)
        self._set("task_state", task, _WAITING)

    @_harmless
    def hear(self, event: Progress | Receipt | EvalResult) -> None:
        """Update the metrics from an event of a task."""
        if event.task not in self._tasks:
            return
        if isinstance(event, Progress):
            self._progress(event)
        else:
            self._finished(event)

    def observing(self, on_event: Observer) -> Observer:
        """An observer that updates the metrics and then calls another observer."""

        def observe(event: Progress | Receipt | EvalResult) -> None:
            self.hear(event)
            on_event(event)

        return observe

    def close(self) -> None:
        """Stop setting the metrics."""
        self._over.set()

    def _show(self) -> None:
        # Ray drops a value that was not set again within two of its reports, as happens in a long epoch
        while not self._over.wait(_SHOW_EVERY_S) and not self.broken:
            self._show_again()

    @_harmless
    def _show_again(self) -> None:
        self._set("waiting_seconds", "", self.waited_s())
        for (name, task), value in list(self._shown.items()):
            self._made[name].set(value, self._tags(name, task))

    def _make(self) -> None:
        from ray.util.metrics import Counter, Gauge

        if not self._made:
            threading.Thread(target=self._show, daemon=True, name="metrics").start()
        for name, about in {**COUNTERS, **GAUGES}.items():
            if name not in self._made:
                kind = Counter if name in COUNTERS else Gauge
                tags = ("run",) if name in _OF_RUN else ("run", "stage", "task")
                self._made[name] = kind(f"unseen_ray_{name}", description=about, tag_keys=tags)

    def _progress(self, event: Progress) -> None:
        state, task = self._tasks[event.task], event.task
        # A start begins; it may resume from a checkpoint of an earlier one.
        if event.doing == "train" and not event.done:
            state.passes, state.scored = None, 0
            state.began = time.monotonic()
        self._set("task_state", task, _TRAINING if event.doing == "train" else _SCORING)
        self._set("images_per_s", task, 0.0 if math.isnan(event.images_per_s) else event.images_per_s)
        if event.doing == "score":
            self._add("samples_scored", task, event.done - state.scored)
            state.scored = event.done
        elif event.done:
            before = event.passes if event.earlier else state.passes or 0
            self._add("samples_trained", task, event.passes - before)
            state.passes = event.passes
            self._set("task_progress", task, event.done / event.total)
        self._took(task, event.device, state.seconds() * self.gpu_share)

    def _finished(self, event: Receipt | EvalResult) -> None:
        state, task = self._tasks[event.task], event.task
        self._set("task_state", task, _DONE)
        self._set("images_per_s", task, 0.0)
        self._set("task_progress", task, 1.0)
        if isinstance(event, Receipt) and not event.reused:
            self._add("samples_scored", task, event.scored - state.scored)
        self._took(task, event.device, event.worker_seconds)

    def _took(self, task: str, device: str, seconds: float) -> None:
        self._set("worker_seconds", task, seconds)
        self._set("gpu_seconds", task, seconds if device != "cpu" else 0.0)

    def _set(self, name: str, task: str, value: float) -> None:
        self._shown[name, task] = value
        self._made[name].set(value, self._tags(name, task))

    def _add(self, name: str, task: str, value: float) -> None:
        if value > 0:
            self._made[name].inc(value, self._tags(name, task))

    def _tags(self, name: str, task: str) -> dict[str, str]:
        of_task = {} if name in _OF_RUN else {"stage": self._tasks[task].stage, "task": task}
        return {"run": self.run, **of_task}
