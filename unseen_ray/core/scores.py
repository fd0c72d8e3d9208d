"""Scores of samples from a model's log-probabilities. For every score, higher is kept first.

Each function takes (N, C) natural-log class probabilities and (N,) labels and returns (N,) float32. Log-probabilities
need no epsilon. `1 - p` of a nearly certain sample is the sum of the other classes' probabilities, where `1 - exp(log p)` would round
many easy samples to the same score. Scores with a parameter of `OF_ONE_MODEL` need one of our models, not just probabilities;
`epoch_view` shares with other scores of the same batch what is computed once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.core.predictions import EpochView
from unseen_ray.errors import ConfigError

__all__ = ["el2n", "entropy", "grand", "label_margin", "least_confidence", "loss", "margin"]

OF_ONE_MODEL = ("head_norm_N", "max_logit_N")
"""What a score may take beside the log-probabilities: (N,) norm of (h, 1), the last layer's input; (N,) largest logit."""


def entropy(log_probs_NC: FloatArray, labels_N: IntArray, *, epoch_view: EpochView | None = None) -> FloatArray:
    """Entropy of the predicted distribution, -sum p ln p: 0 for a certain model, ln C for a uniform prediction.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here, part of every score's signature.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32 in [0, ln C], in nats.

    Source: Shannon (1948); scored out of fold in UNSEEN (AAAI 2026), Figure 1.
    """
    return _score(_entropy, log_probs_NC, labels_N, epoch_view)


def margin(log_probs_NC: FloatArray, labels_N: IntArray, *, epoch_view: EpochView | None = None) -> FloatArray:
    """One minus the gap between the two largest probabilities, 1 - (p1 - p2): 0 for a certain model, 1 for a tie.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32 in [0, 1].

    Source: Scheffer, Decomain and Wrobel (2001); UNSEEN (AAAI 2026), Figure 4.
    """
    return _score(_margin, log_probs_NC, labels_N, epoch_view)


def least_confidence(
    log_probs_NC: FloatArray,
    labels_N: IntArray,
    *,
    space: str = "prob",
    max_logit_N: FloatArray | None = None,
    epoch_view: EpochView | None = None,
) -> FloatArray:
    """One minus the largest class probability: 0 for a certain model, 1 - 1/C for a uniform prediction.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here.
        space: `prob`, or `logit` for minus the largest logit, which some implementations call least confidence.
        max_logit_N: (N,) the largest logit, for `space: logit`.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32 in [0, 1 - 1/C]; unbounded for `space: logit`.

    Raises:
        ConfigError: if `space` is neither, or is `logit` and the logits are unknown.

    Source: Lewis and Gale (1994); UNSEEN (AAAI 2026), Figure 4, on probabilities.
    """
    if space not in ("prob", "logit"):
        raise ConfigError(f"score option space={space!r} is neither prob nor logit.")
    if space == "prob":
        return _score(operator.attrgetter("doubt_top_B"), log_probs_NC, labels_N, epoch_view)
    if max_logit_N is None:
        raise ConfigError(
            "score least_confidence with space: logit needs a model's logits, but there are only probabilities. Use space: prob."
        )
    return _float32(-max_logit_N)


def loss(log_probs_NC: FloatArray, labels_N: IntArray, *, epoch_view: EpochView | None = None) -> FloatArray:
    """Cross-entropy of the true class, -ln p_y.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32, 0 or more, in nats.
    """
    return _score(_loss, log_probs_NC, labels_N, epoch_view)


def el2n(log_probs_NC: FloatArray, labels_N: IntArray, *, epoch_view: EpochView | None = None) -> FloatArray:
    """Norm of the error vector, ||p - onehot(y)||.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32 in [0, sqrt 2].

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021), for one model; votes give the mean.
    """
    return _score(operator.attrgetter("error_norm_B"), log_probs_NC, labels_N, epoch_view)


def grand(
    log_probs_NC: FloatArray, labels_N: IntArray, *, head_norm_N: FloatArray, epoch_view: EpochView | None = None
) -> FloatArray:
    """Norm of the loss's gradient in the last layer, ||p - onehot(y)|| ||(h, 1)||.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.
        head_norm_N: (N,) norm of (h, 1), where h is the input of the last linear layer; of h if that has no bias.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32, 0 or more, independent of the batch.

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021), GraNd, in closed form for the last layer.
    """
    return _float32(el2n(log_probs_NC, labels_N, epoch_view=epoch_view) * head_norm_N)


def label_margin(log_probs_NC: FloatArray, labels_N: IntArray, *, epoch_view: EpochView | None = None) -> FloatArray:
    """One minus the margin of the true class, 1 - (p_y - max of the others): 0 is certainly right, 2 certainly wrong.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.
        epoch_view: the same predictions as a view that other scores share; made if None.

    Returns:
        (N,) float32 in [0, 2].

    Source: the margin of Bartlett et al. (1998), in probabilities; known as "normalized margin" in confident learning.
    """
    return _score(_label_margin, log_probs_NC, labels_N, epoch_view)


_FLOOR = float(np.log(np.finfo(np.float32).tiny))
_BLOCK = 1 << 18  # probabilities at once, which the cache holds


def _score(
    values_of: Callable[[EpochView], FloatArray], log_probs_NC: FloatArray, labels_N: IntArray, shared: EpochView | None
) -> FloatArray:
    """(N,) float32 values of a view that is shared, or of the samples block by block."""
    if shared is not None:
        return _float32(values_of(shared))
    rows = max(_BLOCK // max(log_probs_NC.shape[1], 1), 1)
    starts = range(0, len(log_probs_NC), rows)
    blocks = [EpochView(log_probs_NC[start : start + rows], labels_N[start : start + rows]) for start in starts]
    return _float32(np.concatenate([values_of(block) for block in blocks] or [np.empty(0, np.float32)]))


def _entropy(view: EpochView) -> FloatArray:
    with np.errstate(invalid="ignore"):
        terms_BC = view.probs_BC * view.log_probs_BC
    near = np.flatnonzero(view.is_summed(view.log_p_top_B))
    top = near, view.top_B[near]
    terms_BC[top] = view.probs_BC[top] * np.log1p(-view.doubt_top_B[near])
    sums_B = terms_BC.sum(axis=1)
    if (unknown := np.flatnonzero(np.isnan(sums_B))).size:  # 0 * -inf, which is 0 here
        sums_B[unknown] = (view.probs_BC[unknown] * np.maximum(view.log_probs_BC[unknown], _FLOOR)).sum(axis=1)
    entropy_B: FloatArray = -sums_B
    return entropy_B


def _margin(view: EpochView) -> FloatArray:
    values_B = np.minimum(view.doubt_top_B + np.exp(view.log_second_B), 1)
    return np.where(view.log_second_B == view.log_p_top_B, 1, values_B)


def _label_margin(view: EpochView) -> FloatArray:
    values_B = view.doubt_label_B + np.exp(view.log_top_other_B)
    return np.where(view.log_top_other_B == view.log_p_label_B, 1, values_B)


def _loss(view: EpochView) -> FloatArray:
    losses_B = -view.log_p_label_B
    near = np.flatnonzero(view.is_summed(view.log_p_label_B))
    losses_B[near] = -np.log1p(-view.doubt_label_B[near])
    return losses_B


def _float32(values_N: FloatArray) -> FloatArray:
    return values_N.astype(np.float32) + np.float32(0)  # turns -0 into 0
