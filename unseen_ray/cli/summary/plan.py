"""What a run would do and cost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from unseen_ray.config import PruneConfig, jsonable
from unseen_ray.core.trajectory import scored_epochs
from unseen_ray.costing import SCORING_SPEEDUP, ClusterCost, Rates, cluster_cost
from unseen_ray.data.budget import fits_in_memory
from unseen_ray.errors import ConfigError
from unseen_ray.estimating import where_pixels_are
from unseen_ray.needs import Need, disk_bytes_of
from unseen_ray.planning import RunPlan
from unseen_ray.resolve import name_of, plug_of
from unseen_ray.scoring import stored_scores
from unseen_ray.sources import SourceInfo
from unseen_ray.summary.text import bytes_text, hours_text, several, table_of

__all__ = ["plan_lines", "plan_table", "plan_values"]


def plan_values(
    plan: RunPlan,
    info: SourceInfo,
    config: PruneConfig,
    rates: Rates,
    *,
    cluster: ClusterCost | None = None,
    needs: Sequence[Need] = (),
) -> dict[str, Any]:
    """What a run would do and cost.

    Args:
        plan: its sizes.
        info: the source.
        config: with the model named.
        rates: images a second, as far as they are known.
        cluster: what it takes of a stated cluster.
        needs: cores, reads, network and disk.
    """
    stages: dict[int, dict[str, Any]] = {}
    trained = scored = 0
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
            }
        )
        trained += task.models * task.image_passes
        scored += task.models * task.scored * task.passes
    for stage in plan.stages:
        stages[stage.index] |= {"target": stage.target, "added": stage.added}
    faster = SCORING_SPEEDUP if not (rates.training and rates.scoring) else rates.scoring / rates.training
    most = max(config.gpus_per_fit, sum(task.models for task in plan.tasks))
    unbound = cluster_cost(plan, config.model_copy(update={"gpus_per_fold": None}), rates, most)
    votes, tables = disk_bytes_of(plan, config)
    return {
        "source": info.name,
        "note": info.note,
        "num_samples": plan.num_samples,
        "holdout": plan.num_holdout,
        "num_classes": plan.num_classes,
        "image_px": info.size_px,
        "original_px": info.original_px,
        "budget": plan.budget,
        "model": jsonable(config.fit or config.model),
        "recipe": None if config.fit else config.recipe.model_dump(),
        "stages": [stages[index] for index in sorted(stages)],
        "models": sum(task.models for task in plan.tasks),
        "images_trained": trained,
        "images_scored": scored,
        "full_trainings": trained / _passes(plan.num_samples, config),
        "pays_after_trainings": _pays_after(trained + scored / faster, plan, config),
        "worker_hours": unbound.worker_hours,
        "critical_path_hours": unbound.wall_hours,
        "images_per_s": rates.training,
        "pixel_bytes": plan.num_samples * info.size_px**2 * 3,
        "pixels_held": where_pixels_are(config, info),
        "pixels_in_memory": fits_in_memory(len(info), info.size_px, config.pixel_memory_gb),
        "disk_bytes": votes + tables,
        "recorded_bytes": _recorded_bytes(plan, config),
        "rates": asdict(rates),
        "cluster": None if cluster is None else asdict(cluster),
        "needs": [asdict(need) for need in needs],
        "warnings": list(plan.warnings),
    }


def plan_lines(values: dict[str, Any], config: PruneConfig, *, chosen: bool) -> list[str]:
    """A plan in sentences; `chosen` says that the model follows from the image size."""
    original = values["original_px"]
    size = f"{values['image_px']} px" + (
        ""
        if original and original == (values["image_px"],) * 2
        else f", scaled from {original[1]}x{original[0]}"
        if original
        else ", scaled from various sizes"
    )
    lines = [
        f"{values['source']}: {values['num_samples']:,} samples of {values['num_classes']} classes, images of {size}"
        + (f"; {values['holdout']:,} more are held out" if values["holdout"] else ""),
        *([f"note: {values['note']}"] if values["note"] else []),
        f"keep {config.keep:g}: {values['budget']:,} samples in {several(len(values['stages']), 'stage')}",
        f"model {name_of(plug_of(values['model'])[0])}"
        + (" (chosen by the image size)" if chosen else "")
        + (f", recipe {config.recipe.use}" if values["recipe"] else ", your own training"),
        f"{several(values['models'], 'training')}, {values['images_trained']:,} images through training "
        f"(as many as {values['full_trainings']:.2f} trainings on all data), {values['images_scored']:,} through scoring"
        if values["recipe"]
        else f"{several(values['models'], 'training')}, {values['images_scored']:,} samples scored",
    ]
    start = values["recipe"] or {}
    if start.get("init") is not None:
        word = "by your word they never saw a sample" if start.get("init_saw") else "nothing is known of what they saw"
        lines.append(f"every training starts from {start['init']} (SHA-256 {start['init_sha256']}); {word}")
    raised = [
        (task["train_on"], task["steps"] // max(task["train_on"] // max(task["batch_size"], 1), 1))
        for stage in values["stages"]
        for task in stage["tasks"]
    ]
    smallest, epochs = min(raised) if values["recipe"] else (0, 0)
    if values["recipe"] and config.recipe.epochs and epochs > config.recipe.epochs:
        lines.append(
            f"recipe.min_steps {config.recipe.min_steps} makes {epochs} epochs of {config.recipe.epochs} "
            f"for the smallest training set of {smallest:,} samples; lower it for a quicker run"
        )
    if values["worker_hours"] is not None:
        lines.append(
            f"at {values['images_per_s']:,.0f} images/s a worker: {hours_text(values['worker_hours'])} of one worker's time, "
            f"{hours_text(values['critical_path_hours'])} if no fold waits for another"
        )
    elif values["recipe"]:
        lines.append("for hours, say how fast one worker trains: --images_per_s NUMBER, or --measure it here")
    if values["pays_after_trainings"] is not None:
        lines.append(
            f"paid for after about {several(math.ceil(values['pays_after_trainings']), 'training')} of the same recipe on "
            "what is kept, which pass over fewer images"
        )
    elif values["recipe"]:
        lines.append(
            "a training of the same recipe on what is kept takes as many steps as on everything: no time is saved"
        )
    held = {"memory": "in memory on every node", "files": "decoded once, into files", "none": "decoded at every read"}
    where = held[values["pixels_held"]]
    lines.append(
        f"pixels take {bytes_text(values['pixel_bytes'])} ({where}), the run's files about {bytes_text(values['disk_bytes'])}"
    )
    if values["recorded_bytes"]:
        lines.append(f"scores over epochs take {bytes_text(values['recorded_bytes'])} of a worker's memory")
    return lines


def plan_table(values: dict[str, Any]) -> Table:
    """The tasks of each stage."""
    table = table_of("stage", "kept", "added", "models", "train on", "steps x batch", "score")
    for stage in values["stages"]:
        for task in stage["tasks"]:
            table.add_row(
                str(stage["stage"]),
                f"{stage['target']:,}",
                f"{stage['added']:,}",
                str(task["models"]),
                f"{task['train_on']:,}",
                f"{task['steps']:,} x {task['batch_size']}" if task["steps"] else "your own",
                f"{task['score']:,}" + (f" x {task['scoring_passes']}" if task["scoring_passes"] > 1 else ""),
            )
    return table


def _passes(num_samples: int, config: PruneConfig) -> int:
    """Images that go through one training on so many samples."""
    return config.recipe.image_passes(num_samples, workers=config.gpus_per_fit)


def _pays_after(total: float, plan: RunPlan, config: PruneConfig) -> float | None:
    """Trainings by the same recipe on what is kept that save what the run costs; None where they save nothing."""
    saved = _passes(plan.num_samples, config) - _passes(plan.budget, config)
    return None if config.fit is not None or saved <= 0 else total / saved


def _recorded_bytes(plan: RunPlan, config: PruneConfig) -> int:
    """Memory that scores over epochs take of a worker while a model trains."""
    scores = stored_scores(config)
    most = 0
    for task in plan.tasks if scores.over_epochs else ():
        numbers = scored_epochs(config.recipe.epochs_in_all(task.trained), scores.every)
        each = 0
        for trajectory in scores.over_epochs.values():
            with contextlib.suppress(ConfigError):  # it is left out
                each += sum(values.nbytes for values in trajectory.reduce(1, numbers).state.values())
        compares = any(trajectory.compares for trajectory in scores.over_epochs.values())
        most = max(most, task.scored * (each + (2 * plan.num_classes if compares else 0)))
    return most
