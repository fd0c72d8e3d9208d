"""The plan and the summary of a sweep."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unseen_ray.cli.summary.text import held_out_text, several
from unseen_ray.cli.tables import Column, Table
from unseen_ray.plugins import jsonable
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.sweeps.layout import BEST, PAGE, TABLE
from unseen_ray.sweeps.records import FAILED, FINISHED, importances_of

if TYPE_CHECKING:
    from unseen_ray.sweeps.config import SweepConfig
    from unseen_ray.sweeps.records import Record
    from unseen_ray.sweeps.sweep import SweepResult

__all__ = [
    "sweep_lines",
    "sweep_plan_lines",
    "sweep_plan_table",
    "sweep_values",
    "trainings_table",
    "trial_logger",
    "trials_table",
]

logger = logging.getLogger(__name__)

_SHOWN = 10


def sweep_plan_lines(values: dict[str, Any]) -> list[str]:
    """A sweep's plan in sentences."""
    held_out = held_out_text(values["num_holdout"], values["num_samples"])
    lines = [
        f"{several(values['trials'], 'trial')} on {values['num_samples']:,} samples{held_out}, measured on the holdout",
        f"{values['images_trained']:,} images through training, {values['images_scored']:,} through scoring"
        + (
            ""
            if values["exact"]
            else ", for trials that try each value once; what Optuna will try is not known in advance"
        ),
    ]
    hours = values["worker_hours"]
    lines.append(
        "to estimate hours, give the speed of one worker: --images_per_s NUMBER"
        if hours is None
        else f"{hours:,.1f} hours of worker time"
    )
    return lines


def sweep_plan_table(values: dict[str, Any]) -> Table:
    """Trainings by kind."""
    table = Table(
        [
            Column("trainings", left=True),
            Column("requested", 1, ","),
            Column("to do, at most", 0, ","),
            Column("images trained", 0, ","),
            Column("images scored", 2, ","),
        ]
    )
    for row in values["shares"]:
        table.add(row["kind"], *(row[name] for name in ("asked", "needed", "images_trained", "images_scored")))
    return table


def trial_logger(config: SweepConfig) -> Callable[[Record], None]:
    """An observer that logs each trial as it ends."""
    count = 0

    def tell(record: Record) -> None:
        nonlocal count
        count += 1
        values = ", ".join(f"{knob}={jsonable(record.knobs.get(knob))}" for knob in config.space)
        if record.status == FAILED:
            logger.warning("trial %d (%s) failed: %s", count, values, record.error)
            return
        logger.info(
            "trial %d (%s) %s: accuracy %.4f of %d samples kept, %.0f s",
            count,
            values,
            record.status,
            record.accuracy,
            record.kept,
            record.seconds,
        )

    return tell


def sweep_values(result: SweepResult) -> dict[str, Any]:
    """The results of a sweep, ready for JSON."""
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
    """The line above the tables, then the lines below them."""
    values = sweep_values(result)
    failed = f", {several(values['failed'], 'trial')} failed" if values["failed"] else ""
    reused = f", {values['reused']} of them earlier" if values["reused"] else ""
    first = f"{values['finished']} of {several(values['trials'], 'trial')} finished{reused}{failed}."
    if result.best is None:
        return [first, f"There is no best trial; the column `error` of {values['table']} says why."]
    return [
        first,
        f"Run the best configuration on the whole source: unseen-ray prune {result.path}/{BEST} --out NEW",
        f"Every trial is in {values['table']}; the effect of each hyperparameter is on {values['page']}.",
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
    table = Table(
        [
            *(Column(knob, left=True) for knob in knobs),
            Column("accuracy", 0, ".4f"),
            Column("std", 2, ".4f"),
            *(Column(name, 1, ".4f") for name in baselines),
            Column(f"{unit} to choose", 3, ",.0f"),
            Column("trial", 4, left=True),
        ]
    )
    for record in done[:_SHOWN]:
        beside = [sum(record.baselines[name]) / len(record.baselines[name]) for name in baselines]
        values = [str(jsonable(record.knobs.get(knob))) for knob in knobs]
        table.add(*values, record.accuracy, record.std, *beside, record.cost, record.name)
    return table


def trainings_table(result: SweepResult) -> Table:
    """Trainings by kind: requested by the trials, done, and reused."""
    columns = [Column("trainings", left=True), *(Column(name, form=",") for name in ("requested", "done", "reused"))]
    table = Table(columns)
    for row in result.trainings:
        table.add(row.kind, row.asked, row.needed, row.asked - row.needed)
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
