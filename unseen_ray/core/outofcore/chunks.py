"""Score tables as chunks that are read again for each pass and processed by several threads. M rows of a chunk."""

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
"""Some rows: (M,) columns by name, such as `id` int64, `label` int64 and `score` float32."""

Shards = Callable[[Sequence[str]], Iterable[Chunk]]
"""Reads the named columns in chunks of any size; every call starts from the beginning."""

_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Limits of what a search holds at once.

    Attributes:
        buffer: the most rows that are sorted.
        bins: base-2 logarithm of the number of bins, over all groups.
        threads: number of threads that process chunks.
    """

    buffer: int = 2**22
    bins: int = 18
    threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))


def spread(chunks: Iterable[_S], work: Callable[[_S], _T], threads: int) -> Iterator[_T]:
    """The results of `work` for each chunk, in order, computed by several threads while the next chunks are read."""
    if threads == 1:
        yield from map(work, chunks)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_T]] = deque()
        try:
            for chunk in chunks:
                if len(begun) == 2 * threads:  # bounds the chunks in memory
                    yield begun.popleft().result()
                begun.append(pool.submit(work, chunk))
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
