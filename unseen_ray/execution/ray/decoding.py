"""Decoding images on the cluster: on nodes without GPU where folds train on GPUs, else by the fold actors themselves."""

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
from unseen_ray.data.images.planes import BadSample, decode_range
from unseen_ray.data.sources.registry import Source, SourceRef, open_source
from unseen_ray.execution.ray.actor_pool import FoldPool, Work
from unseen_ray.execution.ray.capacity import Capacity, plain_nodes, survey
from unseen_ray.execution.ray.failures import Attempts
from unseen_ray.execution.ray.ray_errors import settle

__all__ = ["Decoded", "Wanted", "decode_rows", "decode_spread"]

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_LOOK_EVERY_S = 3.0
_PATIENCE_S = 30.0  # without a task at work: others hold the CPUs

_REQUEST = {"CPU": 1.0, "GPU": 0.0}

Decoded = tuple[Any, list[BadSample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is made of decoded rows.

    Attributes:
        size_px: height and width to bring images to.
        held: whether the pixels are handed over, or only the bad samples.
        files: where they are put instead; each range is the rows of one file then.
    """

    size_px: int
    held: bool = False
    files: PixelFiles | None = None

    def starter(self, ref: SourceRef, start: int, stop: int) -> Callable[[Any], Any]:
        """Begins a range on a fold actor."""
        method, args = ("decode" if self.held else "find_bad"), (ref, start, stop, self.size_px)
        if self.files is not None:
            method, args = "keep", (ref, start, self.files)  # type: ignore[assignment]
        return lambda actor: getattr(actor, method).options(num_returns="streaming").remote(*args)


_opened: list[tuple[SourceRef, Source]] = []  # by this process, which does one range after the other


def decode_spread(
    pool: FoldPool, ref: SourceRef, ranges: Sequence[tuple[int, int]], wanted: Wanted, *, keep: int
) -> Iterator[tuple[int, Decoded]]:
    """Decode every range once, wherever that is; the pixels are the same.

    Nodes without GPU come first where folds train on GPUs: the CPUs beside a GPU are for trainings. Whatever they do not get
    to, because there are none, they leave, or others hold their CPUs, the fold actors do, which need no CPU but their own.

    Args:
        pool: the fold actors.
        ref: the source.
        ranges: rows [start, stop) of each range.
        wanted: what is made of the pixels.
        keep: how many fold actors to keep for what comes after.

    Yields:
        The place of a range with its pixels, None where they are not handed over, and its bad samples.

    Raises:
        UnseenError: of a source, as it was raised there.
        FoldFailedError: if workers were lost too often.
    """
    left = dict(enumerate(ranges))
    if pool.request["GPU"] > 0:
        for place, decoded in _Apart(ref, ranges, wanted, max_retries=pool.max_retries).decoded():
            del left[place]
            yield place, decoded
    if not left:
        return
    logger.info("decoding %d images on the fold actors", sum(stop - start for start, stop in left.values()))
    works = [Work(name=_name(*rows), start=wanted.starter(ref, *rows)) for rows in left.values()]
    places = list(left)
    for number, decoded in pool.stream(works, keep=keep):
        yield places[number], decoded


def decode_rows(ref: SourceRef, start: int, stop: int, wanted: Wanted) -> Iterator[Decoded | None]:
    """What a task of Ray does: say that it has begun, then hand over what it made of the rows."""
    yield None
    if not _opened or _opened[0][0] != ref:
        _opened[:] = [(ref, open_source(ref))]
    source = _opened[0][1]
    if wanted.files is not None:
        yield None, write_file(wanted.files, source, start)
        return
    pixels, bad = decode_range(source, range(start, stop), wanted.size_px)
    yield (pixels if wanted.held else None), bad


class _Apart:
    """Ranges on nodes without GPU, one for each CPU at a time, so that no more pixels lie around than are being made."""

    def __init__(self, ref: SourceRef, ranges: Sequence[tuple[int, int]], wanted: Wanted, *, max_retries: int) -> None:
        self._ref, self._ranges, self._wanted = ref, ranges, wanted
        self._queue = deque(range(len(ranges)))
        self._attempts = [Attempts(max_retries) for _ in ranges]
        self._running: dict[Any, tuple[str, int]] = {}
        self._begun: set[Any] = set()
        self._gone: set[str] = set()
        self._nodes: dict[str, int] = {}
        self._looked = -_LOOK_EVERY_S

    def decoded(self) -> Iterator[tuple[int, Decoded]]:
        """What the nodes get to; ends early where there are none, or none begins for a while."""
        task, quiet_since = ray.remote(decode_rows), time.monotonic()
        try:
            while self._queue or self._running:
                self._fill(task)
                if not self._running:
                    return
                ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S, fetch_local=False)
                for generator in ready:
                    yield from self._take(generator)
                if ready or self._begun:
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > _PATIENCE_S:
                    logger.info("the nodes without GPU are busy with other work")
                    return
        finally:
            for generator in self._running:
                ray.cancel(generator, force=True)

    def _fill(self, task: Any) -> None:
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._look(survey())
        taken = [node for node, _ in self._running.values()]
        for node, cpus in self._nodes.items():
            for _ in range(cpus - taken.count(node)):
                if not self._queue or node in self._gone:
                    break
                place = self._queue.popleft()
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                options = {
                    "num_cpus": _REQUEST["CPU"],
                    "max_retries": 0,
                    "num_returns": "streaming",
                    "scheduling_strategy": there,
                }
                generator = task.options(**options).remote(self._ref, *self._ranges[place], self._wanted)
                self._running[generator] = node, place

    def _look(self, capacity: Capacity) -> None:
        self._looked = time.monotonic()
        nodes = plain_nodes(capacity, _REQUEST)
        if nodes and not self._nodes:
            total = sum(stop - start for start, stop in self._ranges)
            logger.info("decoding %d images on %d nodes without GPU", total, len(nodes))
        self._nodes = nodes

    def _take(self, generator: Any) -> Iterator[tuple[int, Decoded]]:
        node, place = self._running[generator]
        try:
            decoded = ray.get(next(generator))
        except RayError as error:
            self._forget(generator)
            if isinstance(error, TaskUnschedulableError):
                self._gone.add(node)  # it has left, which is no fault of the task
            else:
                settle(error, _name(*self._ranges[place]), self._attempts[place])
                self._looked = -_LOOK_EVERY_S
            self._queue.appendleft(place)
            return
        if decoded is None:
            self._begun.add(generator)
            return
        self._forget(generator)
        yield place, decoded

    def _forget(self, generator: Any) -> None:
        del self._running[generator]
        self._begun.discard(generator)


def _name(start: int, stop: int) -> str:
    return f"decoding rows {start} to {stop}"
