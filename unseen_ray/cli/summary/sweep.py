"""What a sweep says of itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.table import Table

from unseen_ray.cli.summary.text import several, table_of
from unseen_ray.config.run import jsonable
from unseen_ray.execution.estimate.cluster import SCORING_SPEEDUP
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.sweep.config import SweepConfig
from unseen_ray.sweep.plan import SweepPlan
from unseen_ray.sweep.records import FAILED, FINISHED, TABLE, Record, importances_of
from unseen_ray.sweep.sweep import BEST, PAGE, SweepResult

__all__ = [
    "plan_lines",
    "plan_table",
    "plan_values",
    "sweep_lines",
    "sweep_values",
    "teller",
    "trainings_table",
    "trials_table",
]

logger = logging.getLogger(__name__)

_SHOWN = 10


def plan_values(plan: SweepPlan, images_per_s: float | None) -> dict[str, Any]:
    """What a sweep would do and cost."""
    trained, scored = (
        sum(getattr(share, name) for share in plan.shares) for name in ("images_trained", "images_scored")
    )
    hours = None if images_per_s is None else (trained + scored / SCORING_SPEEDUP) / images_per_s / 3600
    return {**asdict(plan), "images_trained": trained, "images_scored": scored, "worker_hours": hours}


def plan_lines(values: dict[str, Any]) -> list[str]:
    """A sweep's plan in sentences."""
    lines = [
        f"{several(values['trials'], 'trial')} on {values['num_samples']:,} samples, measured on {values['num_holdout']:,} held out",
        f"{values['images_trained']:,} images through training, {values['images_scored']:,} through scoring"
        + ("" if values["exact"] else ", by trials that try each value once; an open search goes where it goes"),
    ]
    hours = values["worker_hours"]
    lines.append(
        "for hours, say how fast one worker trains: --images_per_s NUMBER"
        if hours is None
        else f"{hours:,.1f} hours of one worker's time"
    )
    return lines


def plan_table(values: dict[str, Any]) -> Table:
    """Trainings by kind."""
    table = table_of("trainings", "asked for", "to be done, at most", "images trained", "images scored")
    for row in values["shares"]:
        table.add_row(
            row["kind"], *(f"{row[name]:,}" for name in ("asked", "needed", "images_trained", "images_scored"))
        )
    return table


def teller(config: SweepConfig) -> Callable[[Record], None]:
    """An observer that logs each trial as it ends."""
    count = 0

    def tell(record: Record) -> None:
        nonlocal count
        count += 1
        said = ", ".join(f"{knob}={jsonable(record.knobs.get(knob))}" for knob in config.space)
        if record.status == FAILED:
            logger.warning("trial %d (%s) failed: %s", count, said, record.error)
            return
        logger.info(
            "trial %d (%s) %s: accuracy %.4f of %d samples kept, %.0f s",
            count,
            said,
            record.status,
            record.accuracy,
            record.kept,
            record.seconds,
        )

    return tell


def sweep_values(result: SweepResult) -> dict[str, Any]:
    """What a sweep amounts to."""
    best = result.best
    values: dict[str, Any] = {
        "out": result.path,
        "trials": len(result.records),
        "finished": sum(record.status == FINISHED for record in result.records),
        "failed": sum(record.status == FAILED for record in result.records),
        "reused": result.reused,
        "best": None if best is None else _values_of(best),
        "front": [_values_of(record) for record in result.front],
        "importances": [
            {
                "knob": each.knob,
                "share": each.share,
                "low": each.low,
                "high": each.high,
                "effects": [
                    {"value": e.value, "trials": e.trials, "accuracy": e.mean, "low": e.low, "high": e.high}
                    for e in each.effects
                ],
            }
            for each in importances_of(result.records, list(result.config.space))
        ],
        "trainings": [{"of": row.kind, "asked": row.asked, "needed": row.needed} for row in result.trainings],
        "table": f"{result.path}/{TABLE}",
        "page": f"{result.path}/{PAGE}",
    }
    cleaned: dict[str, Any] = without_nan(values)
    return cleaned


def sweep_lines(result: SweepResult) -> list[str]:
    """The first and the last lines of a closing summary."""
    values = sweep_values(result)
    failed = f", {several(values['failed'], 'trial')} failed" if values["failed"] else ""
    reused = f", {values['reused']} of them before" if values["reused"] else ""
    first = f"{values['finished']} of {several(values['trials'], 'trial')} finished{reused}{failed}."
    if result.best is None:
        return [first, f"Nothing to choose from; {values['table']} says why."]
    return [
        first,
        f"The best as a run of the whole source: unseen-ray prune {result.path}/{BEST} --out NEW",
        f"Every trial is in {values['table']}; what the knobs are worth is on {values['page']}.",
    ]


def trials_table(result: SweepResult) -> Table:
    """The best trials, the most accurate first."""
    knobs = list(result.config.space)
    done = sorted(
        (record for record in result.records if record.status == FINISHED),
        key=lambda record: (-record.accuracy, record.cost),
    )
    baselines = list(dict.fromkeys(name for record in done for name in record.baselines))
    unit = "GPU-seconds" if any(record.gpu_seconds for record in done) else "seconds"
    table = table_of(*knobs, "accuracy", *baselines, f"{unit} to choose", "trial")
    for record in done[:_SHOWN]:
        beside = [f"{sum(record.baselines[name]) / len(record.baselines[name]):.4f}" for name in baselines]
        values = [str(jsonable(record.knobs.get(knob))) for knob in knobs]
        table.add_row(*values, f"{record.accuracy:.4f}", *beside, f"{record.cost:,.0f}", record.name)
    return table


def trainings_table(result: SweepResult) -> Table:
    """Trainings that the trials asked for, how many were made, and how often one of these was used again."""
    table = table_of("trainings", "asked for", "done", "reused")
    for row in result.trainings:
        table.add_row(row.kind, f"{row.asked:,}", f"{row.needed:,}", f"{row.asked - row.needed:,}")
    return table


def _values_of(record: Record) -> dict[str, Any]:
    return {
        "trial": record.name,
        "knobs": jsonable(record.knobs),
        "accuracy": record.accuracy,
        "baselines": {name: sum(its) / len(its) for name, its in record.baselines.items()},
        "kept": record.kept,
        "choosing_seconds": record.choosing_seconds,
        "gpu_seconds": record.gpu_seconds,
    }
