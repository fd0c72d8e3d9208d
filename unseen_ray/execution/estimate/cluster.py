"""What a run takes on a given cluster: waves, hours and utilisation of each stage. Needs neither torch nor ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unseen_ray.errors import ConfigError

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.pruning.plan import RunPlan, TaskPlan

__all__ = ["ClusterCost", "Rates", "StageEstimate", "cluster_cost", "hours_of"]

_HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Images per second of one worker in training and in scoring, and of one core in decoding.

    Attributes:
        training, scoring, decode: the rates; None if unknown.
        how: the origin of each rate, by name.
    """

    training: float | None = None
    scoring: float | None = None
    decode: float | None = None
    how: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """What a stage takes on a cluster.

    Attributes:
        stage: its index.
        models: number of models to train.
        workers_each: number of workers that share one training.
        waves: number of rounds of trainings until all models are trained.
        at_once: models in the fullest wave.
        busy: workers that are busy in training.
        scoring: workers that score at the same time.
        idle: workers without work in the last wave.
        worker_hours: hours of busy workers; None without rates, like the next two.
        wall_hours: the sum over waves of the longest training and scoring in each.
        utilisation: worker hours over the hours of all workers in that time.
    """

    stage: int
    models: int
    workers_each: int
    waves: int
    at_once: int
    busy: int
    scoring: int
    idle: int
    worker_hours: float | None
    wall_hours: float | None
    utilisation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCost:
    """What a run takes on a cluster.

    Attributes:
        workers: GPUs or CPU workers of the cluster.
        stages: the estimate of each stage.
        wall_hours: hours of all stages, one after the other; None without rates, like the next four.
        worker_hours: hours of busy workers.
        occupied_hours: hours of all workers, busy or not.
        utilisation: `worker_hours` / `occupied_hours`.
        bottleneck: the longest stage.
    """

    workers: int
    stages: tuple[StageEstimate, ...]
    wall_hours: float | None
    worker_hours: float | None
    occupied_hours: float | None
    utilisation: float | None
    bottleneck: int | None


def cluster_cost(plan: RunPlan, config: PruneConfig, rates: Rates, workers: int) -> ClusterCost:
    """Estimate a run on a cluster, if no worker waits for data and a training on several workers scales perfectly.

    Raises:
        ConfigError: if there are fewer workers than one training needs.
    """
    if max(task.workers for task in plan.tasks) > workers:
        raise ConfigError(
            f"workers={workers} is less than gpus_per_fit={config.gpus_per_fit}, the workers that share a training. Lower gpus_per_fit, "
            "or plan for more workers."
        )
    stages = tuple(
        _stage_cost(stage.index, [task for task in plan.tasks if task.stage == stage.index], config, rates, workers)
        for stage in plan.stages
    )
    wall, busy = (_summed([getattr(stage, name) for stage in stages]) for name in ("wall_hours", "worker_hours"))
    longest = None if wall is None else max(stages, key=lambda stage: stage.wall_hours or 0.0).stage
    return ClusterCost(
        workers=workers,
        stages=stages,
        wall_hours=wall,
        worker_hours=busy,
        occupied_hours=None if wall is None else wall * workers,
        utilisation=None if wall is None or busy is None else busy / (wall * workers),
        bottleneck=longest,
    )


def hours_of(task: TaskPlan, rates: Rates) -> tuple[float, float] | None:
    """Hours of one worker for a model's training and for its scoring; None if a rate is unknown."""
    if rates.training is None or rates.scoring is None or not task.steps:
        return None
    return task.image_passes / rates.training / _HOUR_S, task.scored * task.passes / rates.scoring / _HOUR_S


def _stage_cost(
    stage: int, tasks: Sequence[TaskPlan], config: PruneConfig, rates: Rates, workers: int
) -> StageEstimate:
    models = sum(task.models for task in tasks)
    each = tasks[0].workers
    sharing = _sharing(config) if each == 1 else 1
    slots = workers * sharing
    rounds = math.ceil(models / slots)
    last = models - (rounds - 1) * slots
    spent = [hours_of(task, rates) for task in tasks for _ in range(task.models)]
    known = sorted((hours for hours in spent if hours is not None), key=sum, reverse=True)
    total: float | None = None
    wall: float | None = None
    if len(known) == models:
        total = sum(map(sum, known)) / sharing
        wall = sum(sum(hours) for hours in known[::slots])  # sorted, longest first: the first of a wave decides
        if each > 1:  # trainings that share workers run one after the other, but models score side by side
            wall = sum(train for train, _ in known) / each + sum(score for _, score in known[::slots])
    return StageEstimate(
        stage=stage,
        models=models,
        workers_each=each,
        waves=rounds if each == 1 else models,
        at_once=1 if each > 1 else min(models, slots),
        busy=each if each > 1 else math.ceil(min(models, slots) / sharing),
        scoring=math.ceil(min(models, slots) / sharing),
        idle=workers - (each if each > 1 else math.ceil(last / sharing)),
        worker_hours=total,
        wall_hours=wall,
        utilisation=None if total is None or not wall else total / (workers * wall),
    )


def _sharing(config: PruneConfig) -> int:
    """Number of folds that share a GPU."""
    share = config.gpus_per_fold
    return int(1 / share + 1e-9) if share is not None and 0 < share < 1 else 1


def _summed(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
