"""Guards: which samples probably have a wrong label, since selecting hard samples first would otherwise collect them.

A guard takes those columns of the merged scores of stage 0 that its signature names, one row per candidate, and returns (M,) bool,
True for a suspect. Policies then see only the other candidates, so their shares and quantiles refer to these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.base import best_first
from unseen_ray.core.seeds import tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["aum", "confident_learning", "label_margin"]

_ROUNDING = 1e-6


def confident_learning(*, probs_MC: FloatArray, labels_M: IntArray) -> NDArray[np.bool_]:
    """Suspect samples that are confidently predicted as another class (the off-diagonal of the confident joint); needs N x C.

    The threshold of a class is the mean probability of this class over the samples labelled with it. A sample is counted for the
    most probable class whose threshold it reaches, and suspected if that is not its label.

    Args:
        probs_MC: (M, C) mean out-of-fold probabilities.
        labels_M: (M,) int64 given classes.

    Returns:
        (M,) bool.

    Source: Northcutt, Jiang and Chuang, Confident Learning (JAIR 2021), equation 1.
    """
    num_classes = probs_MC.shape[1]
    own_M = probs_MC[np.arange(len(labels_M)), labels_M].astype(np.float64)
    sizes_C = np.bincount(labels_M, minlength=num_classes)
    thresholds_C = np.bincount(labels_M, weights=own_M, minlength=num_classes) / np.maximum(sizes_C, 1)
    thresholds_C[sizes_C == 0] = np.inf  # a class without samples has no threshold to reach
    # the mean of equal probabilities may round to just above them; the slack lets such samples reach it
    reached_MC = probs_MC >= thresholds_C - _ROUNDING
    best_M = np.where(reached_MC, probs_MC, -1.0).argmax(axis=1)
    suspects: NDArray[np.bool_] = reached_MC.any(axis=1) & (best_M != labels_M)
    return suspects


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
    order = np.lexsort((tie_keys(ids_M[held], seed), -p_label_M[held]))
    return np.sort(np.concatenate([free, held[order[:short]]]))


def _highest(scores_M: FloatArray, ids_M: IdArray, seed: int, cut: float) -> NDArray[np.bool_]:
    if isinstance(cut, bool) or not isinstance(cut, (int, float)) or not 0 <= cut < 1:
        raise ConfigError(f"guard option cut={cut!r} is not in [0, 1): it is the share of samples to suspect.")
    suspects = np.zeros(len(ids_M), bool)
    suspects[best_first(scores_M, ids_M, seed)[: round(cut * len(ids_M))]] = True
    return suspects
