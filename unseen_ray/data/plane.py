"""Pixels by id: all in memory where they fit, else decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.decode import UndecodableError, to_pixels
from unseen_ray.errors import BadSampleError
from unseen_ray.sources import Source

__all__ = ["BadSample", "LazyPlane", "MemoryPlane", "Plane", "bad_sample_error", "chunks_of", "decode_range"]

_CHUNK = 1024


class Plane(Protocol):
    """Pixels by id."""

    @property
    def size_px(self) -> int:
        """Height and width."""
        ...

    def images(self, ids_B: IdArray) -> NDArray[np.uint8]:
        """(B, H, W, 3) uint8 in the order of the ids."""
        ...


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be decoded."""

    id: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class MemoryPlane:
    """All pixels as one (N, H, W, 3) uint8 array, which may be shared between processes and read-only."""

    pixels_NHWC: NDArray[np.uint8]

    @property
    def size_px(self) -> int:
        """Height and width."""
        return int(self.pixels_NHWC.shape[1])

    def images(self, ids_B: IdArray) -> NDArray[np.uint8]:
        """A copy of these images."""
        return self.pixels_NHWC[ids_B]


@dataclass(frozen=True, slots=True, eq=False)
class LazyPlane:
    """Images decoded when they are asked for; for sets that do not fit in memory."""

    source: Source
    size_px: int

    def images(self, ids_B: IdArray) -> NDArray[np.uint8]:
        """Decode these images; BadSampleError if one cannot be."""
        order = np.argsort(ids_B, kind="stable")
        pixels, bad = decode_range(self.source, ids_B[order], self.size_px)
        if bad:
            raise bad_sample_error(bad)
        unsorted = np.empty_like(pixels)
        unsorted[order] = pixels
        return unsorted


def bad_sample_error(bad: Sequence[BadSample]) -> BadSampleError:
    """The error that names the first ten."""
    return BadSampleError([sample.key for sample in bad[:10]], bad[0].reason, len(bad))


def chunks_of(num_samples: int, chunk: int = _CHUNK) -> list[tuple[int, int]]:
    """Ranges [start, stop) that cover 0..num_samples."""
    return [(start, min(start + chunk, num_samples)) for start in range(0, num_samples, chunk)]


def decode_range(
    source: Source, ids_M: Sequence[int] | IdArray, size_px: int
) -> tuple[NDArray[np.uint8], list[BadSample]]:
    """Read and decode samples on a few threads.

    Args:
        source: where they come from.
        ids_M: M ids; rising ids are read fastest.
        size_px: height and width to bring them to.

    Returns:
        (M, size_px, size_px, 3) uint8, black where a sample is bad, and the bad ones.
    """
    pixels = np.zeros((len(ids_M), size_px, size_px, 3), np.uint8)

    def decode(place: int, raw: object) -> tuple[int, str] | None:
        try:
            pixels[place] = to_pixels(raw, size_px)  # type: ignore[arg-type]
        except UndecodableError as error:
            return place, str(error)
        return None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(decode, place, raw) for place, (_, raw) in enumerate(source.read(ids_M))]  # type: ignore[arg-type]
        failures = [failure for future in futures if (failure := future.result()) is not None]
    keys = source.keys([int(ids_M[place]) for place, _ in failures])
    bad = [BadSample(int(ids_M[place]), key, reason) for (place, reason), key in zip(failures, keys, strict=True)]
    return pixels, bad
