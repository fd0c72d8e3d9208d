"""Loads a source's pixels: into memory if they fit, else into files, else decoded at every read."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.images.memory import PIXEL_MEMORY_GB, fits_in_memory
from unseen_ray.data.images.pixel_files import FilePixelStore, PixelFiles, write_files
from unseen_ray.data.images.pixel_store import (
    BadSample,
    LazyPixelStore,
    MemoryPixelStore,
    PixelStore,
    bad_sample_error,
    chunks_of,
    decode_range,
)
from unseen_ray.data.sources.info import Source

__all__ = ["Held", "load_pixel_store", "pixel_store_of", "settle_bad"]

logger = logging.getLogger(__name__)

_SHOWN = 20

Held = NDArray[np.uint8] | PixelFiles | None
"""All pixels, or the files that hold them, or None: images are decoded at every read."""


def load_pixel_store(
    source: Source,
    size_px: int,
    *,
    on_bad_sample: str = "error",
    memory_gb: float = PIXEL_MEMORY_GB,
    files: PixelFiles | None = None,
) -> tuple[PixelStore, IdArray]:
    """The pixels of a source, decoded once if they fit in memory or are stored in files.

    Args:
        source: the opened source.
        size_px: height and width to scale images to.
        on_bad_sample: `error` or `skip`.
        memory_gb: GiB of pixels that memory may hold.
        files: where to store more pixels than that; None to decode them at every read.

    Returns:
        The pixel store, and the ids of samples that cannot be decoded.

    Raises:
        BadSampleError: if a sample cannot be decoded and `on_bad_sample` is `error`.
    """
    if files is not None:
        return FilePixelStore(files), settle_bad(write_files(files, source), on_bad_sample)
    total, bad = len(source.info), list[BadSample]()
    held = fits_in_memory(total, size_px, memory_gb)
    if not held and on_bad_sample == "error":  # to skip bad samples instead, all are decoded once to find them
        return LazyPixelStore(source, size_px), np.empty(0, np.int64)
    pixels = np.empty((total, size_px, size_px, 3), np.uint8) if held else None
    for start, stop in chunks_of(total):
        chunk, failed = decode_range(source, np.arange(start, stop), size_px)
        bad += failed
        if pixels is not None:
            pixels[start:stop] = chunk
    pixel_store = LazyPixelStore(source, size_px) if pixels is None else MemoryPixelStore(pixels)
    return pixel_store, settle_bad(bad, on_bad_sample)


def pixel_store_of(held: Held, source: Callable[[], Source], size_px: int) -> PixelStore:
    """The pixel store over pixels in memory or in files; without either, the source is opened and read lazily."""
    if held is None:
        return LazyPixelStore(source(), size_px)
    return FilePixelStore(held) if isinstance(held, PixelFiles) else MemoryPixelStore(held)


def settle_bad(bad: list[BadSample], on_bad_sample: str) -> IdArray:
    """Raise an error for samples that cannot be decoded, or log them and return their ids."""
    if bad and on_bad_sample == "error":
        raise bad_sample_error(bad)
    for sample in bad[:_SHOWN]:
        logger.warning("skipped %s: %s", sample.key, sample.reason)
    if len(bad) > _SHOWN:
        logger.warning("skipped %d samples; the manifest lists them", len(bad))
    return np.array(sorted(sample.id for sample in bad), np.int64)
