"""The fold plan: which samples each scoring model trains on, and which it may score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, LabelArray
from unseen_ray.core.samples.dealing import deal_groups
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["ROWS_DEALT_AT_ONCE", "Dealing", "FoldPlan", "TrainOn", "begin_dealing", "blocks_of", "plan_folds"]

TrainOn = Literal["fold", "complement"]

ROWS_DEALT_AT_ONCE = 2**24
"""Samples that are shuffled together; larger data sets are split into blocks of this size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldPlan:
    """K disjoint folds that cover N samples.

    Attributes:
        fold_of_N: (N,) int32, the fold of each sample.
        num_folds: K.
        train_on: "fold": model k trains on fold k and scores the rest, so that each sample gets K-1 votes (UNSEEN,
            Figure 3). "complement": it trains on all but fold k and scores fold k, one vote per sample.
    """

    fold_of_N: NDArray[np.int32]
    num_folds: int
    train_on: TrainOn = "fold"

    def train_ids(self, fold: int) -> IdArray:
        """(M,) int64 sorted ids that the model of `fold` trains on."""
        return np.flatnonzero((self.fold_of_N == fold) == (self.train_on == "fold")).astype(np.int64)

    def unseen_ids(self, fold: int) -> IdArray:
        """(M,) int64 sorted ids that the model of `fold` does not train on, and so may score."""
        return np.flatnonzero((self.fold_of_N == fold) != (self.train_on == "fold")).astype(np.int64)


def plan_folds(
    num_samples: int,
    num_folds: int,
    seed: int = 0,
    *,
    labels: IntArray | None = None,
    groups: IntArray | None = None,
    train_on: TrainOn = "fold",
    block_rows: int = ROWS_DEALT_AT_ONCE,
) -> FoldPlan:
    """Split N samples into K disjoint folds whose sizes differ by at most one.

    The samples are sorted by a seeded hash, within each class if `labels` are given, and assigned to the folds in
    turn. With labels, the sizes of each class also differ by at most one between folds.

    Args:
        num_samples: N.
        num_folds: K, 2 to N.
        seed: non-negative seed of the hash.
        labels: (N,) integers to stratify by; None for a plain random partition.
        groups: (N,) integers; samples with equal ones get the same fold, and the sizes are as even as that allows. None without.
        train_on: see `FoldPlan`.
        block_rows: number of samples shuffled at a time, which bounds the memory; another number gives another plan.

    Returns:
        A `FoldPlan`; the same arguments give the same plan.

    Raises:
        ConfigError: if K is outside 2..N, or `labels` or `groups` has the wrong length.

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
            "With one fold there is no unseen data to score; choose 2 or more, usually 4 or 5."
        )
    if train_on not in ("fold", "complement"):
        raise ConfigError(f"train_on={train_on!r} is neither 'fold' nor 'complement'.")
    for name, given in (("labels", labels), ("groups", groups)):
        if given is not None and np.shape(given) != (num_samples,):
            raise ConfigError(
                f"{name} has {len(given)} entries for {num_samples} samples; give one integer per sample."
            )
    labels = None if labels is None else np.unique(labels, return_inverse=True)[1]
    if groups is not None and len(np.unique(groups)) < num_samples:
        dealt_N, _ = deal_groups(np.asarray(groups), _classes(labels, 0, num_samples), num_folds, seed)
        return FoldPlan(fold_of_N=dealt_N, num_folds=num_folds, train_on=train_on)
    blocks = blocks_of(num_samples, block_rows)
    dealing = begin_dealing(num_folds, seed, (_classes(labels, *block) for block in blocks), block_rows)
    fold_of_N = np.empty(num_samples, np.int32)
    for number, (start, stop) in enumerate(blocks):
        fold_of_N[start:stop] = dealing.folds_of(number, _classes(labels, start, stop))
    return FoldPlan(fold_of_N=fold_of_N, num_folds=num_folds, train_on=train_on)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dealing:
    """Assigns the samples of any one block to folds, without the other blocks.

    The samples get consecutive turns, class after class and within a class block after block, and turn t goes to fold t mod K.
    So the sizes of the folds differ by at most one, in total and in each class.

    Attributes:
        num_folds: K.
        seed: the seed of the hash.
        first_BC: (B, C) int64, the turn of the first sample of each class in each block.
        block_rows: samples per block; the last block may be shorter.
    """

    num_folds: int
    seed: int
    first_BC: IntArray
    block_rows: int

    def folds_of(self, block: int, labels_M: LabelArray) -> LabelArray:
        """(M,) the fold of each sample of a block with the classes `labels_M`, in the narrowest unsigned type."""
        start = block * self.block_rows
        keys_M = tie_keys(np.arange(start, start + len(labels_M), dtype=np.int64), self.seed)
        by_key_M = np.argsort(keys_M)  # need not be stable: no two keys are equal
        narrow = np.min_scalar_type(self.first_BC.shape[1] - 1)  # numpy's stable sort is a radix sort up to 16 bits
        order_M = by_key_M[np.argsort(labels_M[by_key_M].astype(narrow), kind="stable")]
        sizes_C = np.bincount(labels_M, minlength=self.first_BC.shape[1])
        shift_C = self.first_BC[block] - (np.cumsum(sizes_C) - sizes_C)  # from the position in the block to the turn
        folds_M = np.empty(len(labels_M), np.min_scalar_type(self.num_folds - 1))
        folds_M[order_M] = (np.arange(len(labels_M)) + np.repeat(shift_C, sizes_C)) % self.num_folds
        return folds_M


def begin_dealing(num_folds: int, seed: int, blocks: Iterable[LabelArray], block_rows: int) -> Dealing:
    """Count the classes of each block and plan how samples are assigned to folds.

    Args:
        num_folds: K.
        seed: the seed of the plan.
        blocks: (M,) classes of each block; all 0 to ignore classes.
        block_rows: samples per block; the last block may be shorter.
    """
    sizes = [np.bincount(labels_M) for labels_M in blocks]
    sizes_BC = np.zeros((len(sizes), max(map(len, sizes))), np.int64)
    for number, counts_C in enumerate(sizes):
        sizes_BC[number, : len(counts_C)] = counts_C
    sizes_C = sizes_BC.sum(axis=0)
    first_BC = np.cumsum(sizes_C) - sizes_C + np.cumsum(sizes_BC, axis=0) - sizes_BC
    return Dealing(num_folds=num_folds, seed=derive(seed, "folds"), first_BC=first_BC, block_rows=block_rows)


def blocks_of(num_samples: int, block_rows: int) -> list[tuple[int, int]]:
    """[start, stop) of each block."""
    return [(start, min(start + block_rows, num_samples)) for start in range(0, num_samples, block_rows)]


def _classes(labels: IntArray | None, start: int, stop: int) -> LabelArray:
    return np.zeros(stop - start, np.uint8) if labels is None else labels[start:stop]
