"""Fetches the images of the next batches while one is in use, up to a bound on their memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
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
_MOST_AHEAD = 8
_THREADS = 2


def fetched_ahead(pixel_store: PixelStore, batches: Sequence[IdArray]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of one batch after the other.

    Args:
        pixel_store: the pixels; several threads read it at once.
        batches: (B,) ids each; the first batch is the largest.

    Yields:
        (B, H, W, 3) uint8.
    """
    if not batches:
        return
    batch_bytes = len(batches[0]) * pixel_store.size_px**2 * 3
    depth = max(1, min(_MOST_AHEAD, _WAITING_BYTES // max(batch_bytes, 1)))
    left = iter(batches)
    with ThreadPoolExecutor(min(_THREADS, depth), thread_name_prefix="fetch") as pool:
        coming: deque[Future[NDArray[np.uint8]]] = deque(
            pool.submit(pixel_store.images, ids) for ids in islice(left, depth)
        )
        try:
            while coming:
                images = coming.popleft().result()
                coming.extend(pool.submit(pixel_store.images, ids) for ids in islice(left, 1))
                yield images
        finally:
            for future in coming:
                future.cancel()
