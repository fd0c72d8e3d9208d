"""What the driver of a sweep and the processes of its trials share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.errors import UnseenError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.sweeps.config import SweepConfig
from unseen_ray.sweeps.records import FAILED, RUNNING, STOPPED, Record, read_record, write_record
from unseen_ray.sweeps.space import Knobs, knobs_of
from unseen_ray.sweeps.trials import Keeping, trial_of

if TYPE_CHECKING:
    from unseen_ray.execution.ray.executor import ClusterContext, RayExecutor

__all__ = ["CONFIG_KEY", "SweepContext", "close_record", "trial_name"]

CONFIG_KEY = "knobs"
"""Where a grid puts its combination in Tune's configuration; a search algorithm puts each value at the top."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepContext:
    """What every trial of a sweep is given.

    Attributes:
        sweep: the sweep.
        keeping: what every run stores for the others.
        folder: the sweep's.
        source: the data, by absolute paths: a trial's process may have another working directory.
        claims: the actor of a `result_cache.ClaimBook`.
        cluster: the decoded pixels, and the first worker's hardware and versions.
        new_executor: makes an executor that starts from these.
    """

    sweep: SweepConfig
    keeping: Keeping
    folder: Folder
    source: Any
    claims: Any
    cluster: ClusterContext
    new_executor: Callable[[], RayExecutor]


def close_record(context: SweepContext, config: Mapping[str, Any], error: str) -> Record:
    """The final record of a trial whose process has ended.

    A record that still says `running` belongs to a trial that its scheduler stopped, or whose process was lost.
    """
    knobs = knobs_of(context.sweep.space, dict(config.get(CONFIG_KEY, config)))
    name, folder = trial_name(context, knobs), context.folder
    record = read_record(folder, name)
    if record is None or error or record.status == RUNNING:
        begun = record or Record(name=name, knobs=knobs, status=RUNNING)
        lost = error or not begun.accuracies
        record = replace(
            begun, status=FAILED if lost else STOPPED, error=error or ("it left no result" if lost else "")
        )
        write_record(folder, record)
    return record


def trial_name(context: SweepContext, knobs: Knobs) -> str:
    """The name of the trial with these hyperparameters, whether or not they make a valid run."""
    try:
        return trial_of(context.sweep, knobs, context.keeping).name
    except UnseenError:
        return fingerprint_of(*map(repr, sorted(knobs.items())))[:12]
