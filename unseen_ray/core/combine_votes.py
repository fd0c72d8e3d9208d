"""Merges out-of-fold votes: refuses gaps and conflicts, and gives the same table for any order of arrival."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, Positions, positions_of
from unseen_ray.core.predictions import EpochView
from unseen_ray.core.stats import mean_ranks
from unseen_ray.core.tasks import VotePart
from unseen_ray.errors import IncompleteScoreError

__all__ = [
    "OF_STAGES",
    "OF_VOTES",
    "Combine",
    "ScoreFunction",
    "ScoreTable",
    "VoteCombiner",
    "disagreement",
    "log_of_probs",
    "reducible",
]

OF_VOTES = ("disagreement",)
"""Scores of all votes of a sample together, which one vote does not have."""

OF_STAGES = ("reducible",)
"""Scores that compare a stage with stage 0."""

Combine = Literal["mean", "rank_mean", "mean_prob"]
ScoreFunction = Callable[..., FloatArray]
_ROWS = 1024  # whose probabilities are float64 at a time
_MOST_VOTES = 1 << 18  # votes processed at a time to find the majority: a few MB
_NO_VOTE = np.iinfo(np.int64).max  # sorts behind all classes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreTable:
    """Merged scores: one row per candidate, sorted by id.

    Attributes:
        ids_M: (M,) int64, strictly increasing.
        labels_M: (M,) int64.
        votes_M: (M,) int32, number of models that scored the sample.
        pred_M: (M,) int64, the class predicted by most votes.
        p_label_M: (M,) float32, probability of the true class, mean over votes.
        scores: for each score (M,) float32, combined over votes; higher is kept first.
        stds: for each score (M,) float32, population standard deviation over votes.
        probs_MC: (M, C) float32 mean probabilities; None unless the run keeps them.
    """

    ids_M: IdArray
    labels_M: IntArray
    votes_M: NDArray[np.int32]
    pred_M: NDArray[np.int64]
    p_label_M: FloatArray
    scores: dict[str, FloatArray]
    stds: dict[str, FloatArray]
    probs_MC: FloatArray | None = None


@dataclass(slots=True)
class VoteCombiner:
    """Collects the votes of a stage and combines those of each sample.

    Args:
        ids_M: (M,) int64 candidates, strictly increasing.
        labels_M: (M,) their classes.
        num_parts: number of models that vote in this stage.
        votes_each: number of votes that each candidate must get: one number, or (M,) int64.
    """

    ids_M: IdArray
    labels_M: IntArray
    num_parts: int
    votes_each: int | IntArray
    parts: dict[int, VotePart] = field(default_factory=dict)

    def add(self, part: VotePart) -> None:
        """Add the votes of one model; adding the same votes again has no effect.

        Raises:
            IncompleteScoreError: if the task is not of this stage, a sample is not a candidate, a value is not finite, or the votes
                differ from earlier ones of the same task.
        """
        if not 0 <= part.index < self.num_parts:
            raise IncompleteScoreError(f"votes of task {part.index} in a stage of {self.num_parts} tasks.")
        _check_columns(part)
        try:
            positions_of(part.ids_M, self.ids_M)
        except ValueError as error:
            raise IncompleteScoreError(f"votes of task {part.index}: {error}") from None
        known = self.parts.setdefault(part.index, part)
        if known is not part and not _same(known, part):
            raise IncompleteScoreError(f"task {part.index} delivered two different sets of votes.")

    def combine(
        self,
        rule: Combine,
        functions: Mapping[str, ScoreFunction] | None = None,
        of_votes: Sequence[str] = (),
        *,
        exact: bool = True,
    ) -> ScoreTable:
        """Combine the votes in the order of the tasks.

        Args:
            rule: `mean` of the votes' scores; `rank_mean`: mean of (rank - 0.5) / n among the n ids that a model scored;
                `mean_prob`: the score of the mean probabilities.
            functions: score functions of (log-probabilities, labels) for `mean_prob`; scores without one are dropped.
            exact: see `EpochView`; for `mean_prob`.
            of_votes: which of `OF_VOTES` to add, by the same formula for every rule; they need the votes' probabilities.

        Raises:
            IncompleteScoreError: if a task is missing, or a candidate has more or fewer than `votes_each` votes.
        """
        parts, at, votes = self._counted()
        kept = [part.probs_MC for part in parts if part.probs_MC is not None]
        probs = _mean(kept, at, votes) if len(kept) == len(parts) else None
        given = functions if rule == "mean_prob" and functions is not None else parts[0].scores
        view = None
        if rule == "mean_prob" and probs is not None:
            view = EpochView(log_of_probs(probs), self.labels_M, exact=exact)
        scores, stds = {}, {}
        for name in (name for name in parts[0].scores if name in given):
            columns = [part.scores[name] for part in parts]
            mean = _mean(columns, at, votes)
            stds[name] = _deviation(columns, mean, at, votes)
            if rule == "rank_mean":
                mean = _mean([mean_ranks(column) for column in columns], at, votes)
            elif rule == "mean_prob":
                assert view is not None and functions is not None, "mean_prob needs probabilities"
                mean = _score_of(functions[name], view).astype(np.float64)
            scores[name] = mean.astype(np.float32)
        for name in of_votes:
            assert probs is not None, f"{name} needs probabilities"
            each = _mean([_entropies(vote_probs) for vote_probs in kept], at, votes)
            scores[name], stds[name] = disagreement(probs, each), np.zeros(len(votes), np.float32)
        return ScoreTable(
            ids_M=self.ids_M,
            labels_M=self.labels_M,
            votes_M=votes.astype(np.int32),
            pred_M=_majority(parts, at, votes),
            p_label_M=_mean([part.p_label_M for part in parts], at, votes).astype(np.float32),
            scores=scores,
            stds=stds,
            probs_MC=None if probs is None else probs.astype(np.float32),
        )

    def mean_probs(self) -> FloatArray:
        """(M, C) float32 mean probabilities of the votes, as `combine` gives them; IncompleteScoreError as there."""
        parts, at, votes = self._counted()
        return _mean([part.probs_MC for part in parts if part.probs_MC is not None], at, votes).astype(np.float32)

    def _counted(self) -> tuple[list[VotePart], list[Positions], NDArray[np.int64]]:
        """The votes of each task, the places of their ids, and (M,) the number of votes."""
        parts = self._complete()
        at = [positions_of(part.ids_M, self.ids_M) for part in parts]
        votes = np.zeros(len(self.ids_M), np.int64)
        for where in at:
            votes += np.bincount(where, minlength=len(self.ids_M))
        self.check_votes(votes)
        return parts, at, votes

    def _complete(self) -> list[VotePart]:
        missing = sorted(set(range(self.num_parts)) - set(self.parts))
        if missing:
            raise IncompleteScoreError(
                f"{len(missing)} of {self.num_parts} tasks have not voted; the first is task {missing[0]}."
            )
        parts = [self.parts[index] for index in range(self.num_parts)]
        if any(part.scores.keys() != parts[0].scores.keys() for part in parts):
            raise IncompleteScoreError("the tasks of one stage delivered different scores.")
        return parts

    def check_votes(self, votes_M: NDArray[np.int64]) -> None:
        """IncompleteScoreError unless each candidate has (M,) `votes_each` votes."""
        wrong = np.flatnonzero(votes_M != self.votes_each)
        if wrong.size:
            first = wrong[0]
            due = np.broadcast_to(self.votes_each, votes_M.shape)[first]
            raise IncompleteScoreError(
                f"{wrong.size} of {len(self.ids_M)} candidates have fewer or more votes than they must get; "
                f"the first is id {self.ids_M[first]} with {votes_M[first]} instead of {due}."
            )


def disagreement(mean_probs_MC: FloatArray, mean_entropies_M: FloatArray) -> FloatArray:
    """What the models disagree on: the entropy of their mean probabilities less the mean entropy of each; needs N x C probabilities.

    It is the mutual information of the prediction and the model: high where models contradict each other, 0 where all say the same,
    however uncertain. Every sample needs two votes or more. It is stored where it is named.

    Args:
        mean_probs_MC: (M, C) mean of the votes' probabilities.
        mean_entropies_M: (M,) mean of their entropies, in nats.

    Returns:
        (M,) float32 in [0, ln V] for V votes.

    Source: Houlsby et al., Bayesian Active Learning by Disagreement (2011); Jensen-Shannon divergence of the votes.
    """
    return np.maximum(_entropies(mean_probs_MC) - mean_entropies_M, 0).astype(np.float32)


def reducible(loss_M: FloatArray, first_loss_M: FloatArray) -> FloatArray:
    """The reducible loss: that of the stage's models less that of stage 0's, which never saw the sample. In stage 0, the loss itself.

    It is high for what a training on the coreset does not tell, and other samples would; noise and outliers have both losses high.

    Args:
        loss_M: (M,) float32 losses of the candidates of a stage, in nats, mean over votes.
        first_loss_M: (M,) the same in stage 0.

    Returns:
        (M,) float32.

    Source: Mindermann et al., Prioritized training on points that are learnable, worth learning, and not yet learnt (ICML 2022),
    with the votes of stage 0 in place of the model of a holdout set.
    """
    return (loss_M.astype(np.float64) - first_loss_M).astype(np.float32)


def log_of_probs(probs_NC: FloatArray) -> FloatArray:
    """Natural logarithms of probabilities, floored at the smallest normal float32 so that no logarithm is infinite."""
    smallest = np.finfo(np.float32).tiny
    return np.log(np.maximum(probs_NC.astype(np.float32), smallest))


def _entropies(probs_MC: FloatArray) -> NDArray[np.float64]:
    """(M,) entropies in float64: their differences may be small."""
    entropies_M = np.empty(len(probs_MC))
    for start in range(0, len(probs_MC), _ROWS):
        probs = probs_MC[start : start + _ROWS].astype(np.float64)
        entropies_M[start : start + _ROWS] = -(probs * np.log(np.maximum(probs, np.finfo(np.float32).tiny))).sum(axis=1)
    return entropies_M


def _score_of(function: ScoreFunction, view: EpochView) -> FloatArray:
    shared = {"epoch_view": view} if "epoch_view" in inspect.signature(function).parameters else {}
    return function(view.log_probs_BC, view.labels_B, **shared)


def _check_columns(part: VotePart) -> None:
    if part.ids_M.ndim != 1 or np.any(np.diff(part.ids_M) <= 0):
        raise IncompleteScoreError(f"votes of task {part.index}: the ids do not increase strictly.")
    for name, column in _columns_of(part).items():
        if len(column) != len(part.ids_M):
            raise IncompleteScoreError(
                f"votes of task {part.index}: {name} has {len(column)} rows for {len(part.ids_M)} ids."
            )
        bad = np.flatnonzero(~np.isfinite(column).all(axis=tuple(range(1, column.ndim))))
        if bad.size:
            raise IncompleteScoreError(
                f"votes of task {part.index}: {name} is {column[bad[0]]} for id {part.ids_M[bad[0]]} "
                f"and not finite for {bad.size} samples in all. Did the training diverge? Try a lower recipe.lr."
            )


def _same(one: VotePart, other: VotePart) -> bool:
    columns, others = _columns_of(one), _columns_of(other)
    return (
        np.array_equal(one.ids_M, other.ids_M)
        and columns.keys() == others.keys()
        and all(np.array_equal(columns[name], others[name]) for name in columns)
    )


def _columns_of(part: VotePart) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {
        "pred": part.pred_M,
        "p_top": part.p_top_M,
        "p_label": part.p_label_M,
        **part.scores,
    }
    return columns if part.probs_MC is None else {**columns, "probs": part.probs_MC}


def _mean(columns: list[FloatArray], at: list[NDArray[np.intp]], votes_M: NDArray[np.int64]) -> FloatArray:
    # float64, in the order of the tasks: the sum does not depend on the order of arrival
    total = np.zeros((len(votes_M), *columns[0].shape[1:]))
    for column, where in zip(columns, at, strict=True):
        total[where] += column
    return total / votes_M.reshape(-1, *[1] * (total.ndim - 1))


def _deviation(
    columns: list[FloatArray], mean_M: FloatArray, at: list[NDArray[np.intp]], votes_M: NDArray[np.int64]
) -> FloatArray:
    total = np.zeros(len(votes_M))
    for column, where in zip(columns, at, strict=True):
        total[where] += np.square(column - mean_M[where])
    return np.sqrt(total / votes_M).astype(np.float32)


def _majority(parts: list[VotePart], at: list[NDArray[np.intp]], votes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the class with most votes; ties go to the higher sum of top-1 probabilities, then to the lower number."""
    # sorting the votes of each row by class takes time that grows with the number of votes, not of classes
    num_rows, most = len(votes_N), int(votes_N.max(initial=1))
    best = np.full(num_rows, -1, np.int64)
    rows_each = max(_MOST_VOTES // most, 1)
    for start in range(0, num_rows, rows_each):
        stop = min(start + rows_each, num_rows)
        pred_VR, p_top_VR = _votes_of_rows(parts, at, start, stop, most)
        order = np.argsort(pred_VR, axis=0, kind="stable")
        best[start:stop] = _longest_run(
            np.take_along_axis(pred_VR, order, 0), np.take_along_axis(p_top_VR, order, 0), votes_N[start:stop]
        )
    return best


def _votes_of_rows(
    parts: list[VotePart], at: list[NDArray[np.intp]], start: int, stop: int, most: int
) -> tuple[NDArray[np.int64], FloatArray]:
    """(V, R) classes and top-1 probabilities of the at most V votes of R rows, in the order of the tasks."""
    pred_VR = np.full((most, stop - start), _NO_VOTE)
    p_top_VR = np.zeros((most, stop - start))
    given_R = np.zeros(stop - start, np.intp)
    for part, where in zip(parts, at, strict=True):
        first, last = np.searchsorted(where, (start, stop))
        rows = where[first:last] - start
        pred_VR[given_R[rows], rows] = part.pred_M[first:last]
        p_top_VR[given_R[rows], rows] = part.p_top_M[first:last]
        given_R[rows] += 1
    return pred_VR, p_top_VR


def _longest_run(pred_VR: NDArray[np.int64], p_top_VR: FloatArray, votes_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """(R,) the most frequent class of each column's first `votes_R` sorted classes; see `_majority` for ties."""
    best: NDArray[np.int64] = pred_VR[0].copy()
    best_count, best_sum = np.ones(len(best), np.int64), p_top_VR[0].copy()
    count, total = best_count.copy(), best_sum.copy()
    for vote in range(1, len(pred_VR)):
        same = pred_VR[vote] == pred_VR[vote - 1]
        count = np.where(same, count + 1, 1)
        total = np.where(same, total, 0.0) + p_top_VR[vote]
        better = (count > best_count) | ((count == best_count) & (total > best_sum))
        better &= vote < votes_R
        best[better], best_count[better], best_sum[better] = pred_VR[vote][better], count[better], total[better]
    return best
