"""Guards: which samples probably have a wrong label, since selecting hard samples first would otherwise collect them.

A guard takes those columns of the merged scores of stage 0 that its signature names, one row per candidate, and returns (M,) bool,
True for a suspect. Policies then see only the other candidates, so their shares and quantiles refer to these.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, RowBlocks, as_blocks
from unseen_ray.core.policies.base import best_first
from unseen_ray.core.seeds import tie_keys
from unseen_ray.core.stats import is_near_chance
from unseen_ray.errors import ConfigError

__all__ = ["aum", "confident_learning", "label_margin", "prune_by_noise_rate", "unlikely_label"]

_ROUNDING = 1e-6
_CREDIBLE_FROM = 0.4
_PAIRS = 2**20  # of a sample and a class that are compared at once

_Margins = tuple[IntArray, FloatArray, NDArray[np.uint64], IntArray]  # pairs of classes, margins, tie keys, rows or -1


def confident_learning(
    *, probs_MC: FloatArray | RowBlocks, labels_M: IntArray, plain: bool = False
) -> NDArray[np.bool_]:
    """Suspect samples that are confidently predicted as another class (the off-diagonal of the confident joint); needs N x C probabilities.

    The threshold of a class is the mean probability of this class over the samples labelled with it. A sample is counted for the
    most probable class whose threshold it reaches, and suspected if that is not its label. Samples whose label is the most probable
    class of all are left out, as cleanlab does: they reach another class's threshold only because that is low.

    Args:
        probs_MC: (M, C) mean out-of-fold probabilities, whole or in blocks, which are read twice.
        labels_M: (M,) int64 given classes, read by slices as the blocks are.
        plain: suspect those too, as the equation says.

    Returns:
        (M,) bool.

    Raises:
        ConfigError: if `plain` is neither true nor false.

    Source: Northcutt, Jiang and Chuang, Confident Learning (JAIR 2021), equation 1; cleanlab's `filter_by="confident_learning"`.
    """
    if not isinstance(plain, bool):
        raise ConfigError(f"guard option plain={plain!r} is neither true nor false.")
    probs = as_blocks(probs_MC)
    suspects = np.empty(probs.shape[0], bool)
    for rows, labels, counted, is_first in _counted_for(probs, labels_M):
        suspects[rows] = (counted >= 0) & (counted != labels) & (plain | ~is_first)
    return suspects


def prune_by_noise_rate(
    *, probs_MC: FloatArray | RowBlocks, labels_M: IntArray, ids_M: IdArray, seed: int
) -> NDArray[np.bool_]:
    """Suspect of each pair of classes as many samples as the calibrated confident joint counts, by margin; needs N x C probabilities.

    The counts of `confident_learning` leave out samples that reach no threshold. Here each class's counts are scaled to the number of
    its samples, and for n counts of label i as class j the n samples labelled i with the largest p_j - p_i are suspected, but for
    those whose label is the most probable class.

    Args:
        probs_MC: (M, C) mean out-of-fold probabilities, whole or in blocks, which are read three times.
        labels_M: (M,) int64 given classes, read by slices as the blocks are.
        ids_M: (M,) int64 sample ids, likewise.
        seed: breaks ties.

    Returns:
        (M,) bool.

    Source: Northcutt, Jiang and Chuang, Confident Learning (JAIR 2021), equations 1 to 3 and method 3; cleanlab's default filter.
    """
    probs = as_blocks(probs_MC)
    return _have_largest_margins(probs, labels_M, ids_M, _calibrated_counts(probs, labels_M), seed)


def label_margin(*, label_margin_M: FloatArray, ids_M: IdArray, seed: int, cut: float = 0.1) -> NDArray[np.bool_]:
    """Suspect the share `cut` of the candidates with the smallest margin of the given class.

    This is the cut-off of Zheng et al. by the area under the margin (`aum`), with the out-of-fold margin of the last epoch.

    Args:
        label_margin_M: (M,) the score `label_margin`; 2 is certainly wrong.
        ids_M: (M,) int64 sample ids.
        seed: breaks ties.
        cut: share of the candidates, in [0, 1).

    Returns:
        (M,) bool.

    Raises:
        ConfigError: if `cut` is outside its range.

    Source: Zheng et al., Coverage-centric Coreset Selection (ICLR 2023), section 4.
    """
    return _highest(label_margin_M, ids_M, seed, cut)


def aum(*, aum_M: FloatArray, ids_M: IdArray, seed: int, cut: float = 0.1) -> NDArray[np.bool_]:
    """Suspect the share `cut` of the candidates with the smallest area under the margin; needs scores after every epoch.

    Args:
        aum_M: (M,) the score `aum`: minus the area.
        ids_M: (M,) int64 sample ids.
        seed: breaks ties.
        cut: share of the candidates, in [0, 1).

    Returns:
        (M,) bool.

    Raises:
        ConfigError: if `cut` is outside its range.

    Source: Pleiss et al., AUM (NeurIPS 2020), out of fold; as a cut-off in Zheng et al. (ICLR 2023), section 4.
    """
    return _highest(aum_M, ids_M, seed, cut)


def unlikely_label(
    *, labels_M: IntArray, pred_M: IntArray, p_label_M: FloatArray, many: float = 0.0
) -> NDArray[np.bool_]:
    """Suspect samples that are predicted as another class, and whose label is less than half as probable as by chance.

    Chance is one of the classes that there are, or the share of the class where that is less, so that a rare class is not suspected for
    being rare. Such samples are 6 % of CIFAR-10, of models that are right on 30 to 60 % of it alike: a larger share tells of wrong labels.

    Args:
        labels_M: (M,) int64 given classes.
        pred_M: (M,) int64 classes that most votes predict.
        p_label_M: (M,) mean probability of the given class.
        many: suspect none unless they are more than this share of all, in [0, 1), and the models know the classes: see
            `are_credible`. At 0, suspect them whatever their number.

    Returns:
        (M,) bool.

    Raises:
        ConfigError: if `many` is outside its range.
    """
    _check_share("many", many)
    sizes_C, right = np.bincount(labels_M), int((pred_M == labels_M).sum())
    suspects = are_unlikely(labels_M, pred_M, p_label_M, sizes_C)
    return suspects if are_credible(int(suspects.sum()), right, sizes_C, many) else np.zeros(len(suspects), bool)


def are_credible(suspects: int, right: int, sizes_C: IntArray, many: float) -> bool:
    """Whether so many suspects tell of wrong labels, and not of models that know little.

    Where half of the labels are wrong at random, models that know the classes agree with nearly half of all. Those that agree with
    less than two fifths are most often wrong themselves: on 300 photographs of 50 classes, models that were right on 9 % suspected
    27 % of the labels, which are sound. A random subset without these would be one of easy samples; so `policy: auto` asks this
    whatever its rule names. If the answer is yes, it leaves suspects out of a random subset, too: wrong labels harm it as any other.

    Args:
        suspects: how many there are.
        right: how many labels the models agree with.
        sizes_C: (C,) samples of each class.
        many: the share of all that sound labels do not reach; at 0 the answer is yes: whoever sets the guard decides.
    """
    samples = int(sizes_C.sum())
    agreed = right / max(samples, 1)
    return not many or (suspects > many * samples and agreed >= _CREDIBLE_FROM and not is_near_chance(agreed, sizes_C))


def are_unlikely(labels_M: IntArray, pred_M: IntArray, p_label_M: FloatArray, sizes_C: IntArray) -> NDArray[np.bool_]:
    """(M,) whether a label is what `unlikely_label` suspects: each by itself, so that tables of any length can be read in pieces.

    Args:
        labels_M, pred_M, p_label_M: see `unlikely_label`.
        sizes_C: (C,) how many samples of each class there are in all.
    """
    present, total = int(np.count_nonzero(sizes_C)), int(sizes_C.sum())
    chance_C = np.minimum(1 / max(present, 1), sizes_C / max(total, 1))
    suspects: NDArray[np.bool_] = (pred_M != labels_M) & (p_label_M < 0.5 * chance_C[labels_M])
    return suspects


def allowed(
    suspects_M: NDArray[np.bool_], p_label_M: FloatArray, ids_M: IdArray, budget: int, *, seed: int
) -> NDArray[np.intp]:
    """(L,) sorted positions that a policy may choose from: all but the suspects, plus as many of these as the budget needs.

    Args:
        suspects_M: (M,) bool.
        p_label_M: (M,) mean probability of the given class; needed suspects are taken from the most probable down.
        ids_M: (M,) int64 sample ids.
        budget: how many samples the policy will choose, 0 to M.
        seed: breaks ties.
    """
    free = np.flatnonzero(~suspects_M)
    short = budget - len(free)
    if short <= 0:
        return free
    held = np.flatnonzero(suspects_M)
    return np.sort(np.concatenate([free, held[best_first(p_label_M[held], ids_M[held], seed, short)]]))


def _calibrated_counts(probs: RowBlocks, labels_M: IntArray) -> NDArray[np.int64]:
    """(C, C) how many samples of each given class (rows) belong to each other class, 0 on the diagonal."""
    joint_CC, sizes_C = np.zeros((probs.shape[1],) * 2, np.int64), np.zeros(probs.shape[1], np.int64)
    for _, labels, counted, _ in _counted_for(probs, labels_M):
        np.add.at(joint_CC, (labels[counted >= 0], counted[counted >= 0]), 1)
        sizes_C += np.bincount(labels, minlength=len(sizes_C))
    np.fill_diagonal(joint_CC, np.maximum(joint_CC.diagonal(), 1))  # a class holds at least one sample of its own
    shares_CC = joint_CC * (sizes_C / joint_CC.sum(axis=1))[:, None]
    counts_CC: NDArray[np.int64] = np.floor(shares_CC).astype(np.int64)
    ranks_CC = np.argsort(np.argsort(counts_CC - shares_CC, axis=1, kind="stable"), axis=1)  # largest remainder first
    counts_CC += ranks_CC < (sizes_C - counts_CC.sum(axis=1))[:, None]
    np.fill_diagonal(counts_CC, 0)
    return counts_CC


def _counted_for(
    probs: RowBlocks, labels_M: IntArray
) -> Iterator[tuple[slice, IntArray, NDArray[np.intp], NDArray[np.bool_]]]:
    """By blocks: rows, labels, the most probable class whose threshold a sample reaches, -1 if none, and `_are_first_choice`."""
    # the mean of equal probabilities may round to just above them; the slack lets such samples reach it
    thresholds_C = _thresholds(probs, labels_M) - _ROUNDING
    for rows, block in probs:
        labels = labels_M[rows]
        reached = block >= thresholds_C
        counted = np.where(reached.any(axis=1), np.where(reached, block, -1.0).argmax(axis=1), -1)
        yield rows, labels, counted, _are_first_choice(block, labels)


def _are_first_choice(probs_BC: FloatArray, labels_B: IntArray) -> NDArray[np.bool_]:
    """(B,) whether the label is the most probable class, or as probable but for rounding."""
    first: NDArray[np.bool_] = probs_BC[np.arange(len(probs_BC)), labels_B] + _ROUNDING >= probs_BC.max(axis=1)
    return first


def _thresholds(probs: RowBlocks, labels_M: IntArray) -> NDArray[np.float64]:
    """(C,) mean probability of each class over the samples labelled with it; infinite for a class without samples."""
    sums_C, sizes_C = np.zeros(probs.shape[1]), np.zeros(probs.shape[1], np.int64)
    for rows, block in probs:
        labels = labels_M[rows]
        # one after another, so that the sums do not depend on where blocks end
        np.add.at(sums_C, labels, block[np.arange(len(block)), labels].astype(np.float64))
        sizes_C += np.bincount(labels, minlength=len(sizes_C))
    return np.where(sizes_C > 0, sums_C / np.maximum(sizes_C, 1), np.inf)


def _have_largest_margins(
    probs: RowBlocks, labels_M: IntArray, ids_M: IdArray, counts_CC: NDArray[np.int64], seed: int
) -> NDArray[np.bool_]:
    """(M,) whether a sample labelled i is, for some j, among the `counts_CC[i, j]` of this label with the largest p_j - p_i.

    Those whose label is the most probable class count among them, but are not marked.
    """
    least_CC = np.where(counts_CC > 0, -np.inf, np.inf)  # what a margin must reach to be among them
    found: _Margins = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.uint64), np.empty(0, np.int64)
    more, count = [found], 0
    for start, block in _narrow(probs):
        rows = slice(start, start + len(block))
        labels, keys = labels_M[rows], tie_keys(ids_M[rows], seed)
        margins = block - block[np.arange(len(block)), labels][:, None]
        at, other = np.nonzero(margins >= least_CC[labels])
        marked = np.where(_are_first_choice(block, labels), -1, np.arange(rows.start, rows.stop))
        pairs = np.ravel_multi_index((labels[at], other), counts_CC.shape)
        more.append((pairs, margins[at, other], keys[at], marked[at]))
        count += len(at)
        if count > max(len(found[0]), _PAIRS):
            found = _largest(more, counts_CC, least_CC)
            more.append(found)
            count = 0
    suspects = np.zeros(probs.shape[0] + 1, bool)  # the last for those that are not marked
    suspects[_largest(more, counts_CC, least_CC)[3]] = True
    return suspects[:-1]


def _largest(pieces: list[_Margins], counts_CC: NDArray[np.int64], least_CC: FloatArray) -> _Margins:
    """Of each pair of classes the largest margins, as many as are counted; empties `pieces`, raises `least_CC` to the last."""
    pair_L, margin_L, key_L, row_L = (np.concatenate(column) for column in zip(*pieces, strict=True))
    pieces.clear()
    order = np.lexsort((key_L, -margin_L, pair_L))
    pairs = pair_L[order]
    # places to give, with this
    left_L = counts_CC.ravel()[pairs] - np.arange(len(pairs)) + np.searchsorted(pairs, pairs)
    is_last, held = order[left_L == 1], order[left_L > 0]
    least_CC.ravel()[pair_L[is_last]] = margin_L[is_last]
    return pair_L[held], margin_L[held], key_L[held], row_L[held]


def _narrow(probs: RowBlocks) -> Iterator[tuple[int, FloatArray]]:
    """The same in smaller blocks, each with the number of its first row."""
    step = max(_PAIRS // probs.shape[1], 1)
    for rows, block in probs:
        for start in range(0, len(block), step):
            yield rows.start + start, block[start : start + step]


def _highest(scores_M: FloatArray, ids_M: IdArray, seed: int, cut: float) -> NDArray[np.bool_]:
    _check_share("cut", cut)
    suspects = np.zeros(len(ids_M), bool)
    suspects[best_first(scores_M, ids_M, seed, round(cut * len(ids_M)))] = True
    return suspects


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"guard option {name}={value!r} is not in [0, 1): it is a share of the samples.")
