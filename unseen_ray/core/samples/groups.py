"""Samples that belong together, such as the images of a patient or copies of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, Positions

__all__ = ["NO_GROUPS", "Groups", "first_of_groups", "is_related"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Which rows of a source belong together.

    Attributes:
        of_R: (R,) int64 the group of each row, named after its first row; None if no two rows belong together.
        drop: whether a run takes the first readable row of each group alone, as of copies.
    """

    of_R: IntArray | None = None
    drop: bool = False

    def copies_among(self, ids_N: IdArray) -> IdArray:
        """(M,) those of the ids whose group has a lower one among them, if such rows are to be left out."""
        if self.of_R is None or not self.drop:
            return np.empty(0, np.int64)
        is_copy: NDArray[np.bool_] = first_of_groups(self.of_R[ids_N]) != np.arange(len(ids_N))
        return ids_N[is_copy]


NO_GROUPS = Groups()


def first_of_groups(names_N: IntArray) -> IntArray:
    """(N,) int64, the first sample of each sample's group: how groups are stored, whatever their names were.

    Args:
        names_N: (N,) integers; samples with equal ones form a group.
    """
    _, first_G, group_N = np.unique(np.asarray(names_N, np.int64), return_index=True, return_inverse=True)
    return first_G.astype(np.int64, copy=False)[group_N]


def is_related(groups_N: IntArray, places_M: Positions) -> NDArray[np.bool_]:
    """(N,) whether a sample's group has one of the samples at M places."""
    return np.isin(groups_N, groups_N[places_M])
