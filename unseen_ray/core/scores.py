"""Scores of a sample from the log-probabilities that a model gives it. Higher is kept first, for every score.

Each function takes (N, C) natural-log class probabilities and (N,) labels and returns (N,) float32. Log-probabilities
need no epsilon: `1 - p` is `-expm1(log p)`, exact for nearly certain samples, where `1 - exp(log p)` would round a
whole crowd of easy samples to the same score. A score that names one of `OF_ONE_MODEL` is given it where a model of ours
answers; probabilities alone do not tell it.
"""

from __future__ import annotations

import numpy as np

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.errors import ConfigError

__all__ = ["el2n", "entropy", "grand", "label_margin", "least_confidence", "loss", "margin"]

OF_ONE_MODEL = ("head_norm_N", "max_logit_N")
"""What a score may ask for beside the log-probabilities: (N,) length of (h, 1), what enters the last layer; (N,) largest logit."""


def entropy(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """Entropy of the predicted distribution, -sum p ln p: 0 when certain, ln C when lost.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here, part of every score's signature.

    Returns:
        (N,) float32 in [0, ln C], in nats.

    Source: Shannon (1948); scored out of fold in UNSEEN (AAAI 2026), Figure 1.
    """
    probs_NC = np.exp(log_probs_NC)
    terms_NC = np.where(probs_NC > 0, probs_NC * np.maximum(log_probs_NC, _FLOOR), 0)
    return _float32(-terms_NC.sum(axis=1))


def margin(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """One minus the gap between the two largest probabilities, 1 - (p1 - p2): 0 when certain, 1 when torn.

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
    """One minus the largest class probability: 0 when certain, 1 - 1/C when lost.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes; unused here.
        space: `prob`, or `logit` for minus the largest logit, which much code calls by this name.
        max_logit_N: (N,) the largest logit, which `space: logit` needs.

    Returns:
        (N,) float32 in [0, 1 - 1/C]; any number where `space` is `logit`.

    Raises:
        ConfigError: if `space` is neither, or is `logit` where no logits are known.

    Source: Lewis and Gale (1994); UNSEEN (AAAI 2026), Figure 4. Of probabilities, not of logits.
    """
    if space not in ("prob", "logit"):
        raise ConfigError(f"score option space={space!r} is neither prob nor logit.")
    if space == "prob":
        return _float32(-np.expm1(log_probs_NC.max(axis=1)))
    if max_logit_N is None:
        raise ConfigError(
            "score least_confidence with space: logit needs the logits of a model, and there are probabilities alone. Take space: prob."
        )
    return _float32(-max_logit_N)


def loss(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """Cross-entropy of the true class, -ln p_y.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.

    Returns:
        (N,) float32, 0 and more, in nats.
    """
    return _float32(-_of_label(log_probs_NC, labels_N))


def el2n(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """Length of the error vector, ||p - onehot(y)||.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.

    Returns:
        (N,) float32 in [0, sqrt 2].

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021); one model's, combine votes for the mean.
    """
    errors_NC = np.exp(log_probs_NC.astype(np.float64))  # squares of small float32 errors would vanish
    errors_NC[np.arange(len(labels_N)), labels_N] = -np.expm1(_of_label(log_probs_NC, labels_N))
    return _float32(np.sqrt(np.square(errors_NC).sum(axis=1)))


def grand(log_probs_NC: FloatArray, labels_N: IntArray, *, head_norm_N: FloatArray) -> FloatArray:
    """Length of the loss's gradient in the last layer, ||p - onehot(y)|| ||(h, 1)||: the EL2N error times what it meets.

    Args:
        log_probs_NC: (N, C) natural-log class probabilities.
        labels_N: (N,) true classes.
        head_norm_N: (N,) length of (h, 1), h being what enters the last linear layer; of h where that has no bias.

    Returns:
        (N,) float32, 0 and more; of each sample by itself, whatever the batch it came in.

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021), GraNd, in closed form for the last layer.
    """
    return _float32(el2n(log_probs_NC, labels_N) * head_norm_N)


def label_margin(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """One minus the lead of the true class, 1 - (p_y - max of the others): 0 when surely right, 2 when surely wrong.

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
    return values_N.astype(np.float32) + np.float32(0)  # which makes 0 of -0
