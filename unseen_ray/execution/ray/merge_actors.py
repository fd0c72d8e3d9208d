"""The aggregator actors: one that merges a stage, and as many beside it as a long stage has ranges for."""

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
from unseen_ray.storage.filesystem import Folder

__all__ = ["Aggregators"]

logger = logging.getLogger(__name__)

_MOST_OF_NODE = 4  # storage feeds no more


class Aggregators:
    """Merges on actors; what an actor was at when it was lost is done by another one.

    Args:
        max_retries: how often a call is made again.
    """

    def __init__(self, *, max_retries: int) -> None:
        self._max_retries = max_retries
        self._first = SupervisedActor(Aggregator, max_retries=max_retries)

    def merge(self, shared: Sequence[Any], out: str, request: MergeRequest) -> Merged:
        """Merge a stage: on one actor, or range by range on several.

        Args:
            shared: what every call begins with: the run's name, references to its job and to the labels.
            out: the run's folder.
            request: the stage.
        """
        if request.num_ranges == 1:
            merged: Merged = self._first.call("merge", *shared, request)
            return merged
        given = (*shared, ray.put(request))
        with self._several(request.num_ranges) as keepers:
            logger.info("%d ranges of ids are merged by %d aggregators", request.num_ranges, keepers.qsize())
            _spread(keepers, "check", [(*given, index) for index in range(request.num_parts)])
            ranges = _spread(keepers, "merge_range", [(*given, n) for n in range(request.num_ranges)])
        return join_ranges(Folder(out), request, ranges)

    def close(self) -> None:
        """Let the actor go."""
        self._first.close()

    @contextlib.contextmanager
    def _several(self, most: int) -> Iterator[queue.SimpleQueue[SupervisedActor]]:
        """At most so many aggregators, for a while: up to four on each node, where it has the CPUs."""
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        count = max(min(most, sum(min(cpus, _MOST_OF_NODE) for cpus in nodes)), 1)
        more = [SupervisedActor(Aggregator, max_retries=self._max_retries) for _ in range(count - 1)]
        keepers: queue.SimpleQueue[SupervisedActor] = queue.SimpleQueue()
        for keeper in (self._first, *more):
            keepers.put(keeper)
        try:
            yield keepers
        finally:
            for keeper in more:
                keeper.close()


def _spread(keepers: queue.SimpleQueue[SupervisedActor], method: str, calls: list[tuple[Any, ...]]) -> list[Any]:
    """The answers to calls, in their order, each made by whichever is free; none is begun after one has failed."""

    def call(args: tuple[Any, ...]) -> Any:
        keeper = keepers.get()
        try:
            return keeper.call(method, *args)
        finally:
            keepers.put(keeper)

    pool = ThreadPoolExecutor(keepers.qsize())
    try:
        answers = [pool.submit(call, args) for args in calls]
        wait(answers, return_when=FIRST_EXCEPTION)
    finally:
        pool.shutdown(cancel_futures=True)
    failed = [answer for answer in answers if not answer.cancelled() and answer.exception() is not None]
    return [answer.result() for answer in failed or answers]
