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
        drop: whether a run takes one readable row of each group alone, as of copies.
    """

    of_R: IntArray | None = None
    drop: bool = False

    def left_out(self, ids_N: IdArray, keys_N: NDArray[np.uint64]) -> IdArray:
        """(M,) those of the ids whose group has another one with a lower key, if only one of each is wanted."""
        if self.of_R is None or not self.drop:
            return np.empty(0, np.int64)
        # Not by id: where ids follow the classes, the first class would keep all that groups share.
        order = np.argsort(keys_N)
        _, first = np.unique(self.of_R[ids_N][order], return_index=True)
        return np.setdiff1d(ids_N, ids_N[order[first]])


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
