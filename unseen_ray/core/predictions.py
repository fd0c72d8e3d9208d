"""What a model says of a batch of samples."""

from __future__ import annotations

from dataclasses import dataclass

from unseen_ray.core.arrays import FloatArray, IdArray

__all__ = ["Predictions"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """One model's answers to B samples.

    Attributes:
        ids_B: (B,) int64.
        log_probs_BC: (B, C) natural-log class probabilities.
        head_norm_B: (B,) length of what enters the last linear layer, a bias counting as a 1; None where that is not known.
        max_logit_B: (B,) the largest logit; None where logits are not known.
        features_BD: (B, D) float16, what enters the last linear layer; None unless it was asked for.
    """

    ids_B: IdArray
    log_probs_BC: FloatArray
    head_norm_B: FloatArray | None = None
    max_logit_B: FloatArray | None = None
    features_BD: FloatArray | None = None
