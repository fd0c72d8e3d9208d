"""Copies within a source: the same pixels, or nearly the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray, LabelArray
from unseen_ray.core.samples.groups import first_of_groups
from unseen_ray.core.samples.near_copies import group_near
from unseen_ray.data.images.pixel_store import chunks_of, decode_range
from unseen_ray.data.sources.info import Source
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError

__all__ = ["Copies", "find_copies"]

_THUMB_PX = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Copies:
    """The copies in a source.

    Attributes:
        groups_R: (R,) int64, the first row of each row's group: its own number where it is no copy and has none.
        labels_R: (R,) the labels.
        unreadable_ids: rows that cannot be decoded; each is a group of its own.
        keys: the key of a row.
    """

    groups_R: IntArray
    labels_R: LabelArray
    unreadable_ids: IntArray
    keys: Callable[[list[int]], list[str]]

    @cached_property
    def copy_ids(self) -> IntArray:
        """(P,) rows whose group has an earlier one."""
        return np.flatnonzero(self.groups_R != np.arange(len(self.groups_R)))

    @cached_property
    def sizes_G(self) -> IntArray:
        """(G,) rows of each group of at least two."""
        sizes = np.bincount(self.groups_R)
        return sizes[sizes > 1]

    @cached_property
    def conflicting_ids(self) -> IntArray:
        """(Q,) copies with another label than the first row of their group."""
        other: NDArray[np.bool_] = self.labels_R[self.copy_ids] != self.labels_R[self.groups_R[self.copy_ids]]
        return self.copy_ids[other]

    def save(self, path: str) -> None:
        """Write the groups as a .npy file, which the configuration's `group` takes."""
        aside = f"{path}.tmp.npy"
        np.save(aside, self.groups_R)
        os.replace(aside, path)

    def pairs(self, ids: IntArray) -> list[tuple[str, str]]:
        """The keys of copies, each after that of the first row of its group."""
        return list(zip(self.keys(self.groups_R[ids].tolist()), self.keys(ids.tolist()), strict=True))


def find_copies(
    source: object, *, near: float | None = None, on_progress: Callable[[tuple[int, int]], None] | None = None
) -> Copies:
    """Find the samples of a source that show the same pixels, at the size at which models see them.

    Args:
        source: as in `PruneConfig`.
        near: also find images whose thumbnails (16 x 16 RGB, less the mean colour, of length 1) have at least this cosine similarity,
            such as images compressed again, scaled, or of other brightness and contrast; above 0, below 1. Holds 3 KB an image, and
            takes time that grows with the square of their number.
        on_progress: called with (images decoded, of how many).

    Raises:
        ConfigError: if `near` is out of its range, or the source is none.
        DataError: if the source cannot be read.
    """
    if near is not None and not (isinstance(near, (int, float)) and 0 < near < 1):
        raise ConfigError(
            f"near={near!r} must be above 0 and below 1: the cosine similarity of near copies, such as 0.97."
        )
    opened = open_source(source_ref(source))  # type: ignore[arg-type]
    info = opened.info
    digests, thumbs, unreadable = _read(opened, near is not None, on_progress)
    groups_R = first_of_groups(digests)
    if thumbs is not None:
        thumbs[groups_R != np.arange(len(groups_R))] = 0  # exact copies need no comparison
        groups_R = group_near(thumbs, near or 0.0)[groups_R]
    return Copies(groups_R=groups_R, labels_R=info.labels_N, unreadable_ids=unreadable, keys=opened.keys)


def _read(
    source: Source, with_thumbs: bool, on_progress: Callable[[tuple[int, int]], None] | None
) -> tuple[IntArray, FloatArray | None, IntArray]:
    """(R,) a number that equal pixels share, (R, D) thumbnails if they are wanted, and the rows that cannot be decoded."""
    total, size_px = len(source.info), source.info.size_px
    number_of: dict[bytes, int] = {}
    numbers, bad = np.empty(total, np.int64), []
    thumbs = np.empty((total, 3 * min(size_px, _THUMB_PX) ** 2), np.float32) if with_thumbs else None
    for start, stop in chunks_of(total):
        pixels, failed = decode_range(source, np.arange(start, stop), size_px)
        for row, image in enumerate(pixels, start):
            numbers[row] = number_of.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), row)
        if thumbs is not None:
            thumbs[start:stop] = _thumbs(pixels)
        bad += [sample.id for sample in failed]
        if on_progress is not None:
            on_progress((stop, total))
    numbers[bad] = -1 - np.array(bad, np.int64)
    if thumbs is not None:
        thumbs[bad] = 0
    return numbers, thumbs, np.array(sorted(bad), np.int64)


def _thumbs(pixels_NHWC: NDArray[np.uint8]) -> FloatArray:
    """(N, D) the mean colours of up to 16 x 16 parts of each image, less the image's, of length 1; zeros for an image of one colour."""
    size = pixels_NHWC.shape[1]
    edges = np.arange(min(size, _THUMB_PX)) * size // min(size, _THUMB_PX)
    sums = np.add.reduceat(np.add.reduceat(pixels_NHWC.astype(np.float32), edges, axis=1), edges, axis=2)
    widths = np.diff(edges, append=size)
    means = sums / (widths[:, None, None] * widths[:, None])
    flat = (means - means.mean(axis=(1, 2), keepdims=True)).reshape(len(pixels_NHWC), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    thumbs: FloatArray = np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3)
    return thumbs
