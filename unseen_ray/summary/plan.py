"""What a run would do and cost."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from rich.table import Table

from unseen_ray.config import PruneConfig, jsonable
from unseen_ray.core.trajectory import scored_epochs
from unseen_ray.data.budget import fits_in_memory
from unseen_ray.errors import ConfigError
from unseen_ray.job import carries_probs
from unseen_ray.planning import RunPlan, model_name
from unseen_ray.scoring import stored_scores
from unseen_ray.sources import SourceInfo
from unseen_ray.summary.text import several, table_of

__all__ = ["SCORING_SPEEDUP", "plan_lines", "plan_table", "plan_values"]

SCORING_SPEEDUP = 3.0  # a forward pass beside forward, backward and step
_VOTE_BYTES = 8 + 8 + 4 + 4


def plan_values(plan: RunPlan, info: SourceInfo, config: PruneConfig, images_per_s: float | None) -> dict[str, Any]:
    """What a run would do and cost.

    Args:
        plan: its sizes.
        info: the source.
        config: with the model named.
        images_per_s: training images a second of one worker, if the user gave it.
    """
    stages: dict[int, dict[str, Any]] = {}
    longest: dict[int, float] = {}
    trained = scored = voted = 0
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
        work = task.image_passes + task.scored * task.passes / SCORING_SPEEDUP
        longest[task.stage] = max(longest.get(task.stage, 0), work)
        trained += task.models * task.image_passes
        scored += task.models * task.scored * task.passes
        voted += task.models * task.scored
    for stage in plan.stages:
        stages[stage.index] |= {"target": stage.target, "added": stage.added}
    total = trained + scored / SCORING_SPEEDUP
    return {
        "source": info.name,
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
        "pays_after_trainings": _pays_after(total, plan, config),
        "worker_hours": None if images_per_s is None or config.fit else total / images_per_s / 3600,
        "critical_path_hours": None
        if images_per_s is None or config.fit
        else sum(longest.values()) / images_per_s / 3600,
        "images_per_s": images_per_s,
        "pixel_bytes": plan.num_samples * info.size_px**2 * 3,
        "pixels_in_memory": fits_in_memory(len(info), info.size_px, config.pixel_memory_gb),
        "disk_bytes": _disk_bytes(plan, config, voted),
        "recorded_bytes": _recorded_bytes(plan, config),
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
        f"keep {config.keep:g}: {values['budget']:,} samples in {several(len(values['stages']), 'stage')}",
        f"model {model_name(config)}"
        + (" (chosen by the image size)" if chosen else "")
        + (f", recipe {config.recipe.use}" if values["recipe"] else ", your own training"),
        f"{several(values['models'], 'training')}, {values['images_trained']:,} images through training "
        f"(as many as {values['full_trainings']:.2f} trainings on all data), {values['images_scored']:,} through scoring"
        if values["recipe"]
        else f"{several(values['models'], 'training')}, {values['images_scored']:,} samples scored",
    ]
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
            f"at {values['images_per_s']:,.0f} images/s a worker: {_hours(values['worker_hours'])} of one worker's time, "
            f"{_hours(values['critical_path_hours'])} if no fold waits for another"
        )
    elif values["recipe"]:
        lines.append("for hours, say how fast one worker trains: --images_per_s NUMBER")
    if values["pays_after_trainings"] is not None:
        lines.append(
            f"paid for after about {several(math.ceil(values['pays_after_trainings']), 'training')} of the same recipe on "
            "what is kept, which pass over fewer images"
        )
    elif values["recipe"]:
        lines.append(
            "a training of the same recipe on what is kept takes as many steps as on everything: no time is saved"
        )
    where = "in memory on every node" if values["pixels_in_memory"] else "decoded as they are needed"
    lines.append(
        f"pixels take {_bytes(values['pixel_bytes'])} ({where}), the run's files about {_bytes(values['disk_bytes'])}"
    )
    if values["recorded_bytes"]:
        lines.append(f"scores over epochs take {_bytes(values['recorded_bytes'])} of a worker's memory")
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


def _disk_bytes(plan: RunPlan, config: PruneConfig, scored: int) -> int:
    columns = len(stored_scores(config).named)
    votes = scored * (_VOTE_BYTES + 4 * columns)
    if carries_probs(config):
        votes += scored * plan.num_classes * 4
    tables = plan.num_samples * (32 + 8 * columns) * len(plan.stages)
    return votes + tables


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


def _hours(hours: float) -> str:
    return (
        f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min" if hours * 60 >= 1 else f"{hours * 3600:,.0f} s"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
