"""The votes and features of one model, filled in batch by batch; ids that the task may not score are refused."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.predictions import EpochView
from unseen_ray.core.scores import OF_ONE_MODEL
from unseen_ray.core.tasks import ScoreTask, VotePart, check_unseen
from unseen_ray.data.images.pixel_store import chunks_of
from unseen_ray.errors import FitError

if TYPE_CHECKING:
    from unseen_ray.config.score_columns import StoredScores
    from unseen_ray.core.arrays import FloatArray, IdArray, Positions
    from unseen_ray.core.combine_votes import ScoreFunction
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.core.samples.population import Population
    from unseen_ray.runs.tasks import Job

__all__ = ["FeatureBuffer", "VoteBuffer"]

logger = logging.getLogger(__name__)

_SCORE = "score "  # before the names of scores, which may be those of other columns


class VoteBuffer:
    """The votes of one model, filled in batch by batch; those of a long task part by part, each of a range of its ids.

    Memory holds the parts that are begun and not taken: one where batches come in the order of the ids.

    Args:
        task: whose votes they are.
        ids_M: (M,) int64 ids to score, strictly rising.
        population: the samples of the run.
        job: the run.
        scores: what to store.

    Attributes:
        ranges: the parts, as slices of the ids; one for a task that is not long.
        done: how many samples have a vote.
    """

    def __init__(self, task: ScoreTask, ids_M: IdArray, population: Population, job: Job, scores: StoredScores) -> None:
        self.task, self.ids_M = task, ids_M
        self._rows = max(job.vote_rows(task, len(ids_M)), 1)
        self.ranges = [slice(*ends) for ends in chunks_of(len(ids_M), self._rows)]
        self.done = 0
        self._population, self._keeps_probs = population, job.resolved.keeps_probs
        self._functions = {name: (function, _extras_of(function)) for name, function in scores.single.items()}
        self._requested, self._exact = scores.asked, scores.exact
        self._has_vote: dict[int, NDArray[np.bool_]] = {}  # of the parts that are begun
        self._parts: dict[int, dict[str, NDArray[Any]]] = {}
        self._left = [rows.stop - rows.start for rows in self.ranges]
        self._skipped: set[int] = set()
        self._knows_head = False

    def add(self, predictions: Predictions) -> list[int]:
        """Score a batch of predictions; returns the numbers of the parts that are complete with it.

        Raises:
            LeakError: if the task may not score one of the samples.
            FitError: if a sample has a vote already, or a score is not finite.
        """
        ids_B = predictions.ids_B
        places = np.searchsorted(self.ids_M, ids_B)
        # The exact check costs more than a batch may: it runs only where an id is not among those to score.
        if places.size and (places.max() >= len(self.ids_M) or not np.array_equal(self.ids_M[places], ids_B)):
            check_unseen(self.task, ids_B, self._population)
        rising = np.unique(places)
        inside = self._parts_of(places, rising)
        if len(rising) < len(places) or not all(self._mark(number, places[inside[number]]) for number in inside):
            raise FitError(f"{self.task.name} predicted a sample twice. Yield each of task.unseen_ids once.")
        if self._skipped.issuperset(inside):
            return []
        columns = self._scored(predictions)
        numbers = [number for number in inside if number not in self._skipped]
        return [number for number in numbers if self._fill(number, places[inside[number]], inside[number], columns)]

    def _parts_of(self, places: Positions, rising: Positions) -> dict[int, slice | NDArray[np.bool_]]:
        """The parts that a batch belongs to, and which of its samples are in each."""
        if len(rising) and rising[0] // self._rows == rising[-1] // self._rows:
            return {int(rising[0]) // self._rows: slice(None)}
        parts_B = places // self._rows
        return {number: parts_B == number for number in np.unique(parts_B).tolist()}

    def _mark(self, number: int, places: Positions) -> bool:
        """Note that samples of a part are predicted; whether none of them was before."""
        rows, left = self.ranges[number], self._left[number] - len(places)
        if left < 0:
            return False
        if number not in self._has_vote:
            self._has_vote[number] = np.zeros(rows.stop - rows.start, bool)
        seen = self._has_vote[number]
        if seen[places - rows.start].any():
            return False
        seen[places - rows.start] = True
        self._left[number] = left
        if not left:
            del self._has_vote[number]
        return True

    def _scored(self, predictions: Predictions) -> dict[str, NDArray[Any]]:
        """The columns of a batch, computed at once: their bits must not depend on where parts end."""
        log_probs_BC, labels = predictions.log_probs_BC, self._population.labels_of(predictions.ids_B)
        view = EpochView(log_probs_BC, labels, exact=self._exact)
        columns: dict[str, NDArray[Any]] = {
            "pred": view.top_B.astype(np.int64, copy=False),
            "p_top": np.exp(view.log_p_top_B).astype(np.float32, copy=False),
            "p_label": np.exp(view.log_p_label_B).astype(np.float32, copy=False),
        }
        if not self._knows_head:
            self._drop_head_scores(predictions)
        known = {"head_norm_N": predictions.head_norm_B, "max_logit_N": predictions.max_logit_B, "epoch_view": view}
        for name, (function, extras) in self._functions.items():
            values = function(log_probs_BC, labels, **{extra: known[extra] for extra in extras})
            columns[_SCORE + name] = _checked(name, values, len(labels))
        if self._keeps_probs:
            columns["probs"] = view.probs_BC.astype(np.float32, copy=False)
        return columns

    def _fill(
        self, number: int, places: Positions, inside: slice | NDArray[np.bool_], columns: dict[str, NDArray[Any]]
    ) -> bool:
        """Put a batch's votes that are inside a part there; whether it is complete."""
        start, stop = self.ranges[number].start, self.ranges[number].stop
        if number not in self._parts:
            self._parts[number] = {
                name: np.empty((stop - start, *values.shape[1:]), values.dtype) for name, values in columns.items()
            }
        for name, values in columns.items():
            self._parts[number][name][places - start] = values[inside]
        self.done += len(places)
        return not self._left[number]

    def skip(self, number: int) -> None:
        """Take a part as stored: predictions of it are dropped, or need not come."""
        self._skipped.add(number)
        self.done += self._left[number]

    def _drop_head_scores(self, predictions: Predictions) -> None:
        """Drop scores of the last linear layer where the model has none; refuse if one of them decides."""
        self._knows_head = True
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
            del self._functions[name]

    def check_complete(self) -> None:
        """FitError if a sample has no vote."""
        missing = {number: left for number, left in enumerate(self._left) if left and number not in self._skipped}
        if missing:
            first = min(missing)
            place = self.ranges[first].start
            place += int(np.argmin(self._has_vote[first])) if first in self._has_vote else 0
            raise FitError(
                f"{self.task.name} gave no prediction for {sum(missing.values())} of {len(self.ids_M)} samples; "
                f"the first is id {self.ids_M[place]}. Yield each of task.unseen_ids once."
            )

    def take(
        self, number: int, over_epochs: Mapping[str, FloatArray], features_ND: FloatArray | None = None
    ) -> VotePart:
        """The votes of a complete part, which are let go of.

        Args:
            number: which part.
            over_epochs: for each score over epochs those of the part's samples.
            features_ND: (N, D) features of all samples, where this model's are kept.
        """
        columns, ids_M = self._parts.pop(number), self.ids_M[self.ranges[number]]
        checked = {name: _checked(name, values, len(ids_M)) for name, values in over_epochs.items()}
        single = {name.removeprefix(_SCORE): values for name, values in columns.items() if name.startswith(_SCORE)}
        return VotePart(
            index=self.task.index,
            ids_M=ids_M,
            pred_M=columns["pred"],
            p_top_M=columns["p_top"],
            p_label_M=columns["p_label"],
            scores={**single, **checked},
            probs_MC=columns.get("probs"),
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
