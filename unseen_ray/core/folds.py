"""The fold plan: which samples each scoring model trains on, and which it may score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["FoldPlan", "TrainOn", "plan_folds"]

TrainOn = Literal["fold", "complement"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldPlan:
    """K disjoint folds that cover N samples.

    Attributes:
        fold_of_N: (N,) int32, the fold of each sample.
        num_folds: K.
        train_on: "fold": model k trains on fold k and scores the rest, so that a sample gets K-1 votes (UNSEEN,
            Figure 3). "complement": it trains on all but fold k and scores fold k, one vote a sample.
    """

    fold_of_N: NDArray[np.int32]
    num_folds: int
    train_on: TrainOn = "fold"

    def train_ids(self, fold: int) -> IdArray:
        """(M,) int64 sorted ids that the model of `fold` trains on."""
        return np.flatnonzero((self.fold_of_N == fold) == (self.train_on == "fold")).astype(np.int64)

    def unseen_ids(self, fold: int) -> IdArray:
        """(M,) int64 sorted ids that the model of `fold` never sees in training: all that it may score."""
        return np.flatnonzero((self.fold_of_N == fold) != (self.train_on == "fold")).astype(np.int64)


def plan_folds(
    num_samples: int,
    num_folds: int,
    seed: int = 0,
    *,
    labels: IntArray | None = None,
    train_on: TrainOn = "fold",
) -> FoldPlan:
    """Split N samples into K disjoint folds whose sizes differ by at most one.

    The samples are put in the order of a seeded hash, within each class where `labels` are given, and dealt out one
    fold after the other. With labels, the count of a class differs by at most one between folds as well.

    Args:
        num_samples: N.
        num_folds: K, 2 to N.
        seed: which of the partitions; non-negative.
        labels: (N,) integers to stratify by; None for a plain random partition.
        train_on: see `FoldPlan`.

    Returns:
        A `FoldPlan`; the same arguments give the same plan.

    Raises:
        ConfigError: if K is outside 2..N, or `labels` has another length.

    Source: UNSEEN (AAAI 2026), Figure 3 (random equal folds); the stratification is ours.

    >>> plan = plan_folds(10, 3)
    >>> [len(plan.train_ids(fold)) for fold in range(3)]
    [4, 3, 3]
    """
    if not all(isinstance(value, (int, np.integer)) for value in (num_samples, num_folds, seed)) or seed < 0:
        raise ConfigError(
            f"num_samples={num_samples!r}, num_folds={num_folds!r} and seed={seed!r} must be whole numbers, the seed 0 or more."
        )
    if not 2 <= num_folds <= num_samples:
        raise ConfigError(
            f"folds={num_folds} is outside 2..{num_samples} (the number of samples). "
            "With one fold there is no unseen data to score; choose from 2 up, 4 or 5 as a rule."
        )
    if train_on not in ("fold", "complement"):
        raise ConfigError(f"train_on={train_on!r} is neither 'fold' nor 'complement'.")
    keys_N = tie_keys(np.arange(num_samples, dtype=np.int64), derive(seed, "folds"))
    if labels is None:
        order_N = np.argsort(keys_N)
    else:
        if np.shape(labels) != (num_samples,):
            raise ConfigError(f"labels has {len(labels)} entries for {num_samples} samples; give one integer a sample.")
        order_N = np.lexsort((keys_N, labels))
    fold_of_N = np.empty(num_samples, np.int32)
    fold_of_N[order_N] = np.arange(num_samples) % num_folds
    return FoldPlan(fold_of_N=fold_of_N, num_folds=num_folds, train_on=train_on)
