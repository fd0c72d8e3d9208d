"""The results of a sweep: a record per trial, the table of all records, the best one and the Pareto front."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from unseen_ray.config.run import PruneConfig
from unseen_ray.core.arrays import IntArray
from unseen_ray.plugins import jsonable
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.filesystem import Folder
from unseen_ray.sweeps.importance import Importance, groups_of, importances
from unseen_ray.sweeps.layout import TRIALS, record_name
from unseen_ray.sweeps.space import plain_value

if TYPE_CHECKING:
    from unseen_ray.sweeps.config import SweepConfig
    from unseen_ray.sweeps.trials import Trial

__all__ = [
    "Record",
    "Trainings",
    "best_of",
    "front_of",
    "importances_of",
    "is_done",
    "knob_groups",
    "read_record",
    "records_below",
    "records_table",
    "run_yaml",
    "trainings_of",
    "write_record",
]

logger = logging.getLogger(__name__)

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The result of a trial.

    Attributes:
        name, knobs: the trial's.
        status: `finished`, `stopped` before its last stage, `failed`, or `running`.
        kept: size of the last measured coreset.
        accuracies: of each training of the proxy on the coreset, over runs and trainings.
        baselines: the same of each baseline.
        choosing_seconds: worker-seconds to choose the coreset, mean over runs, as if the trial ran alone (shared work is counted).
        gpu_seconds: the part of these on GPUs.
        image_passes: images trained on and scored for that; unlike seconds, it does not depend on the machine.
        trainings: (stage, name of the work) of every scoring model that the trial needed.
        measured: names of the trainings that measured it.
        seconds: wall-clock time.
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
        """GPU-seconds to choose the coreset, or worker-seconds if no GPU was used."""
        return self.gpu_seconds or self.choosing_seconds


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainings:
    """Trainings of a kind (`stage 0`, `stage 1`, ..., `proxy`): requested, and distinct."""

    kind: str
    asked: int
    needed: int


def write_record(folder: Folder, record: Record) -> None:
    """Store a record."""
    folder.write(record_name(record.name), to_checked_json(asdict(record)))


def read_record(folder: Folder, trial: str) -> Record | None:
    """The record of a trial; None if it is missing or damaged."""
    data = folder.read(record_name(trial))
    if data is None:
        return None
    try:
        values = from_checked_json(data)
        json.dumps(values, ensure_ascii=False).encode()  # refuses text that no table can hold
        return _RECORD.validate_python(values)
    # A damaged record is as good as none: the trial runs again, with its stored work.
    except ValueError as error:
        logger.warning("%s cannot be used (%s)", folder.path(record_name(trial)), error)
        return None


def records_below(folder: Folder) -> list[Record]:
    """Every record of a sweep's folder, by name."""
    names = sorted(Folder(folder.path(TRIALS)).names())
    return [record for name in names if (record := read_record(folder, name)) is not None]


def is_done(record: Record, sweep: SweepConfig) -> bool:
    """Whether a trial need not run again: it finished, or its scheduler stopped it, and every baseline was measured."""
    ended = (FINISHED,) if sweep.scheduler is None else (FINISHED, STOPPED)
    return record.status in ended and set(sweep.measured_against()) <= record.baselines.keys()


def trainings_of(records: Sequence[Record]) -> list[Trainings]:
    """Trainings by kind: how many the trials need, and how many of these are distinct."""
    works: dict[str, list[str]] = {}
    for record in records:
        for stage, key in record.trainings:
            works.setdefault(f"stage {stage}", []).append(key)
    counts = [Trainings(kind=kind, asked=len(keys), needed=len(set(keys))) for kind, keys in sorted(works.items())]
    measured = [key for record in records for key in record.measured]
    return [*counts, Trainings(kind="proxy", asked=len(measured), needed=len(set(measured)))]


def best_of(records: Sequence[Record]) -> Record | None:
    """The finished trial with the highest mean accuracy, at a tie the one with fewest image passes; None if none finished."""
    done = [record for record in records if record.status == FINISHED]
    return max(done, key=lambda record: (record.accuracy, -record.image_passes), default=None)


def front_of(records: Sequence[Record]) -> list[Record]:
    """The Pareto front, cheapest first: finished trials that no other one beats in accuracy without costing more."""
    front: list[Record] = []
    done = [record for record in records if record.status == FINISHED]
    # From cheap to expensive, a trial is on the front if it is more accurate than all before it.
    for record in sorted(done, key=lambda record: (record.cost, -record.accuracy)):
        if not front or record.accuracy > front[-1].accuracy:
            front.append(record)
    return front


def importances_of(records: Sequence[Record], knobs: Sequence[str]) -> list[Importance]:
    """The effect of each hyperparameter on the finished trials; empty if these are too few."""
    done = [record for record in records if record.status == FINISHED]
    return (
        importances(knob_groups(done, knobs), np.array([record.accuracy for record in done])) if len(done) > 1 else []
    )


def knob_groups(records: Sequence[Record], knobs: Sequence[str]) -> dict[str, tuple[list[str], IntArray]]:
    """For each hyperparameter that varies: its values as text, and the index of each record's value."""
    groups = {knob: groups_of([plain_value(record.knobs.get(knob)) for record in records]) for knob in knobs}
    return {knob: (names, codes_T) for knob, (names, codes_T) in groups.items() if len(names) > 1}


def records_table(records: Sequence[Record], knobs: Sequence[str]) -> pa.Table:
    """One row per trial: its hyperparameters, results and cost."""
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
    """A trial as a YAML for `unseen-ray prune`, without its holdout, so that the whole source is pruned."""
    import yaml

    kept = {name: jsonable(value) for name, value in fields.items() if name not in ("holdout", "executor")}
    run = trial.runs[0]
    # Said, so that other defaults change nothing.
    kept = {"policy": jsonable(run.policy), **kept, "scoring": {"share": run.scoring.share, **kept.get("scoring", {})}}
    seed = run.seed
    said = (
        f"# {trial.said}\n# accuracy {record.accuracy:.4f} on a holdout of {trial.runs[0].holdout:g} of the source, which is left out "
        f"here.\n# To have the very run that was measured: holdout: {trial.runs[0].holdout:g}\n"
    )
    PruneConfig(**{**kept, "seed": seed})  # fails here rather than in the user's hands, if we wrote an invalid file
    return said + yaml.safe_dump({**kept, **({"seed": seed} if seed else {})}, sort_keys=False, allow_unicode=True)


def _mean(values: Sequence[float] | None) -> float:
    return statistics.fmean(values) if values else math.nan


def _numbers(values: Sequence[float]) -> pa.Array:
    return pa.array([None if math.isnan(value) else value for value in values], pa.float64())


def _column(values: Sequence[Any]) -> pa.Array:
    """A hyperparameter's values as numbers or booleans if all are, else as text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) or all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in known
    ):
        kind = pa.float64() if any(isinstance(value, float) for value in known) else None
        return pa.array(values, kind)
    return pa.array(
        [value if value is None or isinstance(value, str) else json.dumps(jsonable(value)) for value in values]
    )
