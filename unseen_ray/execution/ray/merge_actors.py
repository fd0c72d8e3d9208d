"""The aggregator actors: one merges a short stage, several merge the ranges of a long one in parallel."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from unseen_ray.execution.ray.actors import Aggregator
from unseen_ray.execution.ray.capacity import Selector, survey
from unseen_ray.execution.ray.failures import Attempts, handle_failure
from unseen_ray.pruning.merge import Merged, MergeRequest, with_no_other_parts
from unseen_ray.runs.tasks import Job

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = ["Aggregators"]

logger = logging.getLogger(__name__)

_MOST_OF_NODE = 4  # more only wait for the storage


class Aggregators:
    """Merges stages on actors; when one is lost, another repeats its call.

    Args:
        config: the run's, which says how often a call is repeated and which nodes to use.
    """

    def __init__(self, config: PruneConfig) -> None:
        self._retries = config.max_retries, config.max_preemptions
        self._selector: Selector | None = (config.placement or {}).get("aggregator")
        self._first = self._start()

    def _start(self) -> SupervisedActor:
        return SupervisedActor(Aggregator, retries=self._retries, selector=self._selector)

    def merge(self, shared: Sequence[Any], job: Job, request: MergeRequest) -> Merged:
        """Merge a stage: on one actor, or range by range on several.

        Args:
            shared: the first arguments of every call: the run's id, references to its job and to the labels.
            job: of the run.
            request: the stage.
        """
        if request.num_ranges == 1:
            merged: Merged = self._first.call("merge", *shared, request)
            return merged
        args = (*shared, ray.put(request))
        with self._several(request.num_ranges) as aggregators:
            logger.info("%d ranges of ids are merged by %d aggregators", request.num_ranges, aggregators.qsize())
            _spread(aggregators, "check", [(*args, index) for index in range(request.num_parts)])
            ranges = _spread(aggregators, "merge_range", [(*args, n) for n in range(request.num_ranges)])
        joined: Merged = self._first.call("join", *args, ranges)
        return with_no_other_parts(job.folder, request.stage, joined)

    def close(self) -> None:
        """Kill the actor."""
        self._first.close()

    @contextlib.contextmanager
    def _several(self, most: int) -> Iterator[queue.SimpleQueue[SupervisedActor]]:
        """Up to `most` aggregators for a while: at most four a node, and one a CPU."""
        usable = survey().having([] if self._selector is None else [self._selector])
        room = sum(min(int(node.get("CPU", 0)), _MOST_OF_NODE) for node in usable.nodes)
        more = [self._start() for _ in range(max(min(most, room), 1) - 1)]
        free: queue.SimpleQueue[SupervisedActor] = queue.SimpleQueue()
        for aggregator in (self._first, *more):
            free.put(aggregator)
        try:
            yield free
        finally:
            for aggregator in more:
                aggregator.close()


def _spread(free: queue.SimpleQueue[SupervisedActor], method: str, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Make each call on a free aggregator; results in the order of the calls. No call starts after one has failed."""

    def call(args: tuple[Any, ...]) -> Any:
        aggregator = free.get()
        try:
            return aggregator.call(method, *args)
        finally:
            free.put(aggregator)

    pool = ThreadPoolExecutor(free.qsize())
    try:
        futures = [pool.submit(call, args) for args in calls]
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        pool.shutdown(cancel_futures=True)
    failed = [future for future in futures if not future.cancelled() and future.exception() is not None]
    return [future.result() for future in failed or futures]  # the first failure raises


class SupervisedActor:
    """One actor of a class that reserves no CPU; a new one replaces it when it is lost.

    Args:
        cls: the plain class.
        retries: how often a call is repeated after a failure, and after its node was taken away.
        selector: labels of the nodes to use; None for any node.
    """

    def __init__(self, cls: type, *, retries: tuple[int, int], selector: Selector | None = None) -> None:
        self._cls, self._retries, self._selector = cls, retries, selector
        self._actor = self._start()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its result.

        Raises:
            UnseenError: as the method raised it on the actor.
            FoldFailedError: if it failed for good.
        """
        name, attempts = f"{self._cls.__name__}.{method}", Attempts(*self._retries)
        while True:
            try:
                return ray.get(getattr(self._actor, method).remote(*args))
            except RayError as error:
                handle_failure(error, name, attempts)
                self._actor = self._start()

    def close(self) -> None:
        """Kill the actor."""
        ray.kill(self._actor)

    def _start(self) -> Any:
        # No CPU: folds may hold all of them, and a merge that waited for one would wait for ever. Retries are ours, to count them.
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if self._selector is not None:
            options["label_selector"] = dict(self._selector)
        return ray.remote(self._cls).options(**options).remote()
