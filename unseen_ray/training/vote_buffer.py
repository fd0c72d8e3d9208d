"""The votes and features of one model, filled in batch by batch; ids that the task may not score are refused."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.core.predictions import EpochView
from unseen_ray.core.scores import OF_ONE_MODEL
from unseen_ray.core.tasks import ScoreTask, VotePart, check_unseen
from unseen_ray.errors import FitError

if TYPE_CHECKING:
    from unseen_ray.config.score_columns import StoredScores
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
    from unseen_ray.core.combine_votes import ScoreFunction
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.core.samples.population import Population
    from unseen_ray.runs.tasks import Job

__all__ = ["FeatureBuffer", "VoteBuffer"]

logger = logging.getLogger(__name__)


class VoteBuffer:
    """The votes of one model, filled in batch by batch.

    Args:
        task: whose votes they are.
        ids_M: (M,) int64 ids to score, strictly rising.
        labels_M: (M,) their classes.
        job: the run.
        scores: what to store.

    Attributes:
        done: how many samples have a vote.
    """

    def __init__(self, task: ScoreTask, ids_M: IdArray, labels_M: IntArray, job: Job, scores: StoredScores) -> None:
        self.task, self.ids_M, self.labels_M = task, ids_M, labels_M
        self.done = 0
        self._functions = {name: (function, _extras_of(function)) for name, function in scores.single.items()}
        self._requested, self._exact = scores.asked, scores.exact
        self._has_vote = np.zeros(len(ids_M), bool)
        self._pred = np.empty(len(ids_M), np.int64)
        self._p_top = np.empty(len(ids_M), np.float32)
        self._p_label = np.empty(len(ids_M), np.float32)
        self._scores = {name: np.empty(len(ids_M), np.float32) for name in scores.single}
        self._probs = np.empty((len(ids_M), job.num_classes), np.float32) if job.resolved.keeps_probs else None

    def add(self, predictions: Predictions, population: Population) -> None:
        """Score a batch of predictions.

        Raises:
            LeakError: if the task may not score one of the samples.
            FitError: if a sample has a vote already, or a score is not finite.
        """
        ids_B, log_probs_BC = predictions.ids_B, predictions.log_probs_BC
        places = np.searchsorted(self.ids_M, ids_B)
        # The exact check costs more than a batch may: it runs only where an id is not among those to score.
        if places.size and (places.max() >= len(self.ids_M) or not np.array_equal(self.ids_M[places], ids_B)):
            check_unseen(self.task, ids_B, population)
        if self._has_vote[places].any() or len(np.unique(places)) < len(places):
            raise FitError(f"{self.task.name} predicted a sample twice. Yield each of task.unseen_ids once.")
        self._has_vote[places] = True
        labels = self.labels_M[places]
        view = EpochView(log_probs_BC, labels, exact=self._exact)
        self._pred[places] = view.top_B
        self._p_top[places] = np.exp(view.log_p_top_B)
        self._p_label[places] = np.exp(view.log_p_label_B)
        if not self.done:
            self._drop_head_scores(predictions)
        known = {"head_norm_N": predictions.head_norm_B, "max_logit_N": predictions.max_logit_B, "epoch_view": view}
        for name, (function, extras) in self._functions.items():
            values = function(log_probs_BC, labels, **{extra: known[extra] for extra in extras})
            self._scores[name][places] = _checked(name, values, len(labels))
        if self._probs is not None:
            self._probs[places] = view.probs_BC
        self.done += len(ids_B)

    def _drop_head_scores(self, predictions: Predictions) -> None:
        """Drop scores of the last linear layer where the model has none; refuse if one of them decides."""
        unknown = [name for name, (function, _) in self._functions.items() if _needs_head(function)]
        if predictions.head_norm_B is not None or not unknown:
            return
        requested = [name for name in unknown if name in self._requested]
        if requested:
            raise FitError(
                f"score {requested[0]} reads what enters the last linear layer, and this model has none with an output a class. "
                "Choose another score, or a model that ends in torch.nn.Linear."
            )
        logger.warning("the model ends in no linear layer: %s is not stored", ", ".join(unknown))
        for name in unknown:
            del self._functions[name], self._scores[name]

    def finish(self, over_epochs: Mapping[str, FloatArray], features_ND: FloatArray | None) -> VotePart:
        """The votes of all samples, with scores over epochs and features.

        Args:
            over_epochs: (M,) for each score over epochs.
            features_ND: (N, D) features of all samples, where this model's are kept.

        Raises:
            FitError: if a sample has no vote.
        """
        missing = np.flatnonzero(~self._has_vote)
        if missing.size:
            raise FitError(
                f"{self.task.name} gave no prediction for {missing.size} of {len(self.ids_M)} samples; "
                f"the first is id {self.ids_M[missing[0]]}. Yield each of task.unseen_ids once."
            )
        checked = {name: _checked(name, values, len(self.ids_M)) for name, values in over_epochs.items()}
        return VotePart(
            index=self.task.index,
            ids_M=self.ids_M,
            pred_M=self._pred,
            p_top_M=self._p_top,
            p_label_M=self._p_label,
            scores={**self._scores, **checked},
            probs_MC=self._probs,
            features_ND=features_ND,
        )


class FeatureBuffer:
    """What enters a model's last layer for every sample, filled in batch by batch.

    Args:
        ids_N: (N,) all samples, strictly rising.
    """

    def __init__(self, ids_N: IdArray) -> None:
        self._ids = ids_N
        self._features: FloatArray | None = None
        self._is_filled = np.zeros(len(ids_N), bool)

    def add(self, predictions: Predictions) -> None:
        """Take a batch.

        Raises:
            FitError: if the model has no last linear layer.
        """
        features = predictions.features_BD
        if features is None:
            raise FitError(
                "features are needed (by save_features, or by a policy that reads them), and this model has no last linear layer with an "
                "output a class. Choose a model that ends in torch.nn.Linear, or another policy."
            )
        if self._features is None:
            # Half precision: distances between features need no more, and the table takes half the memory.
            self._features = np.empty((len(self._ids), features.shape[1]), np.float16)
        places = np.searchsorted(self._ids, predictions.ids_B)
        self._features[places] = features
        self._is_filled[places] = True

    def finish(self) -> FloatArray:
        """(N, D) float16."""
        assert self._features is not None and self._is_filled.all(), (
            "a model predicts what it scores and what it trained on"
        )
        return self._features


def _needs_head(function: ScoreFunction) -> bool:
    parameter = inspect.signature(function).parameters.get("head_norm_N")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _extras_of(function: ScoreFunction) -> list[str]:
    parameters = inspect.signature(function).parameters
    return [name for name in (*OF_ONE_MODEL, "epoch_view") if name in parameters]


def _checked(name: str, values: Any, size_b: int) -> FloatArray:
    values = np.asarray(values)
    if values.shape != (size_b,):
        raise FitError(
            f"score {name} returned shape {values.shape} for {size_b} samples; it must return one number a sample."
        )
    if not np.isfinite(values).all():
        raise FitError(f"score {name} returned {values[~np.isfinite(values)][0]}; scores must be finite.")
    finite: FloatArray = values.astype(np.float32)
    return finite
