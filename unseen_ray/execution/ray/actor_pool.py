"""A pool of fold actors that works through a queue of tasks, and survives the loss of any actor."""

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

from unseen_ray.execution.ray.actors import start_fold_worker
from unseen_ray.execution.ray.capacity import (
    GPU_LABEL,
    Capacity,
    Resources,
    Selector,
    computes_alike,
    plain_nodes,
    slots,
    survey,
    waiting_for,
)
from unseen_ray.execution.ray.connect import check_private
from unseen_ray.execution.ray.failures import Attempts, failure_of, handle_failure
from unseen_ray.execution.ray.internals import preferring
from unseen_ray.execution.ray.waiting import Wait
from unseen_ray.runs.tasks import Progress

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision

__all__ = ["FoldPool", "PoolTask"]

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_SURVEY_EVERY_S = 3.0
_TURN_S = 30.0  # a worker that makes room takes seconds to replace


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTask:
    """A task in the queue.

    Attributes:
        name: for messages.
        start: starts it on an actor and returns a generator of references, the last of which is to the result.
    """

    name: str
    start: Callable[[Any], Any]


@dataclass(slots=True, kw_only=True)
class FoldPool:
    """Fold actors, each with CPUs and GPUs of one node.

    The pool requests an actor for each task, up to what fits on a fixed cluster: an autoscaler sees that demand. The first
    actor to come up takes the next task; actors that are still pending when the queue is empty are killed. The pool surveys
    the cluster every few seconds while it works, as nodes may join and leave. Where other work on the cluster waits for what the
    actors hold, an actor that has had half a minute is killed between two tasks, and requested again behind that work.

    Args:
        request: CPUs and GPUs of one actor.
        capacity: the cluster's, as it was at the start.
        precision: the configuration's, which the first actor resolves for the run.
        deterministic: whether all actors must be on one model of GPU.
        selectors: labels of the nodes to use, the preferred ones first; empty for all nodes.
        max_retries: how often in a row a task is started again after its actor was lost, and an actor replaced.
        max_preemptions: the same where the node was taken away with notice.
        wait_s: how long to wait for a node that an actor fits on.
        out: the run's folder, which each actor must see.
        user_fit: whether a user's own function trains.
        is_private: whether the cluster is this run's own, which no node can join.
        on_retry: called with the name of a task that is started again.

    Attributes:
        worker_infos: what each actor said of itself when it came up, the first of which all others must match.
        waited_s: seconds without any worker, because other work held them all or no node had room.
    """

    request: Resources
    capacity: Capacity
    precision: Precision
    max_retries: int
    wait_s: float
    out: str
    max_preemptions: int = 0
    deterministic: bool = False
    selectors: tuple[Selector, ...] = ()
    user_fit: bool = False
    is_private: bool = False
    on_retry: Callable[[str], None] = lambda name: None
    worker_infos: list[dict[str, Any]] = field(default_factory=list)
    waited_s: float = 0.0
    # Of the first actor's node, where all must have its model of GPU.
    _gpu_label: dict[str, str] = field(default_factory=dict)
    _starts: Attempts = field(init=False)  # since the last actor that came up
    _idle: list[Any] = field(default_factory=list)
    # Unused, but they keep Ray from placing another actor on their node.
    _parked: list[Any] = field(default_factory=list)
    _coming: dict[Any, Any] = field(default_factory=dict)
    _busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    _nodes: dict[Any, str] = field(default_factory=dict)  # of each actor, or the one it was requested on
    _placed: dict[Any, Any] = field(
        default_factory=dict
    )  # of each of these, a reference that is ready once Ray has a place
    _up_since: dict[Any, float] = field(default_factory=dict)
    _gave_way: int = 0  # actors since the last survey
    _last_survey: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._starts = self._attempts()

    def request_actors(self, tasks: int) -> None:
        """Have as many actors up or pending as `tasks` tasks can use, and no more."""
        self._survey()
        limit = tasks if self.capacity.autoscaling else min(tasks, max(self._room(), 1))
        if self._give_way() and not self.has_actors():
            time.sleep(_POLL_S)  # or Ray might give this run what has just become free
        elif self._others() > 0 and self.has_actors():
            limit = min(limit, len(self._idle) + len(self._busy) + len(self._coming))
        while len(self._idle) + len(self._busy) > limit and self._idle:
            ray.kill(self._idle.pop())
        while len(self._idle) + len(self._busy) + len(self._coming) > limit and self._coming:
            actor = self._coming.popitem()[1]
            del self._placed[actor]
            ray.kill(actor)
        for _ in range(limit - len(self._idle) - len(self._busy) - len(self._coming)):
            node, strategy = self._placement()
            actor = start_fold_worker(self.request, strategy, self._wanted())
            self._nodes[actor] = node
            self._placed[actor] = actor.__ray_ready__.remote()
            self._coming[actor.describe.remote(self.precision, self.out, self.user_fit)] = actor

    def share(self) -> None:
        """Let idle actors go that other work waits for; call it now and then while the pool has no tasks."""
        self._survey()
        self._admit(ray.wait(list(self._coming), timeout=0)[0] if self._coming else [])
        self._give_way()

    def _others(self) -> int:
        """How many workers of other work wait for what this pool's actors hold."""
        return waiting_for(self.capacity, self.request) - len(self._coming)

    def _give_way(self) -> bool:
        """Kill idle actors that have had their turn, one for each worker that other work waits for; whether there were any."""
        now = time.monotonic()
        had_turn = [actor for actor in self._idle if now - self._up_since[actor] >= _TURN_S]
        going = had_turn[: max(self._others() - self._gave_way, 0)]
        for actor in going:
            logger.info("other work on the cluster waits for %s: this run makes room", _text(self.request))
            self._idle.remove(actor)
            ray.kill(actor)
        self._gave_way += len(going)
        return bool(going)

    def first_worker(self) -> dict[str, Any]:
        """Wait for the first actor; returns what it says of itself.

        Raises:
            ClusterError: if no node fits, and none joins in time.
            FoldFailedError: if too many actors are lost as they come up.
        """
        waiting = self._wait()
        while not self.worker_infos:
            self.request_actors(max(len(self._coming), 1))
            self._admit(ray.wait(list(self._coming), num_returns=1, timeout=_POLL_S)[0])
            self._check(waiting)
        return self.worker_infos[0]

    def run(self, tasks: Sequence[PoolTask], on_event: Callable[[Any], None], *, keep: int = 0) -> list[Any]:
        """Run tasks off the queue; results in the order of `tasks`.

        Args:
            tasks: what to do.
            on_event: called with every value that a task yields.
            keep: how many actors to keep for later tasks, even if the queue no longer needs them.

        Raises:
            UnseenError: as a task raised it.
            ClusterError: if the last node that fits has left, and none joins in time.
            FoldFailedError: if a task failed for good.
        """
        results: dict[int, Any] = {}
        for place, value in self.stream(tasks, keep=keep):
            results[place] = value
            on_event(value)
        return [results[place] for place in range(len(tasks))]

    def stream(self, tasks: Sequence[PoolTask], *, keep: int = 0) -> Iterator[tuple[int, Any]]:
        """Every value that the tasks yield, with the place of the task; see `run`."""
        queue = deque(range(len(tasks)))
        finished: set[int] = set()
        attempts = [self._attempts() for _ in tasks]
        waiting = self._wait()
        while queue or self._busy:
            self.request_actors(max(len(queue) + len(self._busy), keep))
            while queue and self._idle:
                actor, place = self._idle.pop(0), queue.popleft()
                self._busy[tasks[place].start(actor)] = actor, place
            # The timeout lets the loop survey the cluster and note lost actors while nothing is ready.
            ready, _ = ray.wait([*self._busy, *self._coming], num_returns=1, timeout=_POLL_S, fetch_local=False)
            self._admit([ref for ref in ready if ref in self._coming])
            for generator in [ref for ref in ready if ref in self._busy]:
                actor, place = self._busy[generator]
                try:
                    value = ray.get(next(generator))
                    attempts[place].note(value)
                    if not isinstance(value, Progress):
                        finished.add(place)
                    yield place, value
                except StopIteration:
                    del self._busy[generator]
                    self._idle.append(actor)
                except RayError as error:
                    del self._busy[generator]
                    self._dismiss(actor, error)
                    if place not in finished:  # a loss after the result costs nothing
                        handle_failure(error, tasks[place].name, attempts[place])
                        self.on_retry(tasks[place].name)
                        queue.append(place)
            if queue:
                self._check(waiting)

    def _attempts(self) -> Attempts:
        return Attempts(self.max_retries, self.max_preemptions)

    def _dismiss(self, actor: Any, error: RayError) -> None:
        """Let an actor go, but keep a GPU that failed from the next one while there is another."""
        if failure_of(error) == "GPU failed" and self._room() > 1:
            self._parked.append(actor)
        else:
            ray.kill(actor)
        self._survey_soon()

    def close(self) -> None:
        """Kill every actor."""
        for actor in [*self._idle, *self._parked, *self._coming.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._parked, self._coming, self._busy, self._nodes, self._placed = [], [], {}, {}, {}, {}

    def has_actors(self) -> bool:
        """Whether an actor is up."""
        return bool(self._idle or self._busy)

    def _placement(self) -> tuple[str, Any]:
        """Node and scheduling strategy of the next actor. One that needs no GPU goes to a node without GPUs while there is room."""
        if self.request["GPU"] > 0 or not any(node.get("GPU", 0) for node in self.capacity.nodes):
            return "", "SPREAD"
        ours = [*self._idle, *self._parked, *self._coming.values(), *(actor for actor, _ in self._busy.values())]
        taken = Counter(self._nodes[actor] for actor in ours)
        plain = plain_nodes(self.capacity, self.request)
        node = max(plain, key=lambda node: plain[node] - taken[node], default="")
        if not node or plain[node] <= taken[node]:
            return "", "SPREAD"
        return node, preferring(node)

    def room(self, request: Resources) -> int:
        """How many workers of this size fit on the preferred nodes now, beside actors that are not used."""
        self._survey()
        return slots(self.capacity.having(self._wanted()[:1]), request) - len(self._parked)

    def _room(self) -> int:
        return slots(self.capacity, self.request) - len(self._parked)

    def _wanted(self) -> tuple[Selector, ...]:
        """Labels of the nodes to use."""
        if not self._gpu_label:
            return self.selectors
        return tuple({**each, **self._gpu_label} for each in self.selectors or ({},))

    def _settle_gpu(self, node_id: str) -> None:
        """Ask for the first actor's model of GPU alone, where its node is labelled with it: another's would not be used."""
        labels = dict(zip(self.capacity.node_ids, self.capacity.labels, strict=True)).get(node_id, {})
        if self.deterministic and self.request["GPU"] > 0 and GPU_LABEL in labels:
            self._gpu_label = {GPU_LABEL: labels[GPU_LABEL]}
            self._survey_soon()

    def _survey_soon(self) -> None:
        self._last_survey = -math.inf

    def _survey(self) -> None:
        """Survey the nodes, every few seconds and after a loss, and forget actors of nodes that have left."""
        if self.is_private:
            check_private()
        now = time.monotonic()
        if now - self._last_survey < _SURVEY_EVERY_S:
            return
        before, self.capacity, self._last_survey = self.capacity, survey().having(self._wanted()), now
        self._gave_way = 0
        here = set(self.capacity.node_ids)
        self._idle = [actor for actor in self._idle if self._nodes[actor] in here]
        self._parked = [actor for actor in self._parked if self._nodes[actor] in here]
        if here != set(before.node_ids):
            room = slots(self.capacity, self.request)
            logger.info("folds may use %d nodes now, with room for %d of them", len(here), room)

    def _wait(self) -> Wait:
        return Wait(requested=_text(self.request), wait_s=self.wait_s)

    def _check(self, waiting: Wait) -> None:
        requested = _text(self.request)
        otherwise = (
            f"the autoscaler was asked for {requested}, and no such node was added within wait_s={self.wait_s:g} s. Raise "
            f"wait_s, request less "
            "(gpus_per_fold, cpus_per_fold), or look at the autoscaler's log; then run the same line again."
            if self.capacity.autoscaling
            else f"no node with {requested} is left, and none joined the cluster within wait_s={self.wait_s:g} s. Start such nodes again "
            "(ray start --address), or raise wait_s; then run the same line again: what was finished is kept."
        )
        self.waited_s += waiting.check(
            came=self.has_actors(),
            may_come=self._room() > 0,
            is_busy=waiting_for(self.capacity, self.request) > 0 and not self._is_starting(),
            otherwise=otherwise,
        )

    def _is_starting(self) -> bool:
        """Whether an actor that has not come up yet has got its place."""
        placed = [self._placed[actor] for actor in self._coming.values()]
        return bool(placed and ray.wait(placed, timeout=0)[0])

    def _admit(self, ready: Sequence[Any]) -> None:
        for ref in ready:
            actor = self._coming.pop(ref)
            del self._placed[actor]
            try:
                info = ray.get(ref)
                self._nodes[actor] = info.pop("node_id")
                first = self.worker_infos[0] if self.worker_infos else info
                if not computes_alike(first, info, deterministic=self.deterministic):
                    # Votes of one stage must come from one arithmetic, or the order of near-equal scores depends on the node.
                    self._parked.append(actor)
                    logger.warning(
                        "node %s (%s) computes %s differently from the first (%s) and is not used",
                        info["node"],
                        info["device"],
                        first["precision"],
                        first["device"],
                    )
                    continue
                if not self.worker_infos:
                    self._settle_gpu(self._nodes[actor])
                self.worker_infos.append(info)
                self._idle.append(actor)
                self._up_since[actor] = time.monotonic()
                self._starts = self._attempts()
            except RayError as error:
                self._survey_soon()
                handle_failure(error, "a fold actor", self._starts)


def _text(request: Resources) -> str:
    return f"{request['CPU']:g} CPU and {request['GPU']:g} GPU for a fold"
