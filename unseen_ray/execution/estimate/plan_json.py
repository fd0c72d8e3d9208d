"""What a run would do and cost, as the values that `plan --json` prints."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.models import SCORING_SPEEDUP
from unseen_ray.core.arrays import labels_by_chunk
from unseen_ray.core.trajectory import scored_epochs
from unseen_ray.data.images.memory import fits_in_memory
from unseen_ray.errors import ConfigError
from unseen_ray.execution.estimate.cluster import ClusterCost, Rates, cluster_cost
from unseen_ray.execution.estimate.estimate import where_pixels_are
from unseen_ray.execution.estimate.resources import Need, disk_bytes_of
from unseen_ray.plugins import jsonable

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.data.sources.registry import SourceInfo
    from unseen_ray.pruning.plan import RunPlan

__all__ = ["values_of"]


def values_of(
    plan: RunPlan,
    info: SourceInfo,
    config: PruneConfig,
    rates: Rates,
    *,
    cluster: ClusterCost | None = None,
    needs: Sequence[Need] = (),
) -> dict[str, Any]:
    """What a run would do and cost, as JSON values.

    Args:
        plan, info, config: the run's plan, its source, and its configuration with the model.
        rates: images per second, as far as they are known.
        cluster: what it takes on a given cluster.
        needs: cores, reads, network and disk.
    """
    return {
        **_source(info),
        "num_samples": plan.num_samples,
        "holdout": plan.num_holdout,
        "num_classes": plan.num_classes,
        "budget": plan.budget,
        **_trained(config),
        "scoring": None if config.fit else _trained(plan.resolved.config),
        "stages": _stages(plan),
        **_cost(plan, rates),
        "pixel_bytes": plan.num_samples * info.size_px**2 * 3,
        "pixels_held": where_pixels_are(config, info),
        "pixels_in_memory": fits_in_memory(len(info), info.size_px, config.pixel_memory_gb),
        "disk_bytes": sum(disk_bytes_of(plan)),
        "recorded_bytes": _recorded_bytes(plan),
        "rates": asdict(rates),
        "cluster": None if cluster is None else asdict(cluster),
        "needs": [asdict(need) for need in needs],
        **({"placement": config.placement} if config.placement else {}),
        "warnings": list(plan.warnings),
    }


def _empty_classes(info: SourceInfo) -> int:
    present_C = np.zeros(info.num_classes, bool)
    for _, piece in labels_by_chunk(info.labels_N):
        present_C[piece] = True
    return int(info.num_classes - present_C.sum())


def _source(info: SourceInfo) -> dict[str, Any]:
    return {
        "source": info.name,
        "note": info.note,
        "passed_over": info.passed_over,
        "class_names": list(info.class_names),
        "empty_classes": _empty_classes(info),
        "image_px": info.size_px,
        "original_px": info.original_px,
    }


def _stages(plan: RunPlan) -> list[dict[str, Any]]:
    stages: dict[int, dict[str, Any]] = {}
    for task in plan.tasks:
        entry = stages.setdefault(task.stage, {"stage": task.stage, "tasks": []})
        entry["tasks"].append(
            {
                "models": task.models,
                "train_on": task.trained,
                "score": task.scored,
                "scoring_passes": task.passes,
                "steps": task.steps,
                "batch_size": task.batch_size,
                **({"trials": True} if task.is_trial else {}),
            }
        )
    for stage in plan.stages:
        stages[stage.index] |= {"target": stage.target, "added": stage.added}
    return [stages[index] for index in sorted(stages)]


def _trained(config: PruneConfig) -> dict[str, Any]:
    return {
        "model": jsonable(config.fit or config.model),
        "recipe": None if config.fit else config.recipe.model_dump(),
    }


def _cost(plan: RunPlan, rates: Rates) -> dict[str, Any]:
    models = sum(task.models for task in plan.tasks)
    trained = sum(task.models * task.image_passes for task in plan.tasks)
    scored = sum(task.models * task.scored * task.passes for task in plan.tasks)
    bill = plan.bill(speedup=rates.scoring / rates.training if rates.training and rates.scoring else SCORING_SPEEDUP)
    # with a worker for each model, the wall time is the critical path
    config = plan.resolved.config
    most = max(config.gpus_per_fit, models)
    unbound = cluster_cost(plan, config.model_copy(update={"gpus_per_fold": None}), rates, most)
    return {
        "models": models,
        "images_trained": trained,
        "images_scored": scored,
        "full_trainings": trained / plan.full_passes(),
        "bill": bill,
        **({} if plan.trials is None else {"trials_bill": plan.trials_bill()}),
        "pays_after_trainings": _pays_after(bill, plan),
        "worker_hours": unbound.worker_hours,
        "critical_path_hours": unbound.wall_hours,
        "images_per_s": rates.training,
    }


def _pays_after(bill: float | None, plan: RunPlan) -> float | None:
    """Number of trainings on the coreset, instead of all data, that save the cost of the run; None if they save nothing.

    Both train for as many epochs, as in `evaluate`.
    """
    recipe, workers = plan.asked.recipe, plan.asked.gpus_per_fit
    if recipe.steps is None:
        recipe = recipe.of_epochs(recipe.epochs_of(plan.num_samples, workers=workers))
    saved = 1 - recipe.image_passes(plan.budget, workers=workers) / plan.full_passes()
    return None if bill is None or saved <= 0 else bill / saved


def _recorded_bytes(plan: RunPlan) -> int:
    """Bytes of memory that scores over epochs take on a worker while a model trains."""
    scores = plan.resolved.scores
    most = 0
    for task in [task for task in plan.tasks if scores.over_epochs and not task.is_trial]:
        numbers = scored_epochs(task.epochs, scores.every)
        each = 0
        for trajectory in scores.over_epochs.values():
            with contextlib.suppress(ConfigError):  # too few epochs for this score: it is left out
                each += sum(values.nbytes for values in trajectory.reduce(1, numbers).state.values())
        compares = any(trajectory.compares for trajectory in scores.over_epochs.values())
        most = max(most, task.scored * (each + (2 * plan.num_classes if compares else 0)))
    return most
