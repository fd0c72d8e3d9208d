"""What came out of a sweep: a record of each trial, the table of all of them, the best one and the front."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig, jsonable
from unseen_ray.core.arrays import IntArray
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.filesystem import Folder
from unseen_ray.sweep.config import SweepConfig
from unseen_ray.sweep.importance import Importance, groups_of, importances
from unseen_ray.sweep.space import plain_value
from unseen_ray.sweep.trials import Trial

__all__ = [
    "TABLE",
    "Record",
    "Trainings",
    "best_of",
    "front_of",
    "importances_of",
    "is_done",
    "knob_groups",
    "read_record",
    "record_name",
    "records_below",
    "run_yaml",
    "table_of",
    "trainings_of",
    "trial_folder",
    "write_record",
]

logger = logging.getLogger(__name__)

TABLE = "sweep.parquet"
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What came out of a trial.

    Attributes:
        name, knobs: the trial's.
        status: `finished`, `stopped` before its last stage, `failed`, or `running`.
        kept: samples that the last measured coreset holds.
        accuracies: of each training of the proxy on the coreset, over runs and trainings.
        baselines: the same of each baseline.
        choosing_seconds: of workers, for choosing, as if the trial were alone: work that others did is counted in; the mean over its runs.
        gpu_seconds: of these, on GPUs.
        image_passes: images that went through training and scoring for that, which does not depend on the machine.
        trainings: (stage, name of the work) of every scoring model that the trial needed.
        measured: names of the trainings that it was measured by.
        seconds: on the clock.
        error: why it failed.
    """

    name: str
    knobs: dict[str, Any]
    status: str
    kept: int = 0
    accuracies: tuple[float, ...] = ()
    baselines: dict[str, tuple[float, ...]] = field(default_factory=dict)
    choosing_seconds: float = 0.0
    gpu_seconds: float = 0.0
    image_passes: int = 0
    trainings: tuple[tuple[int, str], ...] = ()
    measured: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @property
    def accuracy(self) -> float:
        """Mean, NaN where nothing was measured."""
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over trainings (n - 1), NaN for one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan

    @property
    def cost(self) -> float:
        """Seconds that choosing takes: of GPUs where it runs on them, else of workers."""
        return self.gpu_seconds or self.choosing_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainings:
    """How many trainings a sweep asked for and needed, of a kind: `stage 0`, `stage 1`, ..., `proxy`."""

    kind: str
    asked: int
    needed: int


def trial_folder(trial: str) -> str:
    """Where a trial's runs and its record stand."""
    return f"trials/{trial}"


def record_name(trial: str) -> str:
    """Where the record of a trial stands."""
    return f"{trial_folder(trial)}/trial.json"


def write_record(folder: Folder, record: Record) -> None:
    """Put a record in place."""
    folder.write(record_name(record.name), to_checked_json(asdict(record)))


def read_record(folder: Folder, trial: str) -> Record | None:
    """The record of a trial; None where there is none, or a damaged one."""
    data = folder.read(record_name(trial))
    if data is None:
        return None
    try:
        values = from_checked_json(data)
        lists = {name: tuple(values[name]) for name in ("accuracies", "measured")}
        baselines = {name: tuple(its) for name, its in values["baselines"].items()}
        trainings = tuple((int(stage), str(key)) for stage, key in values["trainings"])
        return Record(**{**values, **lists, "baselines": baselines, "trainings": trainings})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s)", folder.path(record_name(trial)), error)
        return None


def records_below(folder: Folder) -> list[Record]:
    """Every record of a sweep's folder, by name."""
    names = sorted(name for name in Folder(folder.path("trials")).names())
    return [record for name in names if (record := read_record(folder, name)) is not None]


def is_done(record: Record, sweep: SweepConfig) -> bool:
    """Whether a trial needs not be run again: it has finished, or was stopped by a scheduler, and every baseline was measured."""
    ended = (FINISHED,) if sweep.scheduler is None else (FINISHED, STOPPED)
    return record.status in ended and set(sweep.measured_against()) <= record.baselines.keys()


def trainings_of(records: Sequence[Record]) -> list[Trainings]:
    """Trainings by kind: what every trial needs, and how much of that is different work."""
    works: dict[str, list[str]] = {}
    for record in records:
        for stage, key in record.trainings:
            works.setdefault(f"stage {stage}", []).append(key)
    counts = [Trainings(kind=kind, asked=len(keys), needed=len(set(keys))) for kind, keys in sorted(works.items())]
    measured = [key for record in records for key in record.measured]
    return [*counts, Trainings(kind="proxy", asked=len(measured), needed=len(set(measured)))]


def best_of(records: Sequence[Record]) -> Record | None:
    """The finished trial of the highest mean accuracy, of those the one of the fewest image passes; None where none has finished."""
    done = [record for record in records if record.status == FINISHED]
    return max(done, key=lambda record: (record.accuracy, -record.image_passes), default=None)


def front_of(records: Sequence[Record]) -> list[Record]:
    """Finished trials that no other one beats in accuracy without costing more (the Pareto front), the cheapest first."""
    front: list[Record] = []
    done = [record for record in records if record.status == FINISHED]
    for record in sorted(done, key=lambda record: (record.cost, -record.accuracy)):
        if not front or record.accuracy > front[-1].accuracy:
            front.append(record)
    return front


def importances_of(records: Sequence[Record], knobs: Sequence[str]) -> list[Importance]:
    """What the knobs are worth by the finished trials; empty where these are too few."""
    done = [record for record in records if record.status == FINISHED]
    return (
        importances(knob_groups(done, knobs), np.array([record.accuracy for record in done])) if len(done) > 1 else []
    )


def knob_groups(records: Sequence[Record], knobs: Sequence[str]) -> dict[str, tuple[list[str], IntArray]]:
    """By knob that varies among them, its values as text, and which of them each record has."""
    groups = {knob: groups_of([plain_value(record.knobs.get(knob)) for record in records]) for knob in knobs}
    return {knob: (names, codes_T) for knob, (names, codes_T) in groups.items() if len(names) > 1}


def table_of(records: Sequence[Record], knobs: Sequence[str]) -> pa.Table:
    """One row a trial: what it was, what came out of it, what it cost."""
    front = {record.name for record in front_of(records)}
    names = list(dict.fromkeys(name for record in records for name in record.baselines))
    columns: dict[str, Any] = {
        "trial": [record.name for record in records],
        "status": [record.status for record in records],
        **{knob: _column([record.knobs.get(knob) for record in records]) for knob in knobs},
        "kept": pa.array([record.kept for record in records], pa.int64()),
        "accuracy": _numbers([record.accuracy for record in records]),
        "accuracy_std": _numbers([record.std for record in records]),
        **{f"accuracy_{name}": _numbers([_mean(record.baselines.get(name)) for record in records]) for name in names},
        "choosing_seconds": _numbers([record.choosing_seconds for record in records]),
        "gpu_seconds": _numbers([record.gpu_seconds for record in records]),
        "image_passes": pa.array([record.image_passes for record in records], pa.int64()),
        "trainings": pa.array([len(record.trainings) for record in records], pa.int64()),
        "seconds": _numbers([record.seconds for record in records]),
        "on_front": [record.name in front for record in records],
        "error": [record.error for record in records],
    }
    return pa.table(columns)


def run_yaml(trial: Trial, fields: Mapping[str, Any], record: Record) -> str:
    """A trial as a YAML for `unseen-ray prune`, of the whole source: what was set aside to measure on is pruned, too."""
    import yaml

    kept = {name: jsonable(value) for name, value in fields.items() if name not in ("holdout", "executor")}
    seed = trial.runs[0].seed
    said = (
        f"# {trial.said}\n# accuracy {record.accuracy:.4f} on a holdout of {trial.runs[0].holdout:g} of the source, which is left out "
        f"here.\n# To have the very run that was measured: holdout: {trial.runs[0].holdout:g}\n"
    )
    PruneConfig(**{**kept, "seed": seed})  # a YAML that prune would refuse is a defect of ours
    return said + yaml.safe_dump({**kept, **({"seed": seed} if seed else {})}, sort_keys=False, allow_unicode=True)


def _mean(values: Sequence[float] | None) -> float:
    return statistics.fmean(values) if values else math.nan


def _numbers(values: Sequence[float]) -> pa.Array:
    return pa.array([None if math.isnan(value) else value for value in values], pa.float64())


def _column(values: Sequence[Any]) -> pa.Array:
    """Values of a knob as numbers or truth values if they all are, else as text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) or all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in known
    ):
        kind = pa.float64() if any(isinstance(value, float) for value in known) else None
        return pa.array(values, kind)
    return pa.array(
        [value if value is None or isinstance(value, str) else json.dumps(jsonable(value)) for value in values]
    )
