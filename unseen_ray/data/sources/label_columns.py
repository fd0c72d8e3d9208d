"""Labels of more rows than the driver should hold in memory: a narrow type in a temporary memory-mapped file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import LabelArray, labels_by_chunk
from unseen_ray.data.sources.info import check_labels
from unseen_ray.errors import ConfigError

__all__ = ["ROWS_IN_MEMORY", "digest_of_labels", "gather_labels"]

ROWS_IN_MEMORY = 16_000_000
"""Labels and tables of up to this many rows are held in memory; longer labels go to a file, in a narrow type."""


def gather_labels(
    pieces: Iterable[NDArray[Any]],
    rows: int,
    *,
    where: str,
    num_classes: int | None,
    rows_in_memory: int = ROWS_IN_MEMORY,
) -> tuple[LabelArray, int]:
    """All labels of a source, checked, and C; see `check_labels`.

    Args:
        pieces: the labels in order, some rows at a time.
        rows: N.
        where: the source's name in messages.
        num_classes: C if the source's metadata states it.
        rows_in_memory: the most rows whose labels are held in memory as int64.

    Returns:
        (N,) int64 labels, or for more than `rows_in_memory` rows the narrowest unsigned type, mapped from an unnamed file; and C.
    """
    if rows <= rows_in_memory:
        return check_labels(np.concatenate([np.empty(0, np.int64), *pieces]), where=where, num_classes=num_classes)
    labels, done, largest = _mapped(rows, (num_classes or 1) - 1), 0, 0
    for piece in pieces:
        if not len(piece):
            continue
        checked, count = check_labels(piece, where=where, num_classes=num_classes, first_row=done)
        largest = max(largest, count - 1)
        if largest > np.iinfo(labels.dtype).max:
            labels = _widened(labels, largest)
        labels[done : done + len(piece)] = checked
        done += len(piece)
    return labels, largest + 1 if num_classes is None else num_classes


def digest_of_labels(labels_N: LabelArray) -> bytes:
    """Labels as bytes for a fingerprint: as int64, or a SHA-256 of that for labels in a file."""
    if labels_N.dtype == np.int64:
        return labels_N.tobytes()
    digest = hashlib.sha256()
    for _, piece in labels_by_chunk(labels_N):
        digest.update(piece.astype("<i8").tobytes())
    return digest.digest()


def _mapped(rows: int, largest: int) -> LabelArray:
    kind = np.min_scalar_type(largest)
    with tempfile.TemporaryFile(prefix="unseen_ray_labels_") as file:  # the map keeps it open
        try:
            # reserve the space now: writing to a map whose disk is full kills the process with SIGBUS
            os.posix_fallocate(file.fileno(), 0, rows * kind.itemsize)
        except OSError as error:
            raise ConfigError(
                f"the labels of {rows} rows take {rows * kind.itemsize / 2**30:.1f} GiB in {tempfile.gettempdir()}: {error}. "
                "Free space there, or set TMPDIR to another folder."
            ) from None
        mapped: LabelArray = np.memmap(file, kind, mode="r+", shape=(rows,))
    return mapped


def _widened(labels: LabelArray, largest: int) -> LabelArray:
    wide = _mapped(len(labels), largest)
    for start, piece in labels_by_chunk(labels):
        wide[start : start + len(piece)] = piece
    return wide
