"""What a run would do and cost."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from unseen_ray.cli.summary.text import bytes_text, hours_text, several, table_of
from unseen_ray.config.run import PruneConfig
from unseen_ray.plugins import name_of, plug_of

__all__ = ["plan_lines", "plan_table"]


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
