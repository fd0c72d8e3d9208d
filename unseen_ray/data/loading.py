"""Getting hold of a source's pixels."""

from __future__ import annotations

import logging

import numpy as np

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.budget import fits_in_memory
from unseen_ray.data.plane import BadSample, LazyPlane, MemoryPlane, Plane, bad_sample_error, chunks_of, decode_range
from unseen_ray.sources import Source

__all__ = ["load_plane", "settle_bad"]

logger = logging.getLogger(__name__)

_SHOWN = 20


def load_plane(source: Source, size_px: int, *, on_bad_sample: str = "error") -> tuple[Plane, IdArray]:
    """The pixels of a source, decoded once where they fit in memory.

    Args:
        source: where from.
        size_px: height and width to bring them to.
        on_bad_sample: `error` or `skip`.

    Returns:
        The plane, and the ids of samples that cannot be decoded.

    Raises:
        BadSampleError: if there is such a sample and it is not to be skipped.
    """
    total = len(source.info)
    held = fits_in_memory(total, size_px)
    if not held and on_bad_sample == "error":
        return LazyPlane(source, size_px), np.empty(0, np.int64)
    pixels = np.empty((total, size_px, size_px, 3), np.uint8) if held else None
    bad: list[BadSample] = []
    for start, stop in chunks_of(total):
        chunk, failed = decode_range(source, np.arange(start, stop), size_px)
        bad += failed
        if pixels is not None:
            pixels[start:stop] = chunk
    plane = LazyPlane(source, size_px) if pixels is None else MemoryPlane(pixels)
    return plane, settle_bad(bad, on_bad_sample)


def settle_bad(bad: list[BadSample], on_bad_sample: str) -> IdArray:
    """Raise for samples that cannot be decoded, or list them and return their ids."""
    if bad and on_bad_sample == "error":
        raise bad_sample_error(bad)
    for sample in bad[:_SHOWN]:
        logger.warning("skipped %s: %s", sample.key, sample.reason)
    if len(bad) > _SHOWN:
        logger.warning("skipped %d samples in all; the manifest names them", len(bad))
    return np.array(sorted(sample.id for sample in bad), np.int64)
