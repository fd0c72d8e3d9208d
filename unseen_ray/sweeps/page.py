"""The page of a sweep: its trials, the effect of the hyperparameters and the Pareto front, in one self-contained HTML file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from unseen_ray.plugins import jsonable
from unseen_ray.pruning.trials.measured import interval
from unseen_ray.reporting.headline import verdict
from unseen_ray.reporting.html import html_environment, safe
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.sweeps import figures
from unseen_ray.sweeps.config import SweepConfig
from unseen_ray.sweeps.records import FINISHED, Record, best_of, front_of, importances_of, knob_groups, trainings_of

__all__ = ["render_sweep"]

_ROWS = 200


def render_sweep(path: str, config: SweepConfig, records: Sequence[Record]) -> str:
    """The page as HTML.

    Args:
        path: the sweep's folder.
        config: what was swept.
        records: what came out of each trial.
    """
    done = [record for record in records if record.status == FINISHED]
    ranked = sorted(done, key=lambda record: (-record.accuracy, record.cost))
    # Failed and stopped trials come last: their accuracies do not compare.
    others = [record for record in records if record.status != FINISHED]
    baselines = list(dict.fromkeys(name for record in records for name in record.baselines))
    knobs = list(config.space)
    best = best_of(records)
    environment = html_environment()
    environment.globals |= {"verdict": verdict, "deviation": statistics.stdev}
    return environment.get_template("sweep.html.j2").render(
        path=path,
        knobs=knobs,
        baselines=baselines,
        best=best,
        lead=best and _lead(best, config.seeds),
        rows=[_row(record, knobs, baselines) for record in [*ranked, *others][:_ROWS]],
        hidden=max(len(records) - _ROWS, 0),
        finished=len(done),
        total=len(records),
        trainings=trainings_of(records),
        figures={name: safe(plot) for name, plot in _plots(done, knobs).items()},
        importances=importances_of(done, knobs),
        front=front_of(records),
        gpus=any(record.gpu_seconds for record in done),
        asked=yaml.safe_dump(config.to_json(), sort_keys=False, allow_unicode=True),
    )


def _row(record: Record, knobs: Sequence[str], baselines: Sequence[str]) -> dict[str, Any]:
    return {
        "record": record,
        "values": [_shown(record.knobs.get(knob)) for knob in knobs],
        "baselines": [_mean(record.baselines.get(name)) for name in baselines],
    }


def _lead(record: Record, runs: int) -> dict[str, Any] | None:
    """Accuracy of a trial minus that of random, paired by its runs if it has several; None if random was not measured."""
    random = record.baselines.get("random")
    if not random:
        return None
    values = [list(record.accuracies), list(random)]
    paired = runs > 1 and len(random) == len(record.accuracies) and len(random) % runs == 0
    if paired:  # runs are the independent units; trainings of one run share its subset
        values = [np.reshape(each, (runs, -1)).mean(axis=1).tolist() for each in values]
    gain = record.accuracy - float(np.mean(random))
    found: dict[str, Any] = without_nan(
        dict(zip(("gain", "low", "high"), (gain, *interval(*values, paired=paired)), strict=True))
    )
    return found


def _plots(done: Sequence[Record], knobs: Sequence[str]) -> dict[str, str]:
    if len(done) < 2:
        return dict.fromkeys(("parallel", "parallel_narrow", "front", "importance"), "")
    accuracies = np.array([record.accuracy for record in done])
    costs = np.array([record.cost for record in done])
    best = {record.name for record in front_of(done)}
    gpus = any(record.gpu_seconds for record in done)
    groups, title = knob_groups(done, knobs), f"{len(done)} trials by their hyperparameters and their accuracy"
    plots = {
        "parallel": figures.parallel_coordinates(groups, accuracies, title=title),
        "parallel_narrow": figures.parallel_coordinates(groups, accuracies, title=title, narrow=True),
        "front": figures.front(
            costs,
            accuracies,
            [record.name in best for record in done],
            unit="GPU-seconds" if gpus else "worker-seconds",
            title="Accuracy against the cost of choosing",
        ),
    }
    found = importances_of(done, knobs)
    shares = ", ".join(f"{each.knob} {max(each.share, 0):.2f}" for each in found)
    plots["importance"] = (
        figures.importance_bars(found, title=f"Importance of the hyperparameters: {shares}") if found else ""
    )
    return plots


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(jsonable(value), default_flow_style=True).strip().removesuffix("...").strip()


def _mean(values: Sequence[float] | None) -> float | None:
    return float(np.mean(values)) if values else None
