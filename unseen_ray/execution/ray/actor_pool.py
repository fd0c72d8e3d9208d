"""A pool of fold actors that works off a queue, and outlives the loss of any of them."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unseen_ray.errors import FoldFailedError
from unseen_ray.execution.ray.actors import FoldWorker
from unseen_ray.execution.ray.capacity import Capacity, Resources, computes_alike, plain_nodes, slots, survey
from unseen_ray.execution.ray.failures import Attempts, decide
from unseen_ray.execution.ray.ray_errors import explain, failure_of, first_line, raise_own, settle
from unseen_ray.execution.ray.waiting import Wait
from unseen_ray.runs.tasks import Progress

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision

__all__ = ["FoldPool", "Work"]

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_LOOK_EVERY_S = 3.0


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
    comes up first takes the next task, and those that never did are let go when the queue is empty. The cluster is looked at
    again while the work goes on: nodes may join and leave.

    Args:
        request: CPUs and GPUs of one actor.
        capacity: the cluster's, as it was at the start.
        precision: what a probe is to resolve.
        max_retries: how often in a row a task is started again after its actor was lost, and a new actor asked for.
        wait_s: how long to wait for a node that an actor fits on, where there is none.
        out: the run's folder, which each actor must see.
        own_fit: whether a user's own function trains.
        on_retry: is told the name of a task that is started again.
    """

    request: Resources
    capacity: Capacity
    precision: Precision
    max_retries: int
    wait_s: float
    out: str
    own_fit: bool = False
    on_retry: Callable[[str], None] = lambda name: None
    probes: list[dict[str, Any]] = field(default_factory=list)
    lost_at_start: int = 0
    _idle: list[Any] = field(default_factory=list)
    _parked: list[Any] = field(default_factory=list)  # they hold the place on a node that would give other numbers
    _coming: dict[Any, Any] = field(default_factory=dict)
    _busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    _homes: dict[Any, str] = field(default_factory=dict)  # the node that each actor is on, or asked for
    _looked: float = field(default_factory=time.monotonic)

    def ask_for(self, tasks: int) -> None:
        """Have as many actors up or coming as `tasks` tasks can use, and no more."""
        self._look()
        limit = tasks if self.capacity.autoscaling else min(tasks, max(self._room(), 1))
        while len(self._idle) + len(self._busy) > limit and self._idle:
            ray.kill(self._idle.pop())
        while len(self._idle) + len(self._busy) + len(self._coming) > limit and self._coming:
            ray.kill(self._coming.popitem()[1])
        for _ in range(limit - len(self._idle) - len(self._busy) - len(self._coming)):
            home, strategy = self._place()
            actor = (
                ray.remote(FoldWorker)
                .options(
                    num_cpus=self.request["CPU"],
                    num_gpus=self.request["GPU"],
                    max_restarts=0,
                    max_task_retries=0,
                    scheduling_strategy=strategy,
                )
                .remote()
            )
            self._homes[actor] = home
            self._coming[actor.probe.remote(self.precision, self.out, self.own_fit)] = actor

    def first_probe(self) -> dict[str, Any]:
        """What the first actor that comes up says of itself; waits for it.

        Raises:
            ClusterError: if there is no node that fits, and none comes in time.
            FoldFailedError: if actors are lost whenever they come up.
        """
        waiting = self._wait()
        while not self.probes:
            self.ask_for(max(len(self._coming), 1))
            self._admit(ray.wait(list(self._coming), num_returns=1, timeout=_POLL_S)[0])
            self._check(waiting)
        return self.probes[0]

    def run(self, works: Sequence[Work], on_event: Callable[[Any], None], *, keep: int = 0) -> list[Any]:
        """Work off the queue; results in the order of `works`.

        Args:
            works: what to do.
            on_event: is told every value that a task yields.
            keep: how many actors to keep for what comes after, though the queue needs them no longer.

        Raises:
            UnseenError: of a task, as it was raised there.
            ClusterError: if the last node that fits has left, and none comes in time.
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
        waiting = self._wait()
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
                    self._look_again()
                    if place not in finished:
                        settle(error, works[place].name, attempts[place])
                        self.on_retry(works[place].name)
                        queue.append(place)
            if queue:
                self._check(waiting)

    def close(self) -> None:
        """Let every actor go."""
        for actor in [*self._idle, *self._parked, *self._coming.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._parked, self._coming, self._busy, self._homes = [], [], {}, {}, {}

    def anyone_up(self) -> bool:
        """Whether an actor is up."""
        return bool(self._idle or self._busy)

    def _place(self) -> tuple[str, Any]:
        """Where the next actor is best: one that needs no GPU where there is none, as long as such a node has room."""
        if self.request["GPU"] > 0 or not any(node.get("GPU", 0) for node in self.capacity.nodes):
            return "", "SPREAD"
        ours = [*self._idle, *self._parked, *self._coming.values(), *(actor for actor, _ in self._busy.values())]
        taken = Counter(self._homes[actor] for actor in ours)
        plain = plain_nodes(self.capacity, self.request)
        node = max(plain, key=lambda node: plain[node] - taken[node], default="")
        if not node or plain[node] <= taken[node]:
            return "", "SPREAD"
        return node, NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)

    def _room(self) -> int:
        """How many actors the nodes that are there hold, less those that hold a place and are not used."""
        return slots(self.capacity, self.request) - len(self._parked)

    def _look_again(self) -> None:
        self._looked = -math.inf

    def _look(self) -> None:
        """See which nodes there are, every few seconds and after a loss, and forget actors of nodes that have left."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        before, self.capacity, self._looked = self.capacity, survey(), now
        here = set(self.capacity.node_ids)
        self._idle = [actor for actor in self._idle if self._homes[actor] in here]
        self._parked = [actor for actor in self._parked if self._homes[actor] in here]
        if here != set(before.node_ids):
            room = slots(self.capacity, self.request)
            logger.info("the cluster has %d nodes now, with room for %d folds", len(here), room)

    def _wait(self) -> Wait:
        return Wait(asked=_said(self.request), wait_s=self.wait_s)

    def _check(self, waiting: Wait) -> None:
        asked = _said(self.request)
        otherwise = (
            f"the autoscaler was asked for {asked}, and no such node came within wait_s={self.wait_s:g} s. Raise wait_s, ask for less "
            "(gpus_per_fold, cpus_per_fold), or look at the autoscaler's log; then run the same line again."
            if self.capacity.autoscaling
            else f"no node with {asked} is left, and none joined the cluster within wait_s={self.wait_s:g} s. Start such nodes again "
            "(ray start --address), or raise wait_s; then run the same line again: what was finished is kept."
        )
        waiting.check(came=self.anyone_up(), may_come=self._room() > 0, otherwise=otherwise)

    def _admit(self, probes: Sequence[Any]) -> None:
        for ref in probes:
            actor = self._coming.pop(ref)
            try:
                probe = ray.get(ref)
                self._homes[actor] = probe.pop("node_id")
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
                raise_own(error)
                self.lost_at_start += 1
                self._look_again()
                failure = failure_of(error)
                if decide(failure, failed=self.lost_at_start, max_retries=self.max_retries) == "give up":
                    raise FoldFailedError("a fold actor", self.lost_at_start, explain(error, failure)) from None
                logger.warning("an actor was lost while it came up: %s", first_line(error))


def _said(request: Resources) -> str:
    return f"{request['CPU']:g} CPU and {request['GPU']:g} GPU for a fold"
