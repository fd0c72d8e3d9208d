"""Pixels by id: all in memory if they fit, else decoded on demand."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.images.opening import UndecodableError, quietly
from unseen_ray.data.sources.info import RawImage, Source
from unseen_ray.errors import BadSampleError

__all__ = [
    "BadSample",
    "LazyPixelStore",
    "MemoryPixelStore",
    "PixelStore",
    "bad_sample_error",
    "chunks_of",
    "decode_range",
    "usable_cores",
]

_CHUNK = 1024
_SLICE = 16  # images that one thread decodes at a time
_MOST_THREADS = 4  # other processes of the node decode at the same time


class PixelStore(Protocol):
    """Pixels by id."""

    @property
    def size_px(self) -> int:
        """Height and width."""
        ...

    def images(self, ids_B: IdArray, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """(B, H, W, 3) uint8 in the order of the ids, in `out` if it is given."""
        ...


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be decoded."""

    id: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class MemoryPixelStore:
    """All pixels as one (N, H, W, 3) uint8 array, which may be read-only and shared between processes."""

    pixels_NHWC: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels_NHWC)

    @property
    def size_px(self) -> int:
        """Height and width."""
        return int(self.pixels_NHWC.shape[1])

    def images(self, ids_B: IdArray, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """A copy of these images."""
        if out is None:
            return self.pixels_NHWC[ids_B]
        if len(ids_B) and not 0 <= ids_B.min() <= ids_B.max() < len(self):
            raise IndexError(f"ids {ids_B.min()} to {ids_B.max()} of {len(self)} images")
        return self.pixels_NHWC.take(ids_B, axis=0, out=out, mode="clip")  # another mode would copy twice


@dataclass(frozen=True, slots=True, eq=False)
class LazyPixelStore:
    """Images decoded on demand, for sources that do not fit in memory."""

    source: Source
    size_px: int

    def images(self, ids_B: IdArray, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Decode these images; BadSampleError if one cannot be decoded."""
        # sources read ascending ids fastest: a row group once, not once per image
        order = np.argsort(ids_B, kind="stable")
        pixels, bad = decode_range(self.source, ids_B[order], self.size_px)
        if bad:
            raise bad_sample_error(bad)
        unsorted = np.empty_like(pixels) if out is None else out
        unsorted[order] = pixels
        return unsorted


def bad_sample_error(bad: Sequence[BadSample]) -> BadSampleError:
    """The error that names the first ten bad samples."""
    return BadSampleError([sample.key for sample in bad[:10]], bad[0].reason, len(bad))


def chunks_of(num_samples: int, chunk: int = _CHUNK) -> list[tuple[int, int]]:
    """Ranges [start, stop) that cover 0..num_samples - 1."""
    return [(start, min(start + chunk, num_samples)) for start in range(0, num_samples, chunk)]


def usable_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_range(
    source: Source, ids_M: Sequence[int] | IdArray, size_px: int
) -> tuple[NDArray[np.uint8], list[BadSample]]:
    """Read samples on this thread and decode them on a few others.

    Args:
        source: the opened source.
        ids_M: M ids; ascending ids are read fastest.
        size_px: height and width to scale to.

    Returns:
        (M, size_px, size_px, 3) uint8, black where a sample is bad, and the bad samples.
    """
    pixels = np.zeros((len(ids_M), size_px, size_px, 3), np.uint8)
    threads = min(_MOST_THREADS, usable_cores())
    at_once = max(1, min(_SLICE, len(ids_M) // (2 * threads)))

    def decode(first: int, raws: list[RawImage]) -> list[tuple[int, str]]:
        failed = []
        with quietly():
            for place, raw in enumerate(raws, first):
                try:
                    pixels[place] = to_pixels(raw, size_px)
                except UndecodableError as error:
                    failed.append((place, str(error)))
        return failed

    read = (raw for _, raw in source.read(ids_M))  # type: ignore[arg-type]
    futures: deque[Future[list[tuple[int, str]]]] = deque()
    failures: list[tuple[int, str]] = []
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(ids_M), at_once):
            if len(futures) > 4 * threads:  # bounds the encoded images in memory when reading outruns decoding
                failures += futures.popleft().result()
            futures.append(pool.submit(decode, first, list(itertools.islice(read, at_once))))
        for future in futures:
            failures += future.result()
    keys = source.keys([int(ids_M[place]) for place, _ in failures])
    bad = [BadSample(int(ids_M[place]), key, reason) for (place, reason), key in zip(failures, keys, strict=True)]
    return pixels, bad
