"""The stored features of a run: the penultimate activations of one model for every sample, for policies that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, positions_of
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import FEATURES
from unseen_ray.storage.filesystem import Folder

__all__ = ["StoredFeatures", "load_features"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredFeatures:
    """Features by id.

    Attributes:
        ids_N: (N,) int64, strictly rising.
        values_ND: (N, D) float16.
    """

    ids_N: IdArray
    values_ND: FloatArray

    def of(self, ids_M: IdArray) -> FloatArray:
        """(M, D) features of some samples."""
        rows: FloatArray = self.values_ND[positions_of(ids_M, self.ids_N)]
        return rows


def load_features(folder: Folder, files: Mapping[str, str], ids_N: IdArray) -> StoredFeatures | None:
    """The features of a run; None if it stores none.

    Args:
        folder: the run's.
        files: SHA-256 of its files by name.
        ids_N: the candidates of stage 0.

    Raises:
        StorageError: if they are missing or damaged.
    """
    if FEATURES not in files:
        return None
    # Rows are those of stage 0, whose ids are stored with its scores alone.
    values = folder.read_array(FEATURES, files[FEATURES])
    if len(values) != len(ids_N):
        raise StorageError(f"{folder.path(FEATURES)} has {len(values)} rows for {len(ids_N)} candidates.")
    return StoredFeatures(ids_N, np.asarray(values))
