"""A pool of fold actors that works off a queue, and outlives the loss of any of them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from unseen_ray.distributed.capacity import Capacity, Resources, computes_alike, slots, survey
from unseen_ray.distributed.failures import Attempts, Failure, decide
from unseen_ray.distributed.workers import FoldWorker
from unseen_ray.errors import ClusterError, FoldFailedError, UnseenError
from unseen_ray.job import Progress
from unseen_ray.recipe import Precision

__all__ = ["FoldPool", "Keeper", "Work"]

logger = logging.getLogger(__name__)

_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
_POLL_S = 1.0
_SAY_EVERY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One entry of the queue.

    Attributes:
        name: how messages call it.
        start: begins it on an actor; the generator's last value is the result.
    """

    name: str
    start: Callable[[Any], Any]


@dataclass(slots=True, kw_only=True)
class FoldPool:
    """Fold actors, each with its own share of one node.

    Actors are asked for one a task, up to what fits on a fixed cluster, so that an autoscaler sees the demand; whoever
    comes up first takes the next task, and those that never did are let go when the queue is empty.

    Args:
        request: CPUs and GPUs of one actor.
        capacity: the cluster's.
        precision: what a probe is to resolve.
        max_retries: how often in a row a task is started again after its actor was lost, and a new actor asked for.
        wait_s: how long to wait for an autoscaler to bring what an actor needs.
        out: the run's folder, which each actor must see.
        on_retry: is told the name of a task that is started again.
    """

    request: Resources
    capacity: Capacity
    precision: Precision
    max_retries: int
    wait_s: float
    out: str
    on_retry: Callable[[str], None] = lambda name: None
    probes: list[dict[str, Any]] = field(default_factory=list)
    lost_at_start: int = 0
    _idle: list[Any] = field(default_factory=list)
    _parked: list[Any] = field(default_factory=list)  # they hold the place on a node that would give other numbers
    _coming: dict[Any, Any] = field(default_factory=dict)
    _busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)

    def ask_for(self, tasks: int) -> None:
        """Have as many actors up or coming as `tasks` tasks can use, and no more."""
        fit_in = max(slots(self.capacity, self.request) - len(self._parked), 1)
        limit = tasks if self.capacity.autoscaling else min(tasks, fit_in)
        while len(self._idle) + len(self._busy) > limit and self._idle:
            ray.kill(self._idle.pop())
        while len(self._idle) + len(self._busy) + len(self._coming) > limit and self._coming:
            ray.kill(self._coming.popitem()[1])
        for _ in range(limit - len(self._idle) - len(self._busy) - len(self._coming)):
            actor = (
                ray.remote(FoldWorker)
                .options(
                    num_cpus=self.request["CPU"],
                    num_gpus=self.request["GPU"],
                    max_restarts=0,
                    max_task_retries=0,
                    scheduling_strategy="SPREAD",
                )
                .remote()
            )
            self._coming[actor.probe.remote(self.precision, self.out)] = actor

    def first_probe(self) -> dict[str, Any]:
        """What the first actor that comes up says of itself; waits for it.

        Raises:
            ClusterError: if an autoscaler brings nothing that fits in time.
            FoldFailedError: if actors are lost whenever they come up.
        """
        waiting = _Wait(self)
        while not self.probes:
            self.ask_for(max(len(self._coming), 1))
            self._admit(ray.wait(list(self._coming), num_returns=1, timeout=_POLL_S)[0])
            waiting.check()
        return self.probes[0]

    def run(self, works: Sequence[Work], on_event: Callable[[Any], None], *, keep: int = 0) -> list[Any]:
        """Work off the queue; results in the order of `works`.

        Args:
            works: what to do.
            on_event: is told every value that a task yields.
            keep: how many actors to keep for what comes after, though the queue needs them no longer.

        Raises:
            UnseenError: of a task, as it was raised there.
            FoldFailedError: if a task failed for good.
        """
        results: dict[int, Any] = {}
        for place, value in self.stream(works, keep=keep):
            results[place] = value
            on_event(value)
        return [results[place] for place in range(len(works))]

    def stream(self, works: Sequence[Work], *, keep: int = 0) -> Iterator[tuple[int, Any]]:
        """Every value that the tasks yield, with the place of the task; see `run`."""
        queue = deque(range(len(works)))
        finished: set[int] = set()
        attempts = [Attempts(self.max_retries) for _ in works]
        waiting = _Wait(self)
        while queue or self._busy:
            self.ask_for(max(len(queue) + len(self._busy), keep))
            while queue and self._idle:
                actor, place = self._idle.pop(0), queue.popleft()
                self._busy[works[place].start(actor)] = actor, place
            ready, _ = ray.wait([*self._busy, *self._coming], num_returns=1, timeout=_POLL_S, fetch_local=False)
            self._admit([ref for ref in ready if ref in self._coming])
            for generator in [ref for ref in ready if ref in self._busy]:
                actor, place = self._busy[generator]
                try:
                    value = ray.get(next(generator))
                    attempts[place].heard(value)
                    if not isinstance(value, Progress):
                        finished.add(place)
                    yield place, value
                except StopIteration:
                    del self._busy[generator]
                    self._idle.append(actor)
                except RayError as error:
                    del self._busy[generator]
                    ray.kill(actor)
                    if place not in finished:
                        _settle(error, works[place].name, attempts[place])
                        self.on_retry(works[place].name)
                        queue.append(place)
            if queue:
                waiting.check()

    def close(self) -> None:
        """Let every actor go."""
        for actor in [*self._idle, *self._parked, *self._coming.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._parked, self._coming, self._busy = [], [], {}, {}

    def anyone_up(self) -> bool:
        """Whether an actor is up."""
        return bool(self._idle or self._busy)

    def _admit(self, probes: Sequence[Any]) -> None:
        for ref in probes:
            actor = self._coming.pop(ref)
            try:
                probe = ray.get(ref)
                if self.probes and not computes_alike(self.probes[0], probe):
                    self._parked.append(actor)
                    logger.warning(
                        "%s computes %s in another way: it is not used", probe["node"], self.probes[0]["precision"]
                    )
                    continue
                self.probes.append(probe)
                self._idle.append(actor)
                self.lost_at_start = 0
            except RayError as error:
                if isinstance(cause := getattr(error, "cause", None), UnseenError):
                    raise cause from None
                self.lost_at_start += 1
                failure = _failure_of(error)
                if decide(failure, failed=self.lost_at_start, max_retries=self.max_retries) == "give up":
                    raise FoldFailedError("a fold actor", self.lost_at_start, _explain(error, failure)) from None
                logger.warning("an actor was lost while it came up: %s", _first_line(error))


@dataclass(slots=True)
class _Wait:
    """Says once a minute that nothing comes up, and gives up after `wait_s`."""

    pool: FoldPool
    since: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        now = time.monotonic()
        if self.pool.anyone_up():
            self.since = self.said = now
            return
        pool = self.pool
        waits = f"{pool.request['CPU']:g} CPU and {pool.request['GPU']:g} GPU for a fold"
        if now - self.said >= _SAY_EVERY_S:
            self.said = now
            logger.warning(
                "waiting for %s: %d actors asked for, none up after %.0f s", waits, len(pool._coming), now - self.since
            )
        if pool.capacity.autoscaling and now - self.since > pool.wait_s and not slots(survey(), pool.request):
            raise ClusterError(
                f"the autoscaler was asked for {waits}, and no such node came within wait_s={pool.wait_s:g} s. "
                "Raise wait_s, ask for less (gpus_per_fold, cpus_per_fold), or look at the autoscaler's log; "
                "then run the same line again."
            )


class Keeper:
    """Keeps one actor of a class that needs no CPU of its own; another one takes its place if it is lost.

    Args:
        cls: the plain class.
        max_retries: how often a call is made again.
    """

    def __init__(self, cls: type, *, max_retries: int) -> None:
        self._cls, self._max_retries = cls, max_retries
        self._actor = self._start()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its answer.

        Raises:
            UnseenError: as the method raised it.
            FoldFailedError: if it failed for good.
        """
        name = f"{self._cls.__name__}.{method}"
        for attempt in range(1, self._max_retries + 2):
            try:
                return ray.get(getattr(self._actor, method).remote(*args))
            except RayError as error:
                failure = _failure_of(error)
                if failure == "error" and isinstance(cause := getattr(error, "cause", None), UnseenError):
                    raise cause from None
                if decide(failure, failed=attempt, max_retries=self._max_retries) == "give up":
                    raise FoldFailedError(name, attempt, _explain(error, failure)) from None
                logger.warning("%s: %s (%s); calling it again", name, failure, _first_line(error))
                self._actor = self._start()
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Let the actor go."""
        ray.kill(self._actor)

    def _start(self) -> Any:
        options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        return ray.remote(self._cls).options(**options).remote()


def _settle(error: RayError, name: str, attempts: Attempts) -> None:
    """Raise what ends the run; else say that the task is started again."""
    failure = _failure_of(error)
    if failure == "error" and isinstance(cause := getattr(error, "cause", None), UnseenError):
        raise cause from None
    if attempts.failed(failure) == "give up":
        raise FoldFailedError(name, attempts.count, _explain(error, failure)) from None
    logger.warning("%s: %s (%s); starting it again, attempt %d", name, failure, _first_line(error), attempts.count + 1)


def _failure_of(error: RayError) -> Failure:
    if isinstance(error, OutOfMemoryError):
        return "out of memory"
    return "worker lost" if isinstance(error, _LOST) else "error"


def _explain(error: RayError, failure: Failure) -> str:
    if failure == "out of memory":
        return "it ran out of memory. Lower recipe.batch_size, or let fewer folds run on a node (higher cpus_per_fold)."
    if isinstance(error, RayTaskError):
        return f"its own code raised an error:\n{str(error).strip()}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
