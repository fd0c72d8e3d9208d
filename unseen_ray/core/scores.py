"""Scores of samples from a model's log-probabilities. For every score, higher is kept first.

Each function takes (N, C) natural-log class probabilities and (N,) labels and returns (N,) float32. Log-probabilities
need no epsilon: `1 - p` is `-expm1(log p)`, exact for nearly certain samples, where `1 - exp(log p)` would round many
easy samples to the same score. Scores with a parameter of `OF_ONE_MODEL` need one of our models, not just probabilities.
"""

from __future__ import annotations

import numpy as np

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.errors import ConfigError

__all__ = ["el2n", "entropy", "grand", "label_margin", "least_confidence", "loss", "margin"]

OF_ONE_MODEL = ("head_norm_N", "max_logit_N")
"""What a score may take beside the log-probabilities: (N,) norm of (h, 1), the last layer's input; (N,) largest logit."""


def entropy(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """Entropy of the predicted distribution, -sum p ln p: 0 for a certain model, ln C for a uniform prediction.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here, part of every score's signature.

    Returns:
        (N,) float32 in [0, ln C], in nats.

    Source: Shannon (1948); scored out of fold in UNSEEN (AAAI 2026), Figure 1.
    """
    probs_NC = np.exp(log_probs_NC)
    # the floor keeps 0 * -inf, which is NaN, out of the sum
    terms_NC = np.where(probs_NC > 0, probs_NC * np.maximum(log_probs_NC, _FLOOR), 0)
    return _float32(-terms_NC.sum(axis=1))


def margin(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """One minus the gap between the two largest probabilities, 1 - (p1 - p2): 0 for a certain model, 1 for a tie.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here.

    Returns:
        (N,) float32 in [0, 1].

    Source: Scheffer, Decomain and Wrobel (2001); UNSEEN (AAAI 2026), Figure 4.
    """
    if log_probs_NC.shape[1] < 2:
        return np.zeros(len(log_probs_NC), np.float32)
    top_N2 = np.partition(log_probs_NC, -2, axis=1)[:, -2:]
    return _float32(-np.expm1(top_N2[:, 1]) + np.exp(top_N2[:, 0]))


def least_confidence(
    log_probs_NC: FloatArray, labels_N: IntArray, *, space: str = "prob", max_logit_N: FloatArray | None = None
) -> FloatArray:
    """One minus the largest class probability: 0 for a certain model, 1 - 1/C for a uniform prediction.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here.
        space: `prob`, or `logit` for minus the largest logit, which some implementations call least confidence.
        max_logit_N: (N,) the largest logit, for `space: logit`.

    Returns:
        (N,) float32 in [0, 1 - 1/C]; unbounded for `space: logit`.

    Raises:
        ConfigError: if `space` is neither, or is `logit` and the logits are unknown.

    Source: Lewis and Gale (1994); UNSEEN (AAAI 2026), Figure 4, on probabilities.
    """
    if space not in ("prob", "logit"):
        raise ConfigError(f"score option space={space!r} is neither prob nor logit.")
    if space == "prob":
        return _float32(-np.expm1(log_probs_NC.max(axis=1)))
    if max_logit_N is None:
        raise ConfigError(
            "score least_confidence with space: logit needs a model's logits, but there are only probabilities. Use space: prob."
        )
    return _float32(-max_logit_N)


def loss(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """Cross-entropy of the true class, -ln p_y.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.

    Returns:
        (N,) float32, 0 or more, in nats.
    """
    return _float32(-_of_label(log_probs_NC, labels_N))


def el2n(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """Norm of the error vector, ||p - onehot(y)||.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.

    Returns:
        (N,) float32 in [0, sqrt 2].

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021), for one model; votes give the mean.
    """
    errors_NC = np.exp(log_probs_NC.astype(np.float64))  # squares of small float32 errors would vanish
    errors_NC[np.arange(len(labels_N)), labels_N] = -np.expm1(_of_label(log_probs_NC, labels_N))
    return _float32(np.sqrt(np.square(errors_NC).sum(axis=1)))


def grand(log_probs_NC: FloatArray, labels_N: IntArray, *, head_norm_N: FloatArray) -> FloatArray:
    """Norm of the loss's gradient in the last layer, ||p - onehot(y)|| ||(h, 1)||.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.
        head_norm_N: (N,) norm of (h, 1), where h is the input of the last linear layer; of h if that has no bias.

    Returns:
        (N,) float32, 0 or more, independent of the batch.

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021), GraNd, in closed form for the last layer.
    """
    return _float32(el2n(log_probs_NC, labels_N) * head_norm_N)


def label_margin(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """One minus the margin of the true class, 1 - (p_y - max of the others): 0 is certainly right, 2 certainly wrong.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.

    Returns:
        (N,) float32 in [0, 2].

    Source: the margin of Bartlett et al. (1998), in probabilities; known as "normalized margin" in confident learning.
    """
    others_NC = log_probs_NC.copy()
    others_NC[np.arange(len(labels_N)), labels_N] = -np.inf
    return _float32(-np.expm1(_of_label(log_probs_NC, labels_N)) + np.exp(others_NC.max(axis=1)))


_FLOOR = float(np.log(np.finfo(np.float32).tiny))


def _of_label(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    return log_probs_NC[np.arange(len(labels_N)), labels_N]


def _float32(values_N: FloatArray) -> FloatArray:
    return values_N.astype(np.float32) + np.float32(0)  # turns -0 into 0
