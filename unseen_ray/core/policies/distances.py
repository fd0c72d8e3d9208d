"""Distances between features by blocks of BLAS, in a bounded amount of memory.

More shape suffixes: G the samples of one group (a class, or all), D features, K nearest ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray, Positions
from unseen_ray.errors import ConfigError, FitError

__all__ = [
    "Points",
    "distances_from_median",
    "given_features",
    "nearest_neighbours",
    "points",
    "read_rows",
    "squared_distances",
]

BLOCK_BYTES = 2**26  # of the rows of distances that are held at once
_CHUNK_BYTES = 2**22  # of one product; about what a core's cache holds
_ALIKE = 1e-12  # a squared distance below this part of the squared norm is rounding: the two are the same


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """The features of a group.

    Attributes:
        features: (G, D) float64, or float32 where a block of float64 would be too large; without loss either way.
        norms: (G,) float64 squared norms.
    """

    features: FloatArray
    norms: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.norms)

    def at(self, places: slice | Positions) -> Points:
        """The points at some places."""
        return Points(features=self.features[places], norms=self.norms[places])


def given_features(features_MD: FloatArray | None, use: str) -> FloatArray:
    """The features that a policy was given; ConfigError says how to have some."""
    if features_MD is None:
        raise ConfigError(f"policy {use} looks at features, and none are stored. Set save_features: true.")
    return features_MD


def read_rows(features_MD: FloatArray, rows_G: Positions, dtype: Any) -> FloatArray:
    """Rows of features, which may be a memory map, in the order that is asked for.

    Args:
        features_MD: (M, D) float16 or float32.
        rows_G: (G,) which rows; they are read in the order of the file.
        dtype: of the result.

    Returns:
        (G, D).

    Raises:
        FitError: if one of them is not finite.
    """
    found: FloatArray = np.empty((len(rows_G), features_MD.shape[1]), dtype)
    # In the order of the file, because a memory map reads whole pages.
    as_stored = np.argsort(rows_G)
    step = max(1, _CHUNK_BYTES // (8 * max(features_MD.shape[1], 1)))
    for first in range(0, len(rows_G), step):
        part = as_stored[first : first + step]
        found[part] = features_MD[rows_G[part]]
        finite = np.isfinite(found[part]).all(axis=1)
        if not finite.all():
            raise FitError(
                f"features hold {int((~finite).sum())} rows of {len(part)} that are not finite, the first for candidate "
                f"{int(rows_G[part][~finite].min())}. A policy over features needs numbers: look at the model, or choose without them."
            )
    return found


def distances_from_median(features_MD: FloatArray, labels_M: IntArray) -> NDArray[np.float64]:
    """(M,) Euclidean distances of features from the coordinate-wise median of their class.

    Args:
        features_MD: (M, D) float16 or float32.
        labels_M: (M,) int64 classes.

    Raises:
        FitError: if a feature is not finite.
    """
    distances_M = np.empty(len(labels_M))
    for label in np.unique(labels_M):
        members = np.flatnonzero(labels_M == label)
        features = read_rows(features_MD, members, np.float64)
        distances_M[members] = np.linalg.norm(features - np.median(features, axis=0), axis=1)
    return distances_M


def points(features_MD: FloatArray, rows_G: Positions) -> Points:
    """Read a group's features; FitError if one is not finite."""
    small = len(rows_G) * features_MD.shape[1] * 8 <= 2 * BLOCK_BYTES
    found = read_rows(features_MD, rows_G, np.float64 if small else np.float32)
    return Points(features=found, norms=np.einsum("gd,gd->g", found, found, dtype=np.float64))


def squared_distances(few: Points, many: Points) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Squared Euclidean distances of a few points to many, by chunks of the many; 0 for equal features.

    Products are float64, so that a mean far from 0 costs no digits; the answer is rounded to float32.

    Yields:
        Which of the many, and (few, these) float32.
    """
    rows = few.features.astype(np.float64, copy=False)
    step = max(1, _CHUNK_BYTES // (8 * max(len(few), rows.shape[1], 1)))
    for first in range(0, len(many), step):
        part = slice(first, min(first + step, len(many)))
        squared = rows @ many.features[part].astype(np.float64, copy=False).T
        squared *= -2.0
        squared += few.norms[:, None]
        squared += many.norms[part]
        squared[squared < _ALIKE * few.norms[:, None]] = 0.0
        yield part, np.maximum(squared, 0.0).astype(np.float32)


def nearest_neighbours(group: Points, count: int) -> tuple[Positions, NDArray[np.float32]]:
    """The nearest others of each point; of equally near ones, those that come first.

    Args:
        group: G points.
        count: K, how many, 0 to G - 1.

    Returns:
        (G, K) positions and (G, K) squared distances, in no order.
    """
    size = len(group)
    near_GK, squared_GK = np.empty((size, count), np.intp), np.empty((size, count), np.float32)
    if not count:
        return near_GK, squared_GK
    step = max(16, BLOCK_BYTES // (13 * size))  # float32 distances, int64 places, a mask
    for first in range(0, size, step):
        rows = np.arange(first, min(first + step, size))
        squared = np.empty((len(rows), size), np.float32)
        for part, chunk in squared_distances(group.at(slice(first, first + step)), group):
            squared[:, part] = chunk
        squared[rows - first, rows] = np.inf
        near_GK[rows] = _smallest(squared, count)
        squared_GK[rows] = np.take_along_axis(squared, near_GK[rows], axis=1)
    return near_GK, squared_GK


def _smallest(values: NDArray[np.float32], count: int) -> Positions:
    """(rows, count) places of the smallest of each row; ties to the first."""
    places = np.argpartition(values, count - 1, axis=1)[:, :count].copy()
    largest = np.take_along_axis(values, places, axis=1).max(axis=1, keepdims=True)
    for row in np.flatnonzero((values <= largest).sum(axis=1) > count):
        places[row] = np.argsort(values[row], kind="stable")[:count]
    return places
