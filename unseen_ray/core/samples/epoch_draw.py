"""What an epoch takes of the training set where it does not take everything: some samples always, the rest drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, positions_of
from unseen_ray.core.seeds import derive, digest_ids, tie_keys

__all__ = ["EpochDraw"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpochDraw:
    """A rule by which every epoch trains on `size` samples: the fixed ones, and others drawn uniformly and anew.

    A draw is a function of (seed, epoch, id), independent from epoch to epoch.

    Attributes:
        fixed_ids: (F,) int64 sorted ids that every epoch takes.
        size: samples of an epoch, F or more.
        seed: selects the draws; non-negative.

    Source: Okanovic et al., Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning (arXiv 2305.18424), for F = 0.
    """

    fixed_ids: IdArray
    size: int
    seed: int

    def positions(self, ids_N: IdArray, epoch: int) -> NDArray[np.intp]:
        """(size,) positions of an epoch's samples, increasing.

        Args:
            ids_N: (N,) int64 sorted ids to draw from, the fixed ones among them.
            epoch: from 0.
        """
        keys = tie_keys(ids_N, derive(self.seed, f"epoch {epoch}"))
        keys[positions_of(self.fixed_ids, ids_N)] = 0
        taken = np.zeros(len(ids_N), bool)
        taken[np.argpartition(keys, self.size - 1)[: self.size]] = True
        return np.flatnonzero(taken)

    def rule(self) -> str:
        """A text that determines it; it is hashed into the names of stored work."""
        return f"{self.size} an epoch, {digest_ids(self.fixed_ids)} in each, seed {self.seed}"
