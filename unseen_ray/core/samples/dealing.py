"""Whole groups of samples, dealt out to folds or drawn for the holdout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, LabelArray
from unseen_ray.core.samples.groups import Groups
from unseen_ray.core.seeds import derive, digest_ids, tie_keys

__all__ = ["deal_groups", "digest_of_groups", "draw_groups"]


def digest_of_groups(groups: Groups) -> str:
    """What determines groups and their use; empty without any."""
    return "" if groups.of_R is None else f"{'drop' if groups.drop else 'keep'} {digest_ids(groups.of_R)}"


def deal_groups(
    groups_N: IntArray, classes_N: LabelArray, num_folds: int, seed: int
) -> tuple[NDArray[np.int32], IntArray]:
    """Assign samples to folds, those of a group to the same one, and each class as evenly as the groups allow.

    The largest groups go first, each to the fold that has the smallest share of its classes, then the fewest samples. Samples without a
    group then level the folds: each class's go to the folds that have the fewest of it, in the order of a seeded hash. Without classes,
    the sizes of folds differ by at most the largest group; with classes, those of each class do, and the sizes follow.

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
    members = _Members.of(groups_N, classes_N)
    totals_C = np.bincount(classes_N)
    many = np.flatnonzero(members.size_G > 1)
    many = many[np.lexsort((keys_N[members.first_G[many]], -members.size_G[many]))]
    fold_G = np.full(len(members.size_G), -1, np.int32)
    fold_G[many], have_CK = _largest_first(members, many, totals_C, num_folds)
    return _with_rest(fold_G[members.group_N], np.array(have_CK, np.int64).T, classes_N, keys_N)


def draw_groups(groups_N: IntArray, classes_N: IntArray, quota_C: IntArray, keys_N: NDArray[np.uint64]) -> IdArray:
    """(M,) positions of samples drawn in the order of their keys, whole groups only, in all at most as many as the quotas.

    A group comes with the key of its first sample, and is drawn if the quotas of all its classes have room for it. What is then still
    missing is drawn by the sum of the quotas alone, but no class loses its last sample. Of samples without groups, these are the first
    of each class.
    """
    members = _Members.of(groups_N, classes_N)
    order_G = np.argsort(keys_N[members.first_G])
    drawn_G = np.zeros(len(order_G), bool)
    if (np.diff(members.start_G) > 1).any():  # groups of several classes
        drawn_G[members.fitting(order_G, quota_C, int(quota_C.sum()))] = True
    else:
        drawn_G[_first_of_classes(classes_N[members.first_G], members.size_G, order_G, quota_C)] = True
    missing = int(quota_C.sum() - members.size_G[drawn_G].sum())
    held_C = np.bincount(classes_N[drawn_G[members.group_N]], minlength=len(quota_C))
    spare_C = np.bincount(classes_N, minlength=len(quota_C)) - 1 - held_C
    left = order_G[~drawn_G[order_G] & (members.size_G[order_G] <= missing)]
    drawn_G[members.fitting(left, spare_C, missing)] = True
    return np.flatnonzero(drawn_G[members.group_N])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Members:
    """Groups numbered 0 to G - 1, and how many samples of each class they have.

    Attributes:
        group_N: (N,) the number of each sample's group.
        first_G, size_G: (G,) the first sample and the number of samples of each group.
        start_G: (G + 1,) where a group's classes are in the following.
        class_P, count_P: (P,) classes and counts of all pairs of group and class.
    """

    group_N: IntArray
    first_G: IntArray
    size_G: IntArray
    start_G: IntArray
    class_P: IntArray
    count_P: IntArray

    @classmethod
    def of(cls, groups_N: IntArray, classes_N: LabelArray) -> _Members:
        _, first_G, group_N, size_G = np.unique(groups_N, return_index=True, return_inverse=True, return_counts=True)
        classes = int(classes_N.max()) + 1
        pair_P, count_P = np.unique(group_N * classes + classes_N, return_counts=True)
        start_G = np.searchsorted(pair_P, np.arange(len(first_G) + 1) * classes)
        return cls(
            group_N=group_N,
            first_G=first_G,
            size_G=size_G,
            start_G=start_G,
            class_P=pair_P % classes,
            count_P=count_P,
        )

    def fitting(self, groups: IntArray, room_C: IntArray, most: int) -> list[int]:
        """Those of some groups, in order, that there is room for in each class when they come, `most` samples in all."""
        starts, classes, counts = self.start_G.tolist(), self.class_P.tolist(), self.count_P.tolist()
        found, room = [], room_C.tolist()
        for group, size in zip(groups.tolist(), self.size_G[groups].tolist(), strict=True):
            if most <= 0:
                break
            pairs = range(starts[group], starts[group + 1])
            if size <= most and all(counts[pair] <= room[classes[pair]] for pair in pairs):
                found.append(group)
                most -= size
                for pair in pairs:
                    room[classes[pair]] -= counts[pair]
        return found


def _largest_first(
    members: _Members, groups: IntArray, totals_C: IntArray, num_folds: int
) -> tuple[list[int], list[list[int]]]:
    """The fold of each of some groups, and how many samples of each class each fold then has.

    Plain numbers and lists: for a million groups of few classes, arrays take ten times as long.
    """
    have_CK = [[0] * num_folds for _ in range(len(totals_C))]
    size_K, folds = [0] * num_folds, []
    starts, classes, counts = members.start_G.tolist(), members.class_P.tolist(), members.count_P.tolist()
    squares = [int(total) ** 2 or 1 for total in totals_C.tolist()]
    for group in groups.tolist():
        pairs = range(starts[group], starts[group + 1])
        if len(pairs) == 1:
            share_K: list[float] = have_CK[classes[pairs[0]]]  # type: ignore[assignment]
        else:
            weights = [(have_CK[classes[pair]], counts[pair] / squares[classes[pair]]) for pair in pairs]
            share_K = [sum(have_K[fold] * weight for have_K, weight in weights) for fold in range(num_folds)]
        fold = min(range(num_folds), key=lambda fold: (share_K[fold], size_K[fold]))
        folds.append(fold)
        for pair in pairs:
            have_CK[classes[pair]][fold] += counts[pair]
            size_K[fold] += counts[pair]
    return folds, have_CK


def _first_of_classes(class_G: IntArray, size_G: IntArray, groups: IntArray, room_C: IntArray) -> IntArray:
    """As `_Members.fitting`, for groups of one class each and as many samples as there is room for, without a loop over them."""
    found, room_C = [np.empty(0, np.int64)], room_C.copy()
    open_G = groups[np.argsort(class_G[groups], kind="stable")]
    while len(open_G := open_G[size_G[open_G] <= room_C[class_G[open_G]]]):
        upto, of = np.cumsum(size_G[open_G]), class_G[open_G]
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        before = (upto - size_G[open_G])[starts]
        fits = upto - np.repeat(before, np.diff(starts, append=len(of))) <= room_C[of]
        found.append(open_G[fits])
        np.subtract.at(room_C, of[fits], size_G[open_G[fits]])
        open_G = open_G[~fits]  # behind a group that is too large, a smaller one may fit
    return np.concatenate(found)


def _with_rest(
    fold_of_N: NDArray[np.int32], have_KC: IntArray, classes_N: LabelArray, keys_N: NDArray[np.uint64]
) -> tuple[NDArray[np.int32], IntArray]:
    """The folds, with the samples that have none yet, and the sizes."""
    size_K = have_KC.sum(axis=1)
    alone = np.flatnonzero(fold_of_N < 0)
    alone = alone[np.lexsort((keys_N[alone], classes_N[alone]))]
    counts_C = np.bincount(classes_N[alone], minlength=have_KC.shape[1])
    for number, start in zip(np.flatnonzero(counts_C), (np.cumsum(counts_C) - counts_C)[counts_C > 0], strict=True):
        added_K = _levelling(have_KC[:, number], int(counts_C[number]), size_K)
        fold_of_N[alone[start : start + counts_C[number]]] = np.repeat(np.arange(len(have_KC)), added_K)
        size_K += added_K
    return fold_of_N, size_K


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
