"""What a model predicts for a batch of samples."""

from __future__ import annotations

from dataclasses import dataclass

from unseen_ray.core.arrays import FloatArray, IdArray

__all__ = ["Predictions"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """One model's predictions for B samples.

    Attributes:
        ids_B: (B,) int64.
        log_probs_BC: (B, C) natural-log class probabilities.
        head_norm_B: (B,) norm of the last linear layer's input, with a 1 appended if it has a bias; None if unknown.
        max_logit_B: (B,) the largest logit; None if unknown.
        features_BD: (B, D) float16, the last linear layer's input; None unless requested.
    """

    ids_B: IdArray
    log_probs_BC: FloatArray
    head_norm_B: FloatArray | None = None
    max_logit_B: FloatArray | None = None
    features_BD: FloatArray | None = None
