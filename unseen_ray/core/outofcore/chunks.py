"""Score tables as chunks that are read anew for each pass, and work on them by several threads. M rows of a chunk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from numpy.typing import NDArray

__all__ = ["Chunk", "Memory", "Shards", "spread"]

Chunk = Mapping[str, NDArray[Any]]
"""Some rows: columns `id` int64, `label` int64, `score` float32 and what else is asked for, by name; (M,) each."""

Shards = Callable[[Sequence[str]], Iterable[Chunk]]
"""Reads the named columns anew each time, by chunks, of whatever sizes."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a search may hold at once.

    Attributes:
        buffer: rows that are sorted exactly.
        bins: logarithm of how many bins count the keys of all groups together.
        threads: how many work on chunks side by side.
    """

    buffer: int = 2**22
    bins: int = 18
    threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))


def spread(chunks: Iterable[Chunk], work: Callable[[Chunk], _T], threads: int) -> Iterator[_T]:
    """What is made of each chunk, in their order, by several threads while the next ones are read."""
    if threads == 1:
        yield from map(work, chunks)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_T]] = deque()
        try:
            for chunk in chunks:
                if len(begun) == 2 * threads:
                    yield begun.popleft().result()
                begun.append(pool.submit(work, chunk))
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
