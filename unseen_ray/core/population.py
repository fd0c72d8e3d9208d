"""The samples that take part in a run: the source's rows less the holdout and less what cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unseen_ray.core.arrays import IdArray, IntArray, first_of_each_class, positions_of
from unseen_ray.core.seeds import derive, tie_keys

__all__ = ["Population", "make_population"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Population:
    """The ids of a run with their labels.

    Attributes:
        ids_N: (N,) int64 row numbers of the source, strictly rising.
        labels_N: (N,) int64 their classes.
        holdout_ids: (H,) int64 rows set aside: never trained on, scored or kept.
        num_classes: C.
    """

    ids_N: IdArray
    labels_N: IntArray
    holdout_ids: IdArray
    num_classes: int

    def __len__(self) -> int:
        return len(self.ids_N)

    def labels_of(self, ids_M: IdArray) -> IntArray:
        """(M,) labels of ids that take part; ValueError if one does not."""
        return self.labels_N[positions_of(ids_M, self.ids_N)]

    def class_counts(self, ids_M: IdArray | None = None) -> IntArray:
        """(C,) samples of each class, of all or of the given ids."""
        labels = self.labels_N if ids_M is None else self.labels_of(ids_M)
        return np.bincount(labels, minlength=self.num_classes)


def make_population(
    labels_N: IntArray, num_classes: int, *, holdout: float = 0.0, seed: int = 0, skipped: IdArray | None = None
) -> Population:
    """Set the holdout aside and leave out the skipped rows.

    Each class gives `round(holdout * N_c)` samples to the holdout, but never its last one; which ones is decided by
    the seeded hash of the id.

    Args:
        labels_N: (rows of the source,) int64 classes.
        num_classes: C.
        holdout: fraction in [0, 1).
        seed: the run's seed.
        skipped: ids of rows that cannot be read.
    """
    ids = np.arange(len(labels_N), dtype=np.int64)
    if skipped is not None and len(skipped):
        ids = np.setdiff1d(ids, skipped)
    labels = labels_N[ids]
    held = np.zeros(len(ids), bool)
    if holdout > 0:
        order = np.argsort(tie_keys(ids, derive(seed, "holdout")))
        counts_C = np.bincount(labels, minlength=num_classes)
        quota_C = np.minimum(np.round(holdout * counts_C).astype(np.int64), np.maximum(counts_C - 1, 0))
        held[first_of_each_class(order, labels, quota_C)] = True
    return Population(ids_N=ids[~held], labels_N=labels[~held], holdout_ids=ids[held], num_classes=num_classes)
