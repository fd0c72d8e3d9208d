"""A sweep from its configuration to its result: run the trials that are left on Ray Tune, then write table, best run and page."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from unseen_ray.config.fields.keywords import with_keywords
from unseen_ray.config.run import PruneConfig
from unseen_ray.core.samples.dealing import digest_of_groups
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.execution.api import ignore
from unseen_ray.runs.layout import LOCK, is_temporary
from unseen_ray.runs.manifest import Manifest, read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import source_entry
from unseen_ray.runs.run import clear_pixels, now
from unseen_ray.storage.filesystem import Folder, absolute_path
from unseen_ray.storage.lock import held
from unseen_ray.sweeps.config import SweepConfig, SweepFields
from unseen_ray.sweeps.layout import BEST, PAGE, TABLE
from unseen_ray.sweeps.records import (
    FAILED,
    FINISHED,
    Record,
    Trainings,
    best_of,
    front_of,
    is_done,
    read_record,
    records_below,
    records_table,
    run_yaml,
    trainings_of,
)
from unseen_ray.sweeps.space import fields_of
from unseen_ray.sweeps.trials import Keeping, Trial, planned_trials, trial_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SweepResult", "sweep"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult:
    """A sweep that has ended.

    Attributes:
        path: its folder.
        config: what was swept.
        records: the result of each trial, in the order of the space.
        best: the finished trial with the highest accuracy; None if none has finished.
        reused: trials that an earlier start had finished.
    """

    path: str
    config: SweepConfig
    records: tuple[Record, ...]
    best: Record | None
    reused: int

    @property
    def table(self) -> pa.Table:
        """One row per trial, as in sweep.parquet."""
        return records_table(self.records, list(self.config.space))

    @property
    def front(self) -> list[Record]:
        """The Pareto front, cheapest first: trials that no other one beats in accuracy without costing more."""
        return front_of(self.records)

    @property
    def trainings(self) -> list[Trainings]:
        """Trainings by kind: requested, and distinct."""
        return trainings_of(self.records)

    @property
    def best_config(self) -> PruneConfig:
        """The best trial as a run of the whole source, without `out`.

        Raises:
            ConfigError: if no trial has finished.
        """
        if self.best is None:
            raise ConfigError(f"no trial of {self.path} has finished.")
        fields = fields_of(self.config.run, self.best.knobs)
        fields.pop("holdout", None)
        return PruneConfig(**{**fields, "seed": self.config.seed})

    def __repr__(self) -> str:
        done = sum(record.status == FINISHED for record in self.records)
        best = "" if self.best is None else f", the best {self.best.knobs} with accuracy {self.best.accuracy:.4f}"
        return f"SweepResult({self.path}: {done} of {len(self.records)} trials finished{best})"


@with_keywords(SweepFields)
def sweep(
    config: SweepConfig | str | os.PathLike[str] | None = None,
    *,
    on_end: Callable[[Record], None] | None = None,
    **fields: Unpack[SweepFields],
) -> SweepResult:
    """Try the configurations of a search space, each measured on a holdout of the source; the same call resumes the sweep.

    Args:
        config: the sweep: a configuration or the path of a YAML file; None if `fields` say it all.
        on_end: called with the record of each trial that has ended.
        fields: the fields of `SweepConfig`, each in place of that of `config`; `out` is required.

    Raises:
        ConfigError, DataError: before any trial starts, if the problem is known by then.
        UnseenError: if the sweep itself failed; the same call resumes it.
    """
    config = SweepConfig.of(config, fields)
    if config.out is None:
        raise ConfigError("out is missing: name a new folder, or the folder of the sweep to resume.")
    _check_search(config)
    info = with_groups(source := open_source(source_ref(config.run["source"])), config.run.get("group"))
    trials, keeping = planned_trials(config, info)
    folder = Folder(absolute_path(config.out))
    created = _check_folder(folder, config, info)
    with held(folder) as lock:
        folder = lock.folder
        write_manifest(folder, _begun(config, info, created))  # trials on other nodes check that they see this folder
        done = [record for record in _records(folder, config, trials, keeping) if is_done(record, config)]
        if done:
            logger.info("reusing the results of %d finished trials", len(done))
        if len(done) < (len(trials) if config.search != "optuna" else config.trials or 0):
            # Here, because Ray takes seconds to import and a finished sweep does not need it.
            from unseen_ray.sweeps.trial_process import run_trial
            from unseen_ray.sweeps.tune import run_trials

            end = on_end or ignore
            run_trials(config, trials, keeping, source, run_trial=run_trial, folder=folder, done=done, on_end=end)
            clear_pixels(folder)
        return _conclude(folder, config, trials, keeping, reused=len(done))


def _begun(config: SweepConfig, info: SourceInfo, created: str) -> Manifest:
    values = config.to_json()
    return Manifest(created=created, kind="sweep", config=values, asked=values, source=source_entry(info))


def _check_search(config: SweepConfig) -> None:
    if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search: optuna needs Optuna. Install it: pip install 'unseen-ray[optuna]'.")


def _check_folder(folder: Folder, config: SweepConfig, info: SourceInfo) -> str:
    """Refuse a folder that holds something else; returns when its sweep began (now, if it is new)."""
    # The lock is ours, and what is temporary may be left by a writer that died.
    others = [name for name in folder.names() if name != LOCK and not is_temporary(name)]
    before = read_manifest(folder) if others else None
    if others and (before is None or before.kind != "sweep"):
        raise ConfigError(
            f"out={config.out} holds {', '.join(others[:3])}, which is not a sweep. Name a new or empty folder."
        )
    same_groups = before is None or before.source.groups == digest_of_groups(info.groups)
    if before is not None and not (same_groups and before.source.is_same_data(info)):
        raise ConfigError(
            f"out={config.out} holds a sweep over other data or groups ({before.source.num_samples} samples there, {len(info)} here). "
            "Name a new folder."
        )
    return now() if before is None else before.created


def _records(folder: Folder, config: SweepConfig, trials: Sequence[Trial], keeping: Keeping) -> list[Record]:
    """The stored records of this sweep's trials. Which trials an open search made, only the records tell."""
    if config.search != "optuna":
        return [record for trial in trials if (record := read_record(folder, trial.name)) is not None]
    here = [record for record in records_below(folder) if record.knobs.keys() == config.space.keys()]
    return [record for record in here if record.status == FAILED or _is_of(config, record, keeping)]


def _is_of(config: SweepConfig, record: Record, keeping: Keeping) -> bool:
    """Whether a record still holds: neither the run nor the proxy has changed since."""
    try:
        return trial_of(config, record.knobs, keeping).name == record.name
    except ConfigError:
        return False


def _conclude(
    folder: Folder, config: SweepConfig, trials: Sequence[Trial], keeping: Keeping, *, reused: int
) -> SweepResult:
    """Write the table, the best configuration and the page."""
    from unseen_ray.sweeps.page import render_sweep

    records = _records(folder, config, trials, keeping)
    result = SweepResult(folder.root, config, tuple(records), best_of(records), reused)
    folder.write_table(TABLE, result.table)
    if result.best is not None:
        best = trial_of(config, result.best.knobs, keeping)
        folder.write(BEST, run_yaml(best, fields_of(config.run, result.best.knobs), result.best).encode())
    folder.write(PAGE, render_sweep(result.path, config, records).encode())
    return result
