"""Fetches the images of the next batches while one is in use, into memory that is used again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray

if TYPE_CHECKING:
    from unseen_ray.data.images.pixel_store import PixelStore

__all__ = ["fetched_ahead"]

_WAITING_BYTES = 256 << 20
_LEAST_AHEAD, _MOST_AHEAD = 2, 8
_THREADS = 2


def _empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.empty(shape, np.uint8)


def fetched_ahead(
    pixel_store: PixelStore,
    batches: Sequence[IdArray],
    empty: Callable[[tuple[int, ...]], NDArray[np.uint8]] = _empty,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of one batch after the other, each until the next one is asked for: then its memory is used again.

    Args:
        pixel_store: the pixels; several threads read it at once.
        batches: (B,) ids each; the first batch is the largest.
        empty: makes an array of uint8, of which there are a few: one in use, the others being filled.

    Yields:
        (B, H, W, 3) uint8.
    """
    if not batches:
        return
    shape = len(batches[0]), pixel_store.size_px, pixel_store.size_px, 3
    depth = max(_LEAST_AHEAD, min(_MOST_AHEAD, _WAITING_BYTES // max(math.prod(shape), 1)))
    *buffers, spare = (empty(shape) for _ in range(min(depth, len(batches)) + 1))
    left = iter(batches)
    coming: deque[tuple[Future[NDArray[np.uint8]], NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as pool:

        def fetch_into(buffer: NDArray[np.uint8]) -> None:
            for ids in islice(left, 1):
                coming.append((pool.submit(pixel_store.images, ids, buffer[: len(ids)]), buffer))

        for buffer in buffers:
            fetch_into(buffer)
        try:
            while coming:
                future, buffer = coming.popleft()
                images = future.result()
                fetch_into(spare)
                yield images
                spare = buffer
        finally:
            for future, _ in coming:
                future.cancel()
