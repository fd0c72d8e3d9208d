"""The state of a run, read from its folder alone: on any machine that sees the storage, without the driver or a cluster."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

from unseen_ray.core.tasks import stage_zero_count
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.runs.layout import CHECKPOINTS, MANIFEST, checkpoint_file, is_fit_folder, votes_folder
from unseen_ray.runs.manifest import Manifest, read_manifest
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.votes import read_receipt
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.lock import Holder, holder_of

__all__ = ["RunStatus", "TaskStatus", "Watcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """The state of a task.

    Attributes:
        name: the task's.
        done: whether its votes are on storage.
        node: where it ran, as far as that is known.
        epoch, epochs: progress of its training, by its last checkpoint, if it is not done.
        accuracy: on the samples it scored; of the last training epoch if it is not done.
        images_per_s: of the last epoch.
        seconds: of work so far.
        worker_s, gpu_s: the same summed over the workers that share it, and over their GPUs.
        age_s: seconds since its last checkpoint.
    """

    name: str
    done: bool
    node: str = ""
    epoch: int = 0
    epochs: int = 0
    accuracy: float = math.nan
    images_per_s: float = math.nan
    seconds: float = 0.0
    worker_s: float = 0.0
    gpu_s: float = 0.0
    age_s: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The state of a run.

    Attributes:
        path: its folder.
        source, samples: its data.
        holdout: samples set aside, beside these.
        kept: samples chosen by the stages that are finished.
        finished: whether the coreset is final.
        stage, stages: the current one, counted from 0, and how many there are.
        total: tasks of that stage.
        tasks: of all stages so far, those that are done or have a checkpoint.
        holder: the driver, if there is one.
        worker_s, gpu_s: seconds of workers and of GPUs so far.
    """

    path: str
    source: str
    samples: int
    holdout: int
    kept: int
    finished: bool
    stage: int
    stages: int
    total: int
    tasks: tuple[TaskStatus, ...]
    holder: Holder | None
    worker_s: float
    gpu_s: float

    def of_stage(self) -> tuple[TaskStatus, ...]:
        """The tasks of the current stage."""
        name = f"stage {self.stage}"
        return tuple(task for task in self.tasks if task.name == name or task.name.startswith(f"{name} "))

    def images_per_s(self) -> float:
        """Images trained on per second, over all models in training."""
        return sum(task.images_per_s for task in self.tasks if not task.done and not math.isnan(task.images_per_s))


@dataclass(slots=True)
class Watcher:
    """Reads a run's folder repeatedly, and each time only what may have changed.

    Args:
        folder: the run's.
    """

    folder: Folder
    _receipts: dict[str, Receipt] = field(default_factory=dict)

    def has_begun(self) -> bool:
        """Whether a run has begun in the folder."""
        return read_manifest(self.folder) is not None

    def look(self) -> RunStatus:
        """The present state of the run.

        Raises:
            ConfigError: if there is no run, or a sweep.
            StorageError: if the folder cannot be read.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise ConfigError(
                f"{self.folder.root} holds no {MANIFEST}: no run has begun there. Give the `out` of an `unseen-ray prune`."
            )
        if manifest.kind == "sweep":
            raise ConfigError(
                f"{self.folder.root} holds a sweep; give one of its runs, such as {self.folder.path('trials/NAME/seed-0')}."
            )
        stages, at = _num_stages(manifest), min(len(manifest.stages), _num_stages(manifest) - 1)
        done = [receipt for stage in manifest.stages for receipt in stage.tasks]
        if len(manifest.stages) == at:
            done += self._voted(at)
        tasks = [_done(receipt) for receipt in done]
        if not manifest.finished:
            # A task that is done may still have its checkpoint.
            names = {task.name for task in tasks}
            tasks += [task for task in self._in_training() if task.name not in names]
        return RunStatus(
            path=self.folder.root,
            source=manifest.source.name,
            samples=manifest.source.num_samples,
            holdout=manifest.source.holdout,
            kept=_kept(manifest),
            finished=manifest.finished,
            stage=at,
            stages=stages,
            total=_num_tasks(manifest, at),
            tasks=tuple(tasks),
            holder=None if manifest.finished else holder_of(self.folder),
            worker_s=sum(task.worker_s for task in tasks),
            gpu_s=sum(task.gpu_s for task in tasks),
        )

    def _voted(self, stage: int) -> list[Receipt]:
        """The receipts in the votes of an unfinished stage, in the order of its tasks."""
        home = votes_folder(stage)
        names = [f"{home}/{name}" for name in Folder(self.folder.path(home)).names() if name.endswith(".parquet")]
        for name in names:
            # Votes are written once, so a receipt that was read stays valid.
            if name not in self._receipts and (receipt := read_receipt(self.folder, name)) is not None:
                self._receipts[name] = receipt
        found = [self._receipts[name] for name in names if name in self._receipts]
        return sorted(found, key=lambda receipt: receipt.index)

    def _in_training(self) -> list[TaskStatus]:
        keys = [name for name in Folder(self.folder.path(CHECKPOINTS)).names() if is_fit_folder(name)]
        found = (self._checkpoint(checkpoint_file(key)) for key in keys)
        return sorted((task for task in found if task is not None), key=lambda task: task.name)

    def _checkpoint(self, name: str) -> TaskStatus | None:
        """The state of a training by its last checkpoint; None if there is none, or it was removed meanwhile."""
        fs, path = filesystem_of(self.folder.path(name))
        try:
            data = self.folder.read(name)
            # By the clock of the storage, which may be ahead of this one.
            modified = fs.get_file_info(path).mtime_ns
            head: dict[str, Any] = json.loads(data or b"{}")
            position = head["position"]
            return TaskStatus(
                name=head.get("task") or "a model",
                done=False,
                epoch=position["epoch"],
                epochs=position["epochs"],
                accuracy=position["accuracy"],
                images_per_s=position["images_per_s"],
                seconds=position["seconds"],
                worker_s=position["seconds"],
                age_s=math.nan if modified is None else max(time.time() - modified / 1e9, 0.0),
            )
        except (OSError, ValueError, KeyError, TypeError, StorageError):
            return None


def _done(receipt: Receipt) -> TaskStatus:
    return TaskStatus(
        name=receipt.task,
        done=True,
        node=receipt.node,
        accuracy=receipt.accuracy,
        seconds=receipt.seconds,
        worker_s=receipt.worker_seconds,
        gpu_s=receipt.gpu_seconds,
    )


def _num_stages(manifest: Manifest) -> int:
    schedule = manifest.config.get("schedule")
    if isinstance(schedule, dict):
        return int(schedule["stages"])
    return max(len(schedule or []), len(manifest.stages), 1)


def _num_tasks(manifest: Manifest, stage: int) -> int:
    config = manifest.config
    if stage:
        return int(config["repeats"])
    return stage_zero_count(
        mode=config.get("mode", ""),
        folds=config["folds"],
        repeats=config["repeats"],
        models=config.get("scoring", {}).get("models"),
    )


def _kept(manifest: Manifest) -> int:
    if manifest.kind == "select":  # a choice has no stages of its own
        return round(float(manifest.config["keep"]) * manifest.source.num_samples)
    return sum(stage.added for stage in manifest.stages)
