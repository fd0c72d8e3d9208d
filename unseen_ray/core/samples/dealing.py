"""Whole groups of samples, dealt out to folds or drawn for the holdout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, LabelArray
from unseen_ray.core.samples.groups import Groups
from unseen_ray.core.seeds import derive, digest_ids, tie_keys

__all__ = ["deal_groups", "digest_of_groups", "draw_groups"]


def digest_of_groups(groups: Groups) -> str:
    """What determines groups and their use; empty without any."""
    return "" if groups.of_R is None else f"{'drop' if groups.drop else 'keep'} {digest_ids(groups.of_R)}"


def deal_groups(
    groups_N: IntArray, classes_N: LabelArray, num_folds: int, seed: int
) -> tuple[NDArray[np.int32], IntArray]:
    """Assign samples to folds, those of a group to the same one, as evenly as the groups allow.

    The largest groups go first, each to the fold that has the smallest share of its classes, then the fewest samples. Samples without a
    group then level the folds: each class's go to the folds that have the fewest of it, in the order of a seeded hash.

    Args:
        groups_N: (N,) the group of each sample.
        classes_N: (N,) classes that are spread evenly; all 0 to ignore them.
        num_folds: K.
        seed: the seed of the plan.

    Returns:
        (N,) the fold of each sample, and (K,) the sizes of the folds.

    Source: largest first is Graham's rule for even loads (1969); levelling what is left is ours.
    """
    keys_N = tie_keys(np.arange(len(groups_N), dtype=np.int64), derive(seed, "folds"))
    totals_C = np.bincount(classes_N)
    have_KC = np.zeros((num_folds, len(totals_C)), np.int64)
    size_K = np.zeros(num_folds, np.int64)
    fold_of_N = np.full(len(groups_N), -1, np.int32)
    for members in _largest_first(groups_N, keys_N):
        classes, counts = np.unique(classes_N[members], return_counts=True)
        fold = int(np.lexsort((size_K, _shares(have_KC[:, classes], counts, totals_C[classes])))[0])
        fold_of_N[members] = fold
        have_KC[fold, classes] += counts
        size_K[fold] += len(members)
    alone = np.flatnonzero(fold_of_N < 0)
    alone = alone[np.lexsort((keys_N[alone], classes_N[alone]))]
    counts_C = np.bincount(classes_N[alone], minlength=len(totals_C))
    for number, start in zip(np.flatnonzero(counts_C), (np.cumsum(counts_C) - counts_C)[counts_C > 0], strict=True):
        added_K = _levelling(have_KC[:, number], int(counts_C[number]), size_K)
        fold_of_N[alone[start : start + counts_C[number]]] = np.repeat(np.arange(num_folds), added_K)
        size_K += added_K
    return fold_of_N, size_K


def draw_groups(groups_N: IntArray, classes_N: IntArray, quota_C: IntArray, keys_N: NDArray[np.uint64]) -> IdArray:
    """(M,) positions of samples drawn in the order of their keys, whole groups only, at most `quota_C` of each class.

    A group counts as its first sample does: with its key, in its class. Without groups, these are the first samples of each class.
    """
    _, first_G, group_N, size_G = np.unique(groups_N, return_index=True, return_inverse=True, return_counts=True)
    class_G, left_C = classes_N[first_G], quota_C.copy()
    drawn_G = np.zeros(len(first_G), bool)
    open_G = np.lexsort((keys_N[first_G], class_G))
    while len(open_G := open_G[size_G[open_G] <= left_C[class_G[open_G]]]):
        upto_G, of = np.cumsum(size_G[open_G]), class_G[open_G]
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        before = (upto_G - size_G[open_G])[starts]
        fits = upto_G - np.repeat(before, np.diff(starts, append=len(of))) <= left_C[of]
        drawn_G[open_G[fits]] = True
        np.subtract.at(left_C, of[fits], size_G[open_G[fits]])
        open_G = open_G[~fits]  # behind a group that is too large, a smaller one may fit
    return np.flatnonzero(drawn_G[group_N])


def _largest_first(groups_N: IntArray, keys_N: NDArray[np.uint64]) -> list[IdArray]:
    """The members of each group of two or more; equal sizes in the order of a hash."""
    _, first_G, group_N, size_G = np.unique(groups_N, return_index=True, return_inverse=True, return_counts=True)
    related = np.flatnonzero(size_G[group_N] > 1)
    of = group_N[related]
    order = np.lexsort((keys_N[first_G][of], -size_G[of]))  # stable, and no two groups have the same key
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    return np.split(related[order], starts[1:])[: len(starts)]


def _shares(have_KC: IntArray, counts_C: IntArray, totals_C: IntArray) -> FloatArray:
    """(K,) how much each fold has of the classes of a group, by what the group has of them."""
    share_K = np.zeros(len(have_KC))
    for have_K, weight in zip(have_KC.T, counts_C / totals_C**2, strict=True):  # not a dot product, whose bits vary
        share_K += have_K * weight
    return share_K


def _levelling(have_K: IntArray, count: int, size_K: IntArray) -> IntArray:
    """(K,) how many of `count` samples each fold gets, so that the fullest has as few as possible; smaller folds first."""
    order = np.lexsort((size_K, have_K))
    have = have_K[order]
    below = np.cumsum(have)
    raised = int(np.searchsorted(np.arange(1, len(have) + 1) * have - below, count, side="right"))
    level, extra = divmod(count + int(below[raised - 1]), raised)
    added_K = np.zeros_like(have_K)
    added_K[order[:raised]] = level - have[:raised]
    smallest = order[:raised][np.argsort((size_K + added_K)[order[:raised]], kind="stable")]
    added_K[smallest[:extra]] += 1
    return added_K
