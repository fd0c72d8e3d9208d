"""The summary of a finished run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.cli.summary.text import held_out_text, several
from unseen_ray.cli.tables import Column, Table
from unseen_ray.config.guards import guard_of_stored, guard_words
from unseen_ray.config.score_columns import score_name
from unseen_ray.config.scoring import scored_by
from unseen_ray.pruning.suspects import suspects_kept
from unseen_ray.reporting.headline import command_to_measure, is_measurable
from unseen_ray.runs.layout import CORESET, scores_file
from unseen_ray.storage.tables import StoredTable

if TYPE_CHECKING:
    from unseen_ray.execution.api import PruneResult

__all__ = ["class_table", "next_step", "prune_lines", "prune_values", "stage_table"]

_CLASSES_SHOWN = 20


def prune_values(result: PruneResult) -> dict[str, Any]:
    """The numbers of a finished run, ready for JSON."""
    manifest = result.manifest
    source = manifest.source
    counts = np.asarray(source.class_counts)
    kept = np.zeros(len(counts), np.int64)
    # By pieces: the coreset may have more rows than fit in memory.
    for batch in StoredTable(result.run.folder, CORESET, manifest.files).batches(["label"]):
        kept += np.bincount(batch.column("label").to_numpy(), minlength=len(counts))
    values: dict[str, Any] = {
        "out": result.path,
        "source": source.name,
        "num_samples": source.num_samples,
        "kept": int(kept.sum()),
        "keep": manifest.config["keep"],
        "mode": manifest.config["mode"],
        "holdout": source.holdout,
        "skipped": len(source.skipped),
        "copies": source.copies,
        "score": score_name(manifest.config["score"]),
        "policy": manifest.policy_label,
        "policy_reason": manifest.policy_why or None,
        "model": scored_by(manifest.config),
        "precision": manifest.config["recipe"]["precision"],
        "stages": [stage.sizes() for stage in manifest.stages],
        "cost": manifest.cost.to_json(),
        "coreset": f"{result.path}/{CORESET}",
        "scores": f"{result.path}/{scores_file(0)}",
        "suspects": _suspects(result),
    }
    names = source.class_names or [str(number) for number in range(len(counts))]
    values["classes"] = [
        {"class": names[c], "samples": int(counts[c]), "kept": int(kept[c])} for c in range(len(counts)) if counts[c]
    ]
    return values


def _suspects(result: PruneResult) -> dict[str, Any] | None:
    """How many labels are suspected, how many of these samples are kept, and by which guard; None without one."""
    scores, coreset = (result.run.stored(name, hold=False) for name in (scores_file(0), CORESET))
    found = suspects_kept(scores, coreset)
    return found and {**found, "guard": guard_words(guard_of_stored(result.manifest.asked))}


def prune_lines(values: dict[str, Any]) -> list[str]:
    """The line above the tables, then the lines below them."""
    taking_part = values["num_samples"] + values.get("skipped", 0) + values.get("copies", 0)
    held_out = held_out_text(values.get("holdout", 0), taking_part)
    kept = f"Kept {values['kept']:,} of {values['num_samples']:,} samples{held_out} of {values['source']}"
    stages = values["stages"]
    if stages:
        measured, by = ("out-of-fold", " by majority vote") if values["mode"] == "unseen" else ("training", "")
        share = values["cost"].get("bill")
        bill = "" if share is None else f", at the cost of {share:.1%} of one training on all data, counted in images"
        waited = values["cost"].get("waiting_seconds")
        waiting = "" if waited is None else f", {waited:.1f} s of them waiting for a worker"
        first = (
            f"{kept} ({values['kept'] / values['num_samples']:.1%}) by score {values['score']} and policy {values['policy']}, in "
            f"{several(len(stages), 'stage')}, with {values['model']} in {values['precision']}; "
            f"{measured} accuracy {stages[0]['vote_accuracy']:.4f}{by}, {values['cost'].get('seconds', 0):.1f} s{waiting}{bill}."
        )
    else:
        first = (
            f"{kept} by score {values['score']} and policy {values['policy']}, chosen from the stage-0 scores of an earlier run, "
            "without training."
        )
    where = (
        f"The kept ids are in {values['coreset']}, the scores of each stage in {values['out']}/stage-*/scores.parquet."
    )
    lines = [first]
    if values.get("policy_reason"):
        lines.append(f"Policy {values['policy']}, because {values['policy_reason']}.")
    if values.get("skipped"):
        lines.append(f"Left out, as unreadable: {several(values['skipped'], 'sample')}, which manifest.json lists.")
    if values.get("copies"):
        lines.append(f"{values['copies']:,} samples were left out because another one of their group is used.")
    if suspects := values.get("suspects"):
        labels = several(suspects["found"], "label") + (" looks" if suspects["found"] == 1 else " look")
        lines.append(f"{labels} wrong to {suspects['guard']}; {suspects['kept']:,} of these samples are kept.")
    return [*lines, where]


def next_step(result: PruneResult) -> tuple[str, str]:
    """What may be done with a finished run, and the command that does it."""
    if is_measurable(result.run):
        return "To compare it with a random subset and with everything", command_to_measure(result.run)
    return "To hand it to your own training", f"unseen-ray export {shlex.quote(result.path)} --to kept.csv"


def stage_table(values: dict[str, Any]) -> Table:
    """Sizes, accuracy and seconds of each stage."""
    measured = "unseen" if values["mode"] == "unseen" else "training"
    table = Table(
        [
            Column("stage", left=True),
            Column("kept", form=","),
            Column("added", 2, ","),
            Column("models that score a sample", 3, ".3g"),
            Column(f"accuracy on {measured} samples", 1, ".4f"),
            Column("seconds", 2, ",.1f"),
        ]
    )
    for stage in values["stages"]:
        # A mean: where not every fold has a model, more models score some candidates than others.
        votes = stage["scored"] / stage["candidates"] if stage["candidates"] else 0
        table.add(stage["index"], stage["target"], stage["added"], votes, stage["vote_accuracy"], stage["seconds"])
    return table


def class_table(values: dict[str, Any]) -> Table:
    """What was kept of each class; with many classes, a terminal shows those with the largest and the smallest share."""
    columns = [
        Column("class", left=True),
        Column("samples", 1, ","),
        Column("kept", form=","),
        Column("share", 2, ".1%"),
    ]
    table = Table(columns, ends=_CLASSES_SHOWN)
    for row in sorted(values["classes"], key=lambda row: row["kept"] / row["samples"], reverse=True):
        table.add(row["class"], row["samples"], row["kept"], row["kept"] / row["samples"])
    return table
