"""The unit of work: what a model trains on, and what it may score.

The K folds of stage 0, the later stages and the fitting baseline all consist of such tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray
from unseen_ray.core.folds import TrainOn
from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.core.samples.id_sets import AllIds, FoldIds, FoldSpec, IdSet, Outside, Union, are_in
from unseen_ray.core.samples.population import Population
from unseen_ray.errors import LeakError

__all__ = [
    "EvalTask",
    "Mode",
    "ScoreTask",
    "VotePart",
    "check_unseen",
    "join_votes",
    "later_tasks",
    "scored_folds",
    "stage_zero_count",
    "stage_zero_tasks",
]

Mode = Literal["unseen", "fitting"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreTask:
    """Train one scoring model and score samples with it.

    Attributes:
        stage: 0 is the K-fold stage.
        index: position in the stage; votes are merged in this order.
        fold: its fold; None for a model trained on all data or on a coreset.
        repeat: 0 for the first model trained on these ids, 1 for the next.
        train: the ids that it trains on.
        scored: the ids that it scores; in `unseen` mode disjoint from `train`.
        mode: `fitting` models score their training samples.
    """

    stage: int
    index: int
    fold: int | None
    repeat: int
    train: IdSet
    scored: IdSet
    mode: Mode = "unseen"

    @property
    def name(self) -> str:
        """Its name in logs and messages."""
        where = " fitting" if self.mode == "fitting" else "" if self.fold is None else f" fold {self.fold}"
        return f"stage {self.stage}{where}" + (f" repeat {self.repeat}" if self.repeat else "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvalTask:
    """Train one model on a subset and measure it on samples outside every subset.

    Attributes:
        index: position in the list of evaluations.
        arm: the kind of subset: `coreset`, `random`, `full`.
        selection: number of the subset among those of its kind.
        repeat: number of the training seed.
        train: the subset.
        draw: what an epoch takes of it; None for everything.
        epochs: how many to train for; None for what the recipe says.
        measured: samples of the source that it is measured on, none of them in `train`; None for the run's test set.
    """

    index: int
    arm: str
    selection: int
    repeat: int
    train: IdSet
    draw: EpochDraw | None = None
    epochs: int | None = None
    measured: IdSet | None = None

    @property
    def name(self) -> str:
        """Its name in logs and messages."""
        chosen = f" selection {self.selection}" if self.selection else ""
        epochs = "" if self.epochs is None else f", {self.epochs} epochs"
        return f"{self.arm}{chosen} seed {self.repeat}{epochs}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VotePart:
    """One model's votes on the samples that it scores, sorted by id.

    Attributes:
        index: the task's position in its stage.
        ids_M: (M,) int64, strictly increasing.
        pred_M: (M,) int64, the most probable class.
        p_top_M: (M,) float32, its probability.
        p_label_M: (M,) float32, the probability of the true class.
        scores: (M,) float32 per score.
        probs_MC: (M, C) float32, if the run keeps probabilities.
        features_ND: (N, D) float16 of all samples, including the training samples, from the one model whose features the run keeps.
    """

    index: int
    ids_M: IdArray
    pred_M: NDArray[np.int64]
    p_top_M: FloatArray
    p_label_M: FloatArray
    scores: dict[str, FloatArray] = field(default_factory=dict)
    probs_MC: FloatArray | None = None
    features_ND: FloatArray | None = None


def join_votes(parts: Sequence[VotePart]) -> VotePart:
    """One model's votes from those on ranges of its samples, in the order of these; without features."""
    if len(parts) == 1:
        return parts[0]
    probs = [part.probs_MC for part in parts if part.probs_MC is not None]
    return VotePart(
        index=parts[0].index,
        ids_M=np.concatenate([part.ids_M for part in parts]),
        pred_M=np.concatenate([part.pred_M for part in parts]),
        p_top_M=np.concatenate([part.p_top_M for part in parts]),
        p_label_M=np.concatenate([part.p_label_M for part in parts]),
        scores={name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores},
        probs_MC=np.concatenate(probs) if len(probs) == len(parts) else None,
    )


def stage_zero_tasks(
    *,
    mode: Mode,
    spec: FoldSpec,
    train_on: TrainOn,
    repeats: int,
    votes: int | None = None,
    models: int | None = None,
) -> list[ScoreTask]:
    """The tasks of stage 0: `repeats` models per fold, or trained on all data in `fitting` mode.

    Args:
        mode: see `ScoreTask`.
        spec: the fold plan, with K folds.
        train_on: see `FoldPlan`.
        repeats: models per fold.
        votes: with `train_on: fold`, how many folds each model scores, 1 to K-1: those that follow its own, the first ones after the
            last, so that every sample gets as many votes. None for all K-1.
        models: with `train_on: fold`, how many folds get a model, 2 to K. Those without one are dealt to the models, none of which scores
            its own, so that every sample gets as many votes: one less than there are models. None for all K.
    """
    if mode == "fitting":
        sides: list[tuple[int | None, IdSet, IdSet]] = [(None, AllIds(), AllIds())]
    else:
        folds = [(fold, FoldIds(spec, fold)) for fold in range(spec.num_folds)]
        sides = [
            (fold, inside, _scored_by(fold, spec, votes, models))
            if train_on == "fold"
            else (fold, Outside(inside), inside)
            for fold, inside in folds[:models]
        ]
    return _numbered(0, ((fold, train, scored, mode) for fold, train, scored in sides), repeats)


def stage_zero_count(*, mode: str, folds: int, repeats: int, models: int | None = None) -> int:
    """How many tasks stage 0 has."""
    return (models or folds) * repeats if mode == "unseen" else repeats


def later_tasks(*, stage: int, coreset: IdSet, repeats: int) -> list[ScoreTask]:
    """The tasks of a later stage: `repeats` fresh models trained on the coreset, scoring everything outside it."""
    return _numbered(stage, [(None, coreset, Outside(coreset), "unseen")], repeats)


def check_unseen(task: ScoreTask, ids_M: IdArray, population: Population) -> None:
    """Refuse scores of samples that a task's model was trained on or was not asked to score.

    Raises:
        LeakError: with the number of such samples and the first one.
    """
    for start in range(0, len(ids_M), population.chunk_rows):  # bounds the masks below
        some = ids_M[start : start + population.chunk_rows]
        if task.mode == "unseen":
            leaked = np.unique(some[are_in(some, task.train, population)])
            if leaked.size:
                raise LeakError(
                    f"{task.name} scored {leaked.size} samples that its own model was trained on; the first is id {leaked[0]}. "
                    "Only unseen samples may be scored: score task.unseen_ids, or use `mode: fitting`."
                )
        strangers = np.unique(some[~are_in(some, task.scored, population)])
        if strangers.size:
            raise LeakError(
                f"{task.name} scored {strangers.size} samples that it was not asked for; the first is id {strangers[0]}. "
                "Score task.unseen_ids and nothing else."
            )


def scored_folds(fold: int, num_folds: int, votes: int | None, models: int | None) -> list[int]:
    """The folds that a fold's model scores; `votes` and `models` as in `stage_zero_tasks`."""
    if models is not None and models < num_folds:
        # Means of fewer votes spread wider: with unlike numbers of votes, a sample's fold would decide whether it is kept.
        return [other for other in range(num_folds) if other % models != fold]
    return [(fold + step) % num_folds for step in range(1, (votes or num_folds - 1) + 1)]


def _scored_by(fold: int, spec: FoldSpec, votes: int | None, models: int | None) -> IdSet:
    others = scored_folds(fold, spec.num_folds, votes, models)
    # The rule names stored work, so the same samples need the same rule.
    if len(others) == spec.num_folds - 1:
        return Outside(FoldIds(spec, fold))
    return Union(tuple(FoldIds(spec, other) for other in others))


def _numbered(stage: int, sides: Iterable[tuple[int | None, IdSet, IdSet, Mode]], repeats: int) -> list[ScoreTask]:
    return [
        ScoreTask(
            stage=stage, index=place * repeats + repeat, fold=fold, repeat=repeat, train=train, scored=scored, mode=mode
        )
        for place, (fold, train, scored, mode) in enumerate(sides)
        for repeat in range(repeats)
    ]
