"""What a model predicts for a batch of samples, and what scores read of it.

Shapes: B samples of a batch, C classes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray

__all__ = ["EpochView", "Predictions"]

_EPSILON = 1e-8  # in the logarithms of Zhang et al.
_NEARLY_CERTAIN = -1 / 64  # a log-probability: 1 - p has five digits there
_BLOCK = 1 << 16  # float64 numbers at once, which the cache holds


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


class EpochView:
    """A model's predictions for a batch after an epoch; values that several scores need are computed once.

    Attributes:
        log_probs_BC: (B, C) natural-log class probabilities.
        labels_B: (B,) true classes.
        before_BC: (B, C) `log_floored_BC` after the previous scored epoch; None in the first.

    Args:
        exact: whether nearly certain samples are told apart by the probabilities of the other classes; if not, 1 - p is a multiple of
            6e-8 in float32, as in runs that an earlier version began.
    """

    def __init__(
        self,
        log_probs_BC: FloatArray,
        labels_B: IntArray,
        before_BC: FloatArray | None = None,
        *,
        exact: bool = True,
    ) -> None:
        self.log_probs_BC, self.labels_B, self.before_BC = log_probs_BC, labels_B, before_BC
        self._exact = exact
        self._rows = np.arange(len(log_probs_BC))

    @functools.cached_property
    def probs_BC(self) -> FloatArray:
        """(B, C) probabilities."""
        probs_BC: FloatArray = np.exp(self.log_probs_BC)
        return probs_BC

    @functools.cached_property
    def log_p_label_B(self) -> FloatArray:
        """(B,) log-probability of the true class."""
        return self.log_probs_BC[self._rows, self.labels_B]

    @functools.cached_property
    def top_B(self) -> NDArray[np.intp]:
        """(B,) the most probable class."""
        top_B: NDArray[np.intp] = self.log_probs_BC.argmax(axis=1)
        return top_B

    @functools.cached_property
    def log_p_top_B(self) -> FloatArray:
        """(B,) log-probability of the most probable class."""
        return self.log_probs_BC[self._rows, self.top_B]

    @functools.cached_property
    def right_B(self) -> NDArray[np.bool_]:
        """(B,) whether the true class is the most probable one."""
        right_B: NDArray[np.bool_] = self.top_B == self.labels_B
        return right_B

    @functools.cached_property
    def doubt_label_B(self) -> FloatArray:
        """(B,) one minus the probability of the true class."""
        doubt_B: FloatArray = -np.expm1(self.log_p_label_B)
        near = np.flatnonzero(self.is_summed(self.log_p_label_B))
        if near.size:
            doubt_B[near] = self.doubt_top_B[near]  # a true class of such a probability is the most probable one
        return doubt_B

    @functools.cached_property
    def doubt_top_B(self) -> FloatArray:
        """(B,) one minus the probability of the most probable class."""
        doubt_B: FloatArray = -np.expm1(self.log_p_top_B)
        # Where p is nearly 1, its logarithm has lost the digits that tell samples apart; the other classes' probabilities have not.
        near = np.flatnonzero(self.is_summed(self.log_p_top_B))
        if near.size:
            others_RC = np.exp(self.log_probs_BC[near])
            others_RC[np.arange(len(near)), self.top_B[near]] = 0
            doubt_B[near] = others_RC.sum(axis=1)
        return doubt_B

    def is_summed(self, log_p_B: FloatArray) -> NDArray[np.bool_]:
        """(B,) whether one minus such a probability is the sum of the other classes' probabilities."""
        summed_B: NDArray[np.bool_] = log_p_B > (_NEARLY_CERTAIN if self._exact else np.inf)
        return summed_B

    @functools.cached_property
    def error_norm_B(self) -> NDArray[np.float64]:
        """(B,) norm of the error vector, p less the one-hot true class."""
        norm_B = np.empty(len(self._rows))
        rows = max(_BLOCK // max(self.log_probs_BC.shape[1], 1), 1)
        for start in range(0, len(norm_B), rows):
            part = slice(start, start + rows)
            # Squares of small float32 errors would vanish.
            errors_RC = np.exp(self.log_probs_BC[part], dtype=np.float64)
            errors_RC[np.arange(len(errors_RC)), self.labels_B[part]] = self.doubt_label_B[part]
            norm_B[part] = np.sqrt(np.einsum("rc,rc->r", errors_RC, errors_RC))
        return norm_B

    @functools.cached_property
    def other_probs_BC(self) -> FloatArray:
        """(B, C) probabilities, with 0 for the true class."""
        others_BC = self.probs_BC.copy()
        others_BC[self._rows, self.labels_B] = 0
        return others_BC

    @functools.cached_property
    def log_top_other_B(self) -> FloatArray:
        """(B,) log-probability of the most probable other class; minus infinity if there is only one class."""
        return self._log_top_beside(self.labels_B)

    @functools.cached_property
    def log_second_B(self) -> FloatArray:
        """(B,) log-probability of the second most probable class; minus infinity if there is only one class."""
        return self.log_top_other_B if self.right_B.all() else self._log_top_beside(self.top_B)

    def _log_top_beside(self, classes_B: NDArray[Any]) -> FloatArray:
        """(B,) largest log-probability of all classes but one each."""
        others_BC = self.log_probs_BC.copy()
        others_BC[self._rows, classes_B] = -np.inf
        top_B: FloatArray = others_BC.max(axis=1)
        return top_B

    @functools.cached_property
    def log_floored_BC(self) -> FloatArray:
        """(B, C) ln(p + 1e-8)."""
        floored_BC: FloatArray = np.log(self.other_probs_BC + self.other_probs_BC.dtype.type(_EPSILON))
        floored_BC[self._rows, self.labels_B] = np.log(np.exp(self.log_p_label_B.astype(np.float64)) + _EPSILON)
        return floored_BC

    def change_B(self) -> FloatArray:
        """(B,) sum over classes of |p (ln p - ln p of the previous epoch)|; 0 in the first epoch."""
        if self.before_BC is None:
            return np.zeros(len(self.labels_B))
        steps_BC = np.subtract(self.log_floored_BC, self.before_BC)
        own_B = np.exp(self.log_p_label_B) * np.abs(steps_BC[self._rows, self.labels_B])
        np.abs(steps_BC, out=steps_BC)
        changes_B: FloatArray = np.einsum("bc,bc->b", self.other_probs_BC, steps_BC) + own_B
        return changes_B
