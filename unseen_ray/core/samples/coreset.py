"""The kept samples, and the stage in which each was picked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray
from unseen_ray.core.seeds import tie_keys

__all__ = ["Coreset"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coreset:
    """The kept samples of a run.

    Attributes:
        ids: (M,) int64, strictly increasing.
        stages: (M,) int32, the stage in which each was picked.
        scores: (M,) float32, the score by which each was picked.
    """

    ids: IdArray
    stages: NDArray[np.int32]
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.ids)

    def in_order(self, seed: int) -> IdArray:
        """(M,) ids in the order in which they were picked: by stage, then by score, ties by the seeded hash of the id."""
        return self.ids[np.lexsort((tie_keys(self.ids, seed), -self.scores, self.stages))]

    def first(self, count: int, seed: int) -> IdArray:
        """(count,) sorted ids that were picked first, see `in_order`."""
        return np.sort(self.in_order(seed)[:count])
