"""Decoding images on the cluster: on nodes without GPUs if folds train on GPUs, else by the fold actors."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unseen_ray.data.images.pixel_files import PixelFiles, write_file
from unseen_ray.data.images.pixel_store import BadSample, decode_range
from unseen_ray.data.sources.registry import Source, SourceRef, open_source
from unseen_ray.execution.ray.actor_pool import FoldPool, PoolTask
from unseen_ray.execution.ray.capacity import Capacity, plain_nodes, survey
from unseen_ray.execution.ray.failures import Attempts, handle_failure

__all__ = ["Decoded", "Wanted", "decode_rows", "decode_spread"]

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_SURVEY_EVERY_S = 3.0
_START_WITHIN_S = 30.0  # if no task starts within this time, other jobs use the CPUs

_REQUEST = {"CPU": 1.0, "GPU": 0.0}

Decoded = tuple[Any, list[BadSample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to do with decoded rows.

    Attributes:
        size_px: height and width to scale images to.
        held: whether to return the pixels, or only the bad samples.
        files: where to write the pixels instead; each range is then the rows of one file.
    """

    size_px: int
    held: bool = False
    files: PixelFiles | None = None

    def starter(self, ref: SourceRef, start: int, stop: int) -> Callable[[Any], Any]:
        """A function that starts a range on a fold actor."""
        method, args = ("decode" if self.held else "find_bad"), (ref, start, stop, self.size_px)
        if self.files is not None:
            method, args = "write_pixels", (ref, start, self.files)  # type: ignore[assignment]
        return lambda actor: getattr(actor, method).options(num_returns="streaming").remote(*args)


_opened: list[tuple[SourceRef, Source]] = []  # kept by a Ray worker process, which decodes one range after the other


def decode_spread(
    pool: FoldPool, ref: SourceRef, ranges: Sequence[tuple[int, int]], wanted: Wanted, *, keep: int
) -> Iterator[tuple[int, Decoded]]:
    """Decode every range once; the pixels do not depend on where this happens.

    If folds train on GPUs, nodes without GPUs decode first: the CPUs beside a GPU are for training. The fold actors, which
    need no further CPUs, decode the rest: everything if there are no such nodes, or what is left if they leave or are busy.

    Args:
        pool: the fold actors.
        ref: the source.
        ranges: rows [start, stop) of each range.
        wanted: what to do with the pixels.
        keep: number of fold actors to keep for later tasks.

    Yields:
        The position of a range in `ranges`, its pixels (None unless held), and its bad samples.

    Raises:
        UnseenError: if the source raises one.
        FoldFailedError: if a range lost its worker too often.
    """
    left = dict(enumerate(ranges))
    if pool.request["GPU"] > 0:
        for place, decoded in _CpuNodes(ref, ranges, wanted, max_retries=pool.max_retries).decoded():
            del left[place]
            pool.share()
            yield place, decoded
    if not left:
        return
    logger.info("decoding %d images on the fold actors", sum(stop - start for start, stop in left.values()))
    tasks = [PoolTask(name=_name(*rows), start=wanted.starter(ref, *rows)) for rows in left.values()]
    places = list(left)
    for number, decoded in pool.stream(tasks, keep=keep):
        yield places[number], decoded


def decode_rows(ref: SourceRef, start: int, stop: int, wanted: Wanted) -> Iterator[Decoded | None]:
    """The Ray task: yields None once it has started, then the decoded rows."""
    yield None  # tells the driver that the task got a CPU: Ray does not report it
    if not _opened or _opened[0][0] != ref:
        _opened[:] = [(ref, open_source(ref))]
    source = _opened[0][1]
    if wanted.files is not None:
        yield None, write_file(wanted.files, source, start)
        return
    pixels, bad = decode_range(source, range(start, stop), wanted.size_px)
    yield (pixels if wanted.held else None), bad


class _CpuNodes:
    """Decodes ranges on nodes without GPUs, one per CPU at a time, so that few decoded pixels wait to be collected."""

    def __init__(self, ref: SourceRef, ranges: Sequence[tuple[int, int]], wanted: Wanted, *, max_retries: int) -> None:
        self._ref, self._ranges, self._wanted = ref, ranges, wanted
        self._queue = deque(range(len(ranges)))
        self._attempts = [Attempts(max_retries) for _ in ranges]
        self._running: dict[Any, tuple[str, int]] = {}
        self._started: set[Any] = set()
        self._left: set[str] = set()
        self._nodes: dict[str, int] = {}
        self._last_survey = -_SURVEY_EVERY_S

    def decoded(self) -> Iterator[tuple[int, Decoded]]:
        """The ranges that these nodes decode; ends early if there are no such nodes, or no task starts for a while."""
        task, idle_since = ray.remote(decode_rows), time.monotonic()
        try:
            while self._queue or self._running:
                self._fill(task)
                if not self._running:
                    return
                ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S, fetch_local=False)
                for generator in ready:
                    yield from self._take(generator)
                if ready or self._started:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > _START_WITHIN_S:
                    logger.info("the nodes without a GPU are busy with other work")
                    return
        finally:
            for generator in self._running:
                ray.cancel(generator, force=True)

    def _fill(self, task: Any) -> None:
        if time.monotonic() - self._last_survey >= _SURVEY_EVERY_S:
            self._update(survey())
        taken = [node for node, _ in self._running.values()]
        for node, cpus in self._nodes.items():
            for _ in range(cpus - taken.count(node)):
                if not self._queue or node in self._left:
                    break
                place = self._queue.popleft()
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                options = {
                    "num_cpus": _REQUEST["CPU"],
                    "max_retries": 0,  # a retry belongs on another node; `_take` queues it again
                    "num_returns": "streaming",
                    "scheduling_strategy": there,
                }
                generator = task.options(**options).remote(self._ref, *self._ranges[place], self._wanted)
                self._running[generator] = node, place

    def _update(self, capacity: Capacity) -> None:
        self._last_survey = time.monotonic()
        nodes = plain_nodes(capacity, _REQUEST)
        if nodes and not self._nodes:
            total = sum(stop - start for start, stop in self._ranges)
            logger.info("decoding %d images on %d nodes without a GPU", total, len(nodes))
        self._nodes = nodes

    def _take(self, generator: Any) -> Iterator[tuple[int, Decoded]]:
        node, place = self._running[generator]
        try:
            decoded = ray.get(next(generator))
        except RayError as error:
            self._forget(generator)
            if isinstance(error, TaskUnschedulableError):
                self._left.add(node)  # the node has left, which is no failure of the task
            else:
                handle_failure(error, _name(*self._ranges[place]), self._attempts[place])
                self._last_survey = -_SURVEY_EVERY_S
            self._queue.appendleft(place)
            return
        if decoded is None:
            self._started.add(generator)
            return
        self._forget(generator)
        yield place, decoded

    def _forget(self, generator: Any) -> None:
        del self._running[generator]
        self._started.discard(generator)


def _name(start: int, stop: int) -> str:
    return f"decoding rows {start} to {stop}"
