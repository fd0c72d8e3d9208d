"""The same work in one process, without Ray."""

from __future__ import annotations

import contextlib
import platform
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.errors import FoldFailedError, UnseenError
from unseen_ray.execution.pixel_cache import plan_files
from unseen_ray.pruning.executor import ExecutorSetup, Observer
from unseen_ray.pruning.merge import Merged, Merger, MergeRequest
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Job
from unseen_ray.storage.retry import no_more_files
from unseen_ray.training.hardware import describe_hardware, device_name, first_gpu, resolve_precision
from unseen_ray.training.host import is_gpu_fault
from unseen_ray.training.model_task import ModelTask
from unseen_ray.training.task_runner import TaskRunner
from unseen_ray.training.user_task import UserTask

if TYPE_CHECKING:
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.data.sources.registry import Source

__all__ = ["LocalExecutor"]


class LocalExecutor:
    """Does one task after the other, on the first GPU where there is one and `gpus_per_fold` is not 0."""

    def __init__(self) -> None:
        self._worker: UserTask | ModelTask | None = None

    def prepare(self, job: Job, source: Source) -> ExecutorSetup:
        """Decode the pixels, find bad samples, resolve the precision.

        Raises:
            ConfigError: if `gpus_per_fold` asks for a GPU and torch cannot use it.
        """
        device = _device(job)
        pixel_store, skipped = load_pixel_store(
            source,
            job.size_px,
            on_bad_sample=job.config.on_bad_sample,
            memory_gb=job.config.pixel_memory_gb,
            files=plan_files(job, source.info),
        )
        resolved = job.resolved.with_hardware(
            precision=resolve_precision(job.config.recipe.precision, device),
            cpus_per_fold=float(job.config.threads),
            gpus_per_fold=1.0 if device.type == "cuda" else 0.0,
        )
        prepared = ExecutorSetup(
            job=job.prepared(resolved, skipped),
            environment={"executor": "local", "node": platform.node(), **describe_hardware(device)},
        )
        runner = TaskRunner(
            job=prepared.job,
            labels_N=source.info.labels_N,
            pixel_store=pixel_store,
            source=lambda: source,
            device=device_name(device),
        )
        own = UserTask(runner=runner, device=device if device.type == "cuda" else None)
        self._worker = ModelTask(runner=runner, device=device) if job.config.fit is None else own
        return prepared

    def score(self, tasks: list[ScoreTask], on_event: Observer) -> list[Receipt]:
        """Train and score in this process."""
        worker, receipts = self._ready(), []
        for task in tasks:
            with _fold_errors(task.name):
                for event in worker.score(task):
                    on_event(event)
                    if isinstance(event, Receipt):
                        receipts.append(event)
        return receipts

    def merge(self, request: MergeRequest) -> Merged:
        """Merge in this process."""
        runner = self._ready().runner
        return Merger(runner.job, runner.labels_N).merge(request)

    def evaluate(self, tasks: list[EvalTask], on_event: Observer) -> list[EvalResult]:
        """Train and measure in this process."""
        worker = self._ready()
        assert isinstance(worker, ModelTask), "models that your own fit trains cannot be evaluated"
        results = []
        for task in tasks:
            with _fold_errors(task.name):
                for event in worker.evaluate(task):
                    on_event(event)
                    if isinstance(event, EvalResult):
                        results.append(event)
        return results

    def rest(self) -> None:
        """Nothing waits in one process."""

    def waited_s(self) -> float:
        """None: this process is free."""
        return 0.0

    def close(self) -> None:
        """Let go of the pixels."""
        self._worker = None

    def _ready(self) -> UserTask | ModelTask:
        assert self._worker is not None, "prepare comes first"
        return self._worker


def _device(job: Job) -> torch.device:
    asked = job.config.gpus_per_fold
    if asked and job.config.fit is None:
        return first_gpu()
    return torch.device("cuda", 0) if asked != 0 and torch.cuda.is_available() else torch.device("cpu")


@contextlib.contextmanager
def _fold_errors(name: str) -> Iterator[None]:
    """Within, what the code of a task's model, score or `fit` raises becomes a FoldFailedError, as it does on a cluster.

    Raises:
        MemoryError: as it came, since here it is this process that has no more.
    """
    try:
        yield
    except (UnseenError, MemoryError):
        raise
    except Exception as error:
        if said := no_more_files(error):
            raise FoldFailedError(name, 1, f"{said}.") from error
        if is_gpu_fault(error):
            raise FoldFailedError(name, 1, f"its GPU failed: {error}") from error
        raise FoldFailedError(name, 1, f"its own code raised an error:\n{traceback.format_exc().strip()}") from error
