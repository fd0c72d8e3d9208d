"""A run's figures as metrics of Ray, which each node's agent offers to Prometheus as `ray_unseen_ray_*`, counters with `_total`.

They are made from the events that reach the driver anyway. None of them can fail a run, and where no agent listens they are lost.
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
    "images_per_s": "images that a task trains on in a second, 0 when it does not train",
    "task_state": "0 waiting, 1 training, 2 scoring, 3 done",
    "task_progress": "share of its epochs that a task has trained",
    "retries": "starts of a task after it had lost its worker or its memory",
    "worker_seconds": "seconds of workers that a task has taken",
    "gpu_seconds": "of these, on GPUs",
    "stage": "the stage at work; -1 while trainings are compared",
}
_WAITING, _TRAINING, _SCORING, _DONE = 0, 1, 2, 3
_EVALUATION = -1
_SHOW_EVERY_S = 1.0


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """The same method, which only says in the log what goes wrong, and then is silent for good."""

    @functools.wraps(method)
    def guarded(self: Meter, *args: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *args)
        except Exception as error:
            self.broken = True
            logger.warning("no more metrics of this run: %s: %s", type(error).__name__, error)

    return guarded


@dataclass(slots=True)
class _Seen:
    """What was heard of a task.

    Attributes:
        stage: its stage.
        passes: images trained on; None before a start has told of its first epoch.
        scored: samples scored.
        starts: how often it was started again.
        before_s, began: seconds of earlier starts, and when this one began.
    """

    stage: str
    passes: int | None = None
    scored: int = 0
    starts: int = 0
    before_s: float = 0.0
    began: float | None = None

    def seconds(self) -> float:
        """Seconds that its starts have taken so far."""
        return self.before_s + (0.0 if self.began is None else time.monotonic() - self.began)


@dataclass(slots=True)
class Meter:
    """Counts and shows what a driver hears.

    Args:
        run: the run's folder, the tag by which runs are told apart.
    """

    run: str
    broken: bool = False
    _made: dict[str, Any] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _shown: dict[tuple[str, str], float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @_harmless
    def begin(self, tasks: Sequence[ScoreTask | EvalTask]) -> None:
        """Tell of tasks that are about to be done."""
        self._make()
        for task in tasks:
            stage = task.stage if isinstance(task, ScoreTask) else _EVALUATION
            self._seen[task.name] = _Seen(str(stage))
            for name in ("task_state", "task_progress", "images_per_s", "retries", "worker_seconds", "gpu_seconds"):
                self._set(name, task.name, 0.0)
            self._set("stage", "", stage)

    @_harmless
    def retried(self, task: str) -> None:
        """Tell that a task is started again."""
        seen = self._seen.get(task)
        if seen is None:  # what is decoded is no task
            return
        seen.starts += 1
        seen.before_s, seen.began = seen.seconds(), None
        self._set("retries", task, seen.starts)
        self._set("images_per_s", task, 0.0)
        self._set("task_state", task, _WAITING)

    @_harmless
    def hear(self, event: Progress | Receipt | EvalResult) -> None:
        """Tell of an event of a task."""
        if event.task not in self._seen:
            return
        if isinstance(event, Progress):
            self._progress(event)
        else:
            self._finished(event)

    def observing(self, on_event: Observer) -> Observer:
        """An observer that hears before it tells another one."""

        def observe(event: Progress | Receipt | EvalResult) -> None:
            self.hear(event)
            on_event(event)

        return observe

    def close(self) -> None:
        """Show nothing any more."""
        self._over.set()

    def _show(self) -> None:
        """Show all values again and again: Ray drops one that was not set for two of its reports, as in a long epoch."""
        while not self._over.wait(_SHOW_EVERY_S) and not self.broken:
            self._show_again()

    @_harmless
    def _show_again(self) -> None:
        for (name, task), value in list(self._shown.items()):
            self._made[name].set(value, self._tags(name, task))

    def _make(self) -> None:
        from ray.util.metrics import Counter, Gauge

        if not self._made:
            threading.Thread(target=self._show, daemon=True, name="metrics").start()
        for name, about in {**COUNTERS, **GAUGES}.items():
            if name not in self._made:
                kind = Counter if name in COUNTERS else Gauge
                tags = ("run",) if name == "stage" else ("run", "stage", "task")
                self._made[name] = kind(f"unseen_ray_{name}", description=about, tag_keys=tags)

    def _progress(self, event: Progress) -> None:
        seen, task = self._seen[event.task], event.task
        if event.doing == "train" and not event.done:  # what an earlier start has trained is not trained again
            seen.passes, seen.scored = None, 0
            seen.began = time.monotonic()
        self._set("task_state", task, _TRAINING if event.doing == "train" else _SCORING)
        self._set("images_per_s", task, 0.0 if math.isnan(event.images_per_s) else event.images_per_s)
        if event.doing == "score":
            self._add("samples_scored", task, event.done - seen.scored)
            seen.scored = event.done
        elif event.done:
            before = event.passes if event.earlier else seen.passes or 0
            self._add("samples_trained", task, event.passes - before)
            seen.passes = event.passes
            self._set("task_progress", task, event.done / event.total)
        self._took(task, event.device, seen.seconds())

    def _finished(self, event: Receipt | EvalResult) -> None:
        seen, task = self._seen[event.task], event.task
        self._set("task_state", task, _DONE)
        self._set("images_per_s", task, 0.0)
        self._set("task_progress", task, 1.0)
        if isinstance(event, Receipt) and not event.reused:
            self._add("samples_scored", task, event.scored - seen.scored)
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
        of_task = {} if name == "stage" else {"stage": self._seen[task].stage, "task": task}
        return {"run": self.run, **of_task}
