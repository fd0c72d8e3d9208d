"""The plan of a run: what it would do and cost."""

from __future__ import annotations

import math
from typing import Any

from unseen_ray.cli.summary.text import bytes_text, held_out_text, hours_text, several
from unseen_ray.cli.tables import Column, Table
from unseen_ray.config.named_recipes import recipe_name
from unseen_ray.config.run import PruneConfig
from unseen_ray.execution.cards import placement_texts
from unseen_ray.plugins import name_of, plug_of

__all__ = ["plan_lines", "plan_table"]

_NAMED_CLASSES = 6
_PIXELS_HELD = {
    "memory": "in memory on every node",
    "files": "decoded once, into files",
    "none": "decoded at every read",
}


def plan_lines(values: dict[str, Any], config: PruneConfig, *, chosen: bool) -> list[str]:
    """A plan in sentences; `chosen` says that the model was chosen by the image size."""
    lines = [
        _data_line(values),
        *_source_lines(values),
        f"keep {config.keep:g}: {values['budget']:,} samples in {several(len(values['stages']), 'stage')}",
        f"model {name_of(plug_of(values['model'])[0])}"
        + (" (chosen by the image size)" if chosen else "")
        + (f", recipe {config.recipe.use}" if values["recipe"] else ", your own training"),
    ]
    if values["recipe"]:
        lines += [
            *_scoring_lines(values),
            _work_line(values),
            *_start_lines(values["scoring"]["recipe"]),
            *_raised_lines(values),
        ]
    else:
        lines.append(f"{several(values['models'], 'training')}, {values['images_scored']:,} samples scored")
    lines += [*_time_lines(values), *placement_texts(config.placement)]
    where = _PIXELS_HELD[values["pixels_held"]]
    lines.append(
        f"pixels take {bytes_text(values['pixel_bytes'])} ({where}), the run's files about {bytes_text(values['disk_bytes'])}"
    )
    if values["recorded_bytes"]:
        lines.append(f"recording scores over epochs takes {bytes_text(values['recorded_bytes'])} of a worker's memory")
    return lines


def _data_line(values: dict[str, Any]) -> str:
    original, size_px = values["original_px"], values["image_px"]
    size = f"{size_px} px"
    if not original:
        size += ", scaled from various sizes"
    elif tuple(original) != (size_px, size_px):
        size += f", scaled from {original[1]}x{original[0]}"
    held_out = held_out_text(values["holdout"], values["num_samples"])
    return f"{values['source']}: {values['num_samples']:,} samples{held_out} of {values['num_classes']} classes, images of {size}"


def _source_lines(values: dict[str, Any]) -> list[str]:
    """The first classes, so that a wrong folder is noticed before anything is trained, and remarks."""
    names = values["class_names"]
    more = f" and {len(names) - _NAMED_CLASSES:,} more" if len(names) > _NAMED_CLASSES else ""
    return [
        *([f"classes: {', '.join(names[:_NAMED_CLASSES])}{more}"] if names else []),
        *([_of_empty_classes(values)] if values["empty_classes"] else []),
        *([f"ignored: {values['passed_over']}"] if values["passed_over"] else []),
        *([f"note: {values['note']}"] if values["note"] else []),
    ]


def _of_empty_classes(values: dict[str, Any]) -> str:
    empty, count = values["empty_classes"], values["num_classes"]
    cure = "" if values["class_names"] else "; classes are numbered 0 to C - 1"
    return f"note: {empty:,} of {count:,} classes {'has' if empty == 1 else 'have'} no sample{cure}"


def _scoring_lines(values: dict[str, Any]) -> list[str]:
    """What the scoring models have of their own."""
    scoring = values["scoring"]
    if scoring == {"model": values["model"], "recipe": values["recipe"]}:
        return []
    return [f"scored by {name_of(plug_of(scoring['model'])[0])}, recipe {recipe_name(scoring['recipe'])}"]


def _work_line(values: dict[str, Any]) -> str:
    bill = "an unknown part" if values["bill"] is None else f"{values['bill']:.1%}"
    trials = f" ({values['trials_bill']:.1%} for the trials of policies)" if "trials_bill" in values else ""
    return (
        f"{several(values['models'], 'training')}, {values['images_trained']:,} images through training, "
        f"{values['images_scored']:,} through scoring: the choice costs {bill} of one training on all data, counted in images{trials}"
    )


def _start_lines(recipe: dict[str, Any]) -> list[str]:
    if recipe.get("init") is None:
        return []
    saw = (
        "you assert that they never saw a sample of the source"
        if recipe.get("init_saw")
        else "nothing is known about the data they saw"
    )
    return [f"every training starts from {recipe['init']} (SHA-256 {recipe['init_sha256']}); {saw}"]


def _raised_lines(values: dict[str, Any]) -> list[str]:
    """Whether `min_steps` makes a training on a small set longer than asked for, which may surprise."""
    recipe = values["scoring"]["recipe"]
    smallest, epochs = min(
        (task["train_on"], task["steps"] // max(task["train_on"] // max(task["batch_size"], 1), 1))
        for stage in values["stages"]
        for task in stage["tasks"]
        if "trials" not in task
    )
    if not recipe["epochs"] or epochs <= recipe["epochs"]:
        return []
    return [
        f"scoring models train for {epochs} epochs instead of {recipe['epochs']} on the smallest training set, {smallest:,} samples, "
        f"because they take {recipe['min_steps']} steps at least: recipe.min_steps is {values['recipe']['min_steps']}; less makes the "
        "choice cheaper, and the trainings of evaluate shorter, too"
    ]


def _time_lines(values: dict[str, Any]) -> list[str]:
    lines = []
    if values["worker_hours"] is not None:
        lines.append(
            f"at {values['images_per_s']:,.0f} images/s per worker: {hours_text(values['worker_hours'])} of worker time, "
            f"{hours_text(values['critical_path_hours'])} if no fold waits for another"
        )
    elif values["recipe"]:
        lines.append(
            "to estimate hours, give the speed of one worker (--images_per_s NUMBER), or --measure it on this machine"
        )
    if values["pays_after_trainings"] is not None:
        count = several(math.ceil(values["pays_after_trainings"]), "training")
        lines.append(
            f"pruning saves time after about {count} on the kept samples, for as many epochs as on all samples"
        )
    elif values["bill"] is not None:
        lines.append(
            "training with the same recipe on the kept samples takes as many steps as on all samples: no time is saved"
        )
    return lines


def plan_table(values: dict[str, Any]) -> Table:
    """The trainings of each stage."""
    table = Table(
        [
            Column("stage", left=True),
            Column("kept", form=","),
            Column("added", 3, ","),
            Column("models"),
            Column("train on", 1, ","),
            Column("steps x batch", 2),
            Column("score", 1),
        ]
    )
    for stage in values["stages"]:
        for task in stage["tasks"]:
            table.add(
                stage["stage"],
                stage["target"],
                stage["added"],
                f"{task['models']} in trials" if "trials" in task else task["models"],
                task["train_on"],
                f"{task['steps']:,} x {task['batch_size']}" if task["steps"] else "your own",
                f"{task['score']:,}" + (f" x {task['scoring_passes']}" if task["scoring_passes"] > 1 else ""),
            )
    return table
