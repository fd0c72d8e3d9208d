"""The aggregator actors: one merges a short stage, several merge the ranges of a long one in parallel."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import ray

from unseen_ray.execution.ray.actors import Aggregator
from unseen_ray.execution.ray.supervised_actor import SupervisedActor
from unseen_ray.pruning.merge import Merged, MergeRequest, join_ranges
from unseen_ray.runs.tasks import Job

__all__ = ["Aggregators"]

logger = logging.getLogger(__name__)

_MOST_OF_NODE = 4  # more only wait for the storage


class Aggregators:
    """Merges stages on actors; when one is lost, another repeats its call.

    Args:
        max_retries: how often a call is repeated.
    """

    def __init__(self, *, max_retries: int) -> None:
        self._max_retries = max_retries
        self._first = SupervisedActor(Aggregator, max_retries=max_retries)

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
        return join_ranges(job, request, ranges)

    def close(self) -> None:
        """Kill the actor."""
        self._first.close()

    @contextlib.contextmanager
    def _several(self, most: int) -> Iterator[queue.SimpleQueue[SupervisedActor]]:
        """Up to `most` aggregators for a while: at most four a node, and one a CPU."""
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        count = max(min(most, sum(min(cpus, _MOST_OF_NODE) for cpus in nodes)), 1)
        more = [SupervisedActor(Aggregator, max_retries=self._max_retries) for _ in range(count - 1)]
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
