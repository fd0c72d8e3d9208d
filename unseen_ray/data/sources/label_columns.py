"""Labels of more rows than a driver should hold: as narrow as they can be, in a file that goes with the process."""

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
"""Of labels and tables that are held as they are; of more, labels are narrow and lie in a file."""


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
        pieces: the labels, some rows at a time.
        rows: N.
        where: how messages call the source.
        num_classes: C where the source's metadata states it.
        rows_in_memory: up to how many rows labels are held as int64.

    Returns:
        (N,) int64 up to `rows_in_memory` rows, else as narrow as the classes allow and mapped from a file without a name; and C.
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
    """What stands for labels in a fingerprint: their bytes as int64, of many rows a SHA-256 of these."""
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
            os.posix_fallocate(file.fileno(), 0, rows * kind.itemsize)  # a disk that fills up later ends the process
        except OSError as error:
            raise ConfigError(
                f"the labels of {rows} rows take {rows * kind.itemsize / 2**30:.1f} GiB in {tempfile.gettempdir()}: {error}. "
                "Free space there, or name another folder by TMPDIR."
            ) from None
        mapped: LabelArray = np.memmap(file, kind, mode="r+", shape=(rows,))
    return mapped


def _widened(labels: LabelArray, largest: int) -> LabelArray:
    wide = _mapped(len(labels), largest)
    for start, piece in labels_by_chunk(labels):
        wide[start : start + len(piece)] = piece
    return wide
