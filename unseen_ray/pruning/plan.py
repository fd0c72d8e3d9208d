"""What a run would do, worked out before anything starts: sizes, tasks, warnings, cost. Neither torch nor ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.models import SCORING_SPEEDUP, relative_cost
from unseen_ray.core.policies.auto import LEAST_PER_CLASS
from unseen_ray.core.samples.id_sets import IdSet, fold_sizes, grouped_folds
from unseen_ray.core.schedule import Stage, stages_of
from unseen_ray.core.tasks import ScoreTask, later_tasks, scored_folds, stage_zero_tasks
from unseen_ray.core.trajectory import scored_epochs
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import plug_of
from unseen_ray.pruning.trials.plan import TrialPlan, plan_trials
from unseen_ray.runs.tasks import fold_spec, train_sizes

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.samples.population import Population

__all__ = ["RunPlan", "TaskPlan", "plan_run", "tasks_of", "warnings_of"]

_NOTABLE = 0.1  # of the holdout that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """The tasks of a stage that are alike in size.

    Attributes:
        stage: which.
        models: how many are trained.
        trained: samples each trains on.
        scored: samples each scores.
        batch_size, steps, epochs: of each training; 0 with a user's own `fit`.
        image_passes: images that go through the training of one model.
        passes: how often a model scores: after each scored epoch, where scores over epochs are stored.
        workers: that share a training.
        is_trial: whether they are trials, which measure a subset on what they score, and store no votes.
    """

    stage: int
    models: int
    trained: int
    scored: int
    batch_size: int
    steps: int
    epochs: int
    image_passes: int
    passes: int = 1
    workers: int = 1
    is_trial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The sizes of a run, and what they were worked out from.

    Attributes:
        resolved: with the model and the recipe that score.
        asked: the run's configuration, whose model and recipe are those of the training that the choice is for.
        num_samples, num_holdout, num_classes: of the data.
        stages: their targets.
        tasks: their trainings, and last those of the trials.
        trials: of `policy: auto`; None without.
        warnings: what is allowed and worth knowing.
    """

    resolved: ResolvedRun
    asked: PruneConfig
    num_samples: int
    num_holdout: int
    num_classes: int
    stages: tuple[Stage, ...]
    tasks: tuple[TaskPlan, ...]
    trials: TrialPlan | None
    warnings: tuple[str, ...]

    @property
    def budget(self) -> int:
        """Samples kept in the end."""
        return self.stages[-1].target

    def full_passes(self) -> int:
        """Images that one training on all samples, with the run's recipe, processes."""
        return self.asked.recipe.image_passes(self.num_samples, workers=self.asked.gpus_per_fit)

    def bill(self, *, speedup: float = SCORING_SPEEDUP) -> float | None:
        """The cost of the choice as a share of one training of the run's model on all samples; None if it is not known.

        Counts images, weighted by the multiply-accumulates of the two models.

        Args:
            speedup: how many images a model scores in the time in which it trains on one.
        """
        return self._share_of(self.tasks, speedup)

    def trials_bill(self) -> float | None:
        """The part of the bill that trials are."""
        return self._share_of([task for task in self.tasks if task.is_trial], SCORING_SPEEDUP)

    def _share_of(self, tasks: Sequence[TaskPlan], speedup: float) -> float | None:
        each = None if self.asked.fit is not None else relative_cost(self.resolved.config.model, self.asked.model)
        if each is None:
            return None
        images = sum(task.models * (task.image_passes + task.scored * task.passes / speedup) for task in tasks)
        return each * images / self.full_passes()


def plan_run(resolved: ResolvedRun, population: Population) -> RunPlan:
    """Check a configuration against the data and work out what it would do.

    Args:
        resolved: of the run; the plan is that of its scoring models.
        population: its samples.

    Raises:
        ConfigError: with every problem at once.
    """
    asked, resolved = resolved.config, resolved.for_scoring()
    config, total = resolved.config, len(population)
    problems: list[str] = []
    stages: tuple[Stage, ...] = ()
    try:
        stages = stages_of(config.fractions(), total)
    except ConfigError as error:
        problems += error.problems
    problems += _fold_problems(config, population)
    least = 2 * config.gpus_per_fit
    if stages and len(stages) > 1 and stages[0].target < least:
        problems.append(
            f"the first stage keeps {stages[0].target} sample{'s' if stages[0].target > 1 else ''}; the next one trains on "
            f"them and needs at least {least}. Begin the schedule higher."
        )
    if stages and config.gpus_per_fit > 1 and stages[-1].target < least:
        problems.append(
            f"gpus_per_fit={config.gpus_per_fit} workers cannot share {stages[-1].target} samples: each needs 2. Lower gpus_per_fit."
        )
    if config.fit is None and not problems:
        problems += _problems_over_epochs(resolved, stages, population)
    if problems:
        raise ConfigError(problems)
    trials = plan_trials(asked, config, total, stages[0].target)
    tasks = _task_plans(resolved, stages, population)
    return RunPlan(
        resolved=resolved,
        asked=asked,
        num_samples=total,
        num_holdout=len(population.holdout_ids),
        num_classes=population.num_classes,
        stages=stages,
        tasks=(*tasks, *([] if trials is None else [_task_plan_of(trials, config)])),
        trials=trials,
        warnings=tuple(warnings_of(config, population, stages)),
    )


def _fold_problems(config: PruneConfig, population: Population) -> Iterator[str]:
    """What is wrong with the folds and the holdout of this data."""
    total, groups_R = len(population), population.groups_R
    if config.holdout and not len(population.holdout_ids):
        why = "its share of every class rounds to 0" if groups_R is None else "every group is larger than it"
        yield f"holdout={config.holdout:g} is empty: {why}. Raise it, or give a test set."
    if config.mode != "unseen":
        return
    if config.folds > total:
        yield f"folds={config.folds} is outside 2..{total} (the number of samples). Choose fewer folds."
    elif groups_R is not None and not min(fold_sizes(population, fold_spec(config))):
        groups = len(np.unique(groups_R[population.ids_N]))
        yield (
            f"folds={config.folds} leaves a fold empty, because groups are not split and there are {groups:,}. "
            "Choose fewer folds or other groups."
        )
    elif min(sizes := train_sizes(config, population)) < 2:
        yield (
            f"folds={config.folds} of {total} samples leaves a fold of {min(sizes)} to train on; "
            "a model needs at least 2. Choose fewer folds, or train_on: complement."
        )


def tasks_of(stage: Stage, config: PruneConfig, coreset: IdSet, *, limits: Limits = DEFAULT_LIMITS) -> list[ScoreTask]:
    """The tasks of a stage: the folds (or the fitting model) in stage 0, models of the coreset afterwards."""
    if stage.index == 0:
        return stage_zero_tasks(
            mode=config.mode,
            spec=fold_spec(config, limits),
            train_on=config.train_on,
            repeats=config.repeats,
            votes=config.scoring.votes,
            models=config.scoring.models,
        )
    return later_tasks(stage=stage.index, coreset=coreset, repeats=config.repeats)


def warnings_of(config: PruneConfig, population: Population, stages: Sequence[Stage]) -> list[str]:
    """What is allowed and worth knowing, with numbers."""
    warnings = []
    counts_C = population.class_counts()
    empty = np.flatnonzero(counts_C == 0)
    if empty.size:
        warnings.append(
            f"{empty.size} of {len(counts_C)} classes have no sample (the first is {empty[0]}); "
            f"models get {len(counts_C)} outputs nevertheless."
        )
    if config.mode == "unseen" and config.stratify and population.groups_R is None:
        few = np.flatnonzero((counts_C > 0) & (counts_C < config.folds))
        if few.size:
            warnings.append(
                f"{few.size} classes have fewer samples than the {config.folds} folds (class {few[0]} has {counts_C[few[0]]}): "
                "some folds have no sample of them."
            )
    asked, held = round(config.holdout * (len(population) + len(population.holdout_ids))), len(population.holdout_ids)
    if abs(held - asked) > _NOTABLE * asked:
        why = "each class gives a whole number" if population.groups_R is None else "groups are not split"
        warnings.append(f"the holdout has {held:,} samples instead of {asked:,}, because {why}.")
    warnings += _group_warnings(config, population, stages)
    trained = [len(population)] if config.mode == "fitting" else train_sizes(config, population)
    smallest = min([*trained, *(stage.target for stage in stages[:-1])])
    if config.fit is None and smallest < config.recipe.batch_size:
        warnings.append(
            f"the smallest training set holds {smallest} samples, fewer than the batch of {config.recipe.batch_size}: "
            f"its batch shrinks to {smallest}."
        )
    use, options = plug_of(config.policy)
    each = stages[-1].target / max(int((counts_C > 0).sum()), 1)
    if use == "auto" and not options.get("trials") and each < LEAST_PER_CLASS:
        warnings.append(
            f"policy auto will draw at random: {each:.3g} samples of a class are kept on average, fewer than {LEAST_PER_CLASS}. A random "
            "subset needs no scores. Keep more, or name another policy."
        )
    return warnings


def _group_warnings(config: PruneConfig, population: Population, stages: Sequence[Stage]) -> Iterator[str]:
    if len(population.copy_ids):
        left_out = len(population.copy_ids)
        yield f"{left_out:,} samples are left out because another one of their group is used; which class that one has is left to chance."
    if population.groups_R is None:
        return
    _, members_G = np.unique(population.groups_R[population.ids_N], return_counts=True)
    many = members_G[members_G > 1]
    alone = f", {(members_G == 1).sum():,} samples are alone" if (members_G == 1).any() else ""
    said = f"{many.sum():,} samples are in groups, {len(many):,} in all, the largest of {many.max(initial=1):,}{alone}"
    if config.mode == "fitting":
        yield f"{said}."
        return
    fold_of_N, size_K = grouped_folds(population, fold_spec(config))
    yield f"{said}; folds keep each whole and have {size_K.min():,} to {size_K.max():,} samples."
    places_N = fold_of_N.astype(np.int64) * population.num_classes + population.labels_N
    counts_KC = np.bincount(places_N, minlength=config.folds * population.num_classes).reshape(config.folds, -1)
    missing = np.flatnonzero((counts_KC == 0).any(axis=0) & (counts_KC > 0).any(axis=0))
    if missing.size:
        folds = int((counts_KC[:, missing[0]] == 0).sum())
        yield f"{missing.size} classes are missing from some folds (class {missing[0]} from {folds} of {config.folds})."
    if len(stages) > 1:
        yield "models of later stages train on the coreset, and may score other samples of its groups."


def _task_plan_of(trials: TrialPlan, config: PruneConfig) -> TaskPlan:
    recipe = config.recipe.of_epochs(trials.epochs)
    batch, steps = recipe.plan(trials.trained)
    return TaskPlan(
        stage=0,
        models=trials.trainings,
        trained=trials.trained,
        scored=trials.set_aside,
        batch_size=batch,
        steps=steps,
        epochs=trials.epochs,
        image_passes=recipe.image_passes(trials.trained),
        is_trial=True,
    )


def _problems_over_epochs(resolved: ResolvedRun, stages: Sequence[Stage], population: Population) -> list[str]:
    """Scores over epochs that somebody asks for and the trainings have too few epochs for; others are left out."""
    problems: list[str] = []
    scores = resolved.scores
    tasks = _task_plans(resolved, stages, population) if scores.over_epochs else ()
    for epochs in sorted({task.epochs for task in tasks}):
        numbers = scored_epochs(epochs, scores.every)
        for name in sorted(scores.asked & scores.over_epochs.keys()):
            trajectory = scores.over_epochs[name]
            try:
                trajectory.reduce(0, numbers)
            except ConfigError as error:
                problems += [f"score {name}: {problem}" for problem in error.problems]
    return list(dict.fromkeys(problems))


def _task_plans(resolved: ResolvedRun, stages: Sequence[Stage], population: Population) -> list[TaskPlan]:
    plans, config, scores, total = [], resolved.config, resolved.scores, len(population)
    recipe, own = config.recipe, config.fit is not None
    for stage in stages:
        workers = resolved.workers_of_fit(of_fold=stage.index == 0 and config.mode == "unseen")
        if stage.index > 0:
            sizes = [(stage.target - stage.added, total - stage.target + stage.added)]
        elif config.mode == "fitting":
            sizes = [(total, total)]
        else:
            folds = fold_sizes(population, fold_spec(config))
            sizes = [(total - n, n) for n in folds]
            if config.train_on == "fold":
                votes, models = config.scoring.votes, config.scoring.models
                others = [scored_folds(fold, config.folds, votes, models) for fold in range(config.folds)]
                sizes = [(n, sum(folds[other] for other in its)) for n, its in zip(folds, others, strict=True)]
                sizes = sizes[:models]
        common = recipe.common_epoch([trained for trained, _ in sizes], over_epochs=bool(scores.over_epochs))
        for trained, scored in sorted(set(sizes), reverse=True):
            samples = common or trained
            batch, steps = (0, 0) if own else recipe.plan(samples, workers=workers)
            epochs = 0 if own else recipe.epochs_in_all(samples, workers=workers)
            plans.append(
                TaskPlan(
                    stage=stage.index,
                    models=sizes.count((trained, scored)) * config.repeats,
                    trained=trained,
                    scored=scored,
                    batch_size=batch,
                    steps=steps,
                    epochs=epochs,
                    image_passes=0 if own else recipe.image_passes(samples, workers=workers),
                    passes=len(scored_epochs(epochs, scores.every)) if scores.over_epochs else 1,
                    workers=workers,
                )
            )
    return plans
