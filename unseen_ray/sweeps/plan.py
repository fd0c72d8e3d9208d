"""What a sweep would do, worked out before it starts: its trials, the work they share, and what remains to train."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

import numpy as np

from unseen_ray.config.fields.keywords import with_keywords
from unseen_ray.config.models import SCORING_SPEEDUP
from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.resolved import ResolvedRun, with_model
from unseen_ray.config.run import PruneConfig
from unseen_ray.core.samples.id_sets import ArrayIds
from unseen_ray.core.samples.population import Population
from unseen_ray.core.tasks import ScoreTask
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.execution.estimate.estimate import check_asked
from unseen_ray.plugins import jsonable
from unseen_ray.pruning.plan import RunPlan, plan_run, tasks_of
from unseen_ray.runs.tasks import make_job
from unseen_ray.sweeps.config import SweepConfig, SweepFields
from unseen_ray.sweeps.trials import planned_trials, populations_by_run

__all__ = ["PlannedTrainings", "SweepPlan", "plan_sweep", "sweep_plan_values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrainings:
    """The trainings of a kind: `stage 0`, `stage 1`, ..., `proxy`.

    Attributes:
        kind: the kind.
        asked: requested by the trials.
        needed: upper bound of the distinct ones; coresets that turn out equal save more.
        images_trained, images_scored: by the needed ones.
    """

    kind: str
    asked: int
    needed: int
    images_trained: int
    images_scored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """The sizes of a sweep.

    Attributes:
        num_samples, num_holdout: samples to choose from, and to measure on.
        trials: number of trials; for an open search, the number it may try.
        exact: whether the trials are known before it starts.
        shares: trainings by kind; for an open search, those of trials that try each value once.
    """

    num_samples: int
    num_holdout: int
    trials: int
    exact: bool
    shares: tuple[PlannedTrainings, ...]


class _Tally:
    """Counts trainings by kind, in all and without repeats."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._known: dict[str, dict[str, tuple[int, int]]] = {}

    def add(self, kind: str, key: str, trained: int, scored: int) -> None:
        self._asked[kind] += 1
        self._known.setdefault(kind, {})[key] = trained, scored

    def shares(self) -> tuple[PlannedTrainings, ...]:
        return tuple(
            PlannedTrainings(
                kind=kind,
                asked=self._asked[kind],
                needed=len(works),
                images_trained=sum(trained for trained, _ in works.values()),
                images_scored=sum(scored for _, scored in works.values()),
            )
            for kind, works in sorted(self._known.items(), key=lambda item: (item[0] == "proxy", item[0]))
        )


def plan_sweep(sweep: SweepConfig) -> SweepPlan:
    """Work out what a sweep would do; starts nothing and loads neither torch nor ray.

    Raises:
        ConfigError, DataError: with the problems of the sweep or of one of its trials.
    """
    info = with_groups(open_source(source_ref(sweep.run["source"])), sweep.run.get("group"))
    trials, _ = planned_trials(sweep, info)
    summary, population_of = _Tally(), populations_by_run(info)
    for trial in trials:
        for run in trial.runs:
            _add_run(summary, sweep, with_model(run, info.size_px), info, population_of(run))
    first = population_of(trials[0].runs[0])
    open_search = sweep.search == "optuna"
    return SweepPlan(
        num_samples=len(first),
        num_holdout=len(first.holdout_ids),
        trials=(sweep.trials or 0) if open_search else len(trials),
        exact=not open_search,
        shares=summary.shares(),
    )


@with_keywords(SweepFields)
def sweep_plan_values(
    sweep: SweepConfig | str | os.PathLike[str] | None = None,
    *,
    images_per_s: float | None = None,
    **fields: Unpack[SweepFields],
) -> dict[str, Any]:
    """What `unseen-ray plan SWEEP.yaml --json` prints: the sizes of a sweep and, given a rate, its hours.

    Args:
        sweep: the sweep, as in `sweep`.
        images_per_s: images per second that one worker trains.
        fields: the fields of `SweepConfig`, each in place of that of `sweep`.

    Raises:
        ConfigError, DataError: as `plan_sweep`; also if the rate is not above 0.
    """
    check_asked(None, {"training": images_per_s})
    plan = plan_sweep(SweepConfig.of(sweep, fields))
    trained, scored = (
        sum(getattr(share, name) for share in plan.shares) for name in ("images_trained", "images_scored")
    )
    hours = None if images_per_s is None else (trained + scored / SCORING_SPEEDUP) / images_per_s / 3600
    return {**asdict(plan), "images_trained": trained, "images_scored": scored, "worker_hours": hours}


def _add_run(summary: _Tally, sweep: SweepConfig, run: PruneConfig, info: SourceInfo, population: Population) -> None:
    # A job needs a folder, but the keys of its trainings do not depend on it.
    resolved = ResolvedRun(run.model_copy(update={"out": "."}))
    job = replace(make_job(resolved.for_scoring(), info), test=None)
    plan = plan_run(resolved, population)
    if plan.trials is not None:
        raise ConfigError(
            "policy auto with trials has no place in a sweep, which measures policies itself: sweep over policy, or leave out trials."
        )
    sizes = {(task.stage, task.trained): task for task in plan.tasks}
    keys = []
    for task in tasks_of(plan.stages[0], run, ArrayIds(np.empty(0, np.int64))):
        key = job.task_key(task, population)
        size = sizes[0, _count(task, population)]
        keys.append(key)
        summary.add("stage 0", key, size.image_passes, size.scored * size.passes)
    # Which samples a stage keeps is known only after training, so its key is what determines them.
    chosen = fingerprint_of(*sorted(keys), *(json.dumps(jsonable(getattr(run, name))) for name in _CHOOSE))
    for stage in plan.stages[1:]:
        size = next(task for task in plan.tasks if task.stage == stage.index)
        kept = fingerprint_of(chosen, *(str(each.target) for each in plan.stages[: stage.index]))
        for repeat in range(run.repeats):
            summary.add(f"stage {stage.index}", f"{kept} {repeat}", size.image_passes, size.scored * size.passes)
    _add_proxies(summary, sweep, run, plan, population, chosen)


def _add_proxies(
    summary: _Tally, sweep: SweepConfig, run: PruneConfig, plan: RunPlan, population: Population, chosen: str
) -> None:
    """The proxy trainings on the last coreset and on the baselines; with a scheduler, on the coreset of every stage."""
    recipe = Recipe(**recipe_values(sweep.proxy.recipe or sweep.run.get("recipe") or "quick"))
    total, scored = len(population), len(population.holdout_ids)
    measured = plan.stages if sweep.scheduler is not None else plan.stages[-1:]
    epochs = (
        recipe.model_copy(update={"epochs": recipe.epochs_of(total), "min_steps": 0})
        if recipe.steps is None
        else recipe
    )
    for stage in measured:
        targets = [each.target for each in plan.stages[: stage.index + 1]]
        arms = {"coreset": (fingerprint_of(chosen, *map(str, targets)), stage.target)}
        for name in sweep.measured_against():
            own = name == "random_matched"
            arms[name] = (f"{chosen} {targets}" if own else f"{run.seed}", total if name == "full" else stage.target)
        for name, (key, samples) in arms.items():
            for repeat in range(sweep.proxy.trainings):
                summary.add("proxy", f"{name} {key} {samples} {repeat}", epochs.image_passes(samples), scored)


def _count(task: ScoreTask, population: Population) -> int:
    return len(task.train.resolve(population))


_CHOOSE = ("score", "combine", "policy", "guard", "seed", "repeats", "model", "threads")
"""Fields that, with the votes of stage 0, determine what a later stage trains on, and how."""
