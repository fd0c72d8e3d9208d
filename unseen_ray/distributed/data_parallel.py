"""One fit divided among several workers by Ray Train: data parallel, over NCCL on GPUs and gloo on CPUs.

The workers leave the model in the fit's checkpoint on the run's storage, where a fold actor finds it and scores with it. That
checkpoint is also what a fit goes on from after a worker was lost; Ray Train keeps none of its own.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from ray.exceptions import RayActorError

from unseen_ray.core.tasks import EvalTask, ScoreTask
from unseen_ray.data.plane import LazyPlane, MemoryPlane
from unseen_ray.distributed.capacity import Resources
from unseen_ray.distributed.failures import Failure, decide
from unseen_ray.errors import FoldFailedError, UnseenError
from unseen_ray.executor import Observer
from unseen_ray.job import Job, Progress
from unseen_ray.run import CHECKPOINTS
from unseen_ray.sources import open_source
from unseen_ray.storage import Folder

__all__ = ["train_together"]

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LOST = ("RayActorError", "ActorDiedError", "WorkerHealthCheck", "NodeDied", "Connection", "gloo", "NCCL")


class Mailbox:
    """What the workers have to tell the driver, until it asks."""

    def __init__(self) -> None:
        self._events: list[Progress | UnseenError] = []

    def put(self, event: Progress | UnseenError) -> None:
        """Called by a worker."""
        self._events.append(event)

    def take(self) -> list[Progress | UnseenError]:
        """Called by the driver; what was not taken before, in the order it came."""
        events, self._events = self._events, []
        return events


def train_together(
    job: Job, shared: tuple[Any, ...], task: ScoreTask | EvalTask, request: Resources, on_event: Observer
) -> None:
    """Train a task's model on `gpus_per_fit` workers; it is in the fit's last checkpoint then.

    Args:
        job: with the hardware resolved.
        shared: references to the job, the labels and the pixels.
        task: whose model to train.
        request: CPUs and GPUs of one worker.
        on_event: is told of each epoch.

    Raises:
        UnseenError: as a worker raised it.
        FoldFailedError: if workers were lost too often, or a worker's own code raised an error.
    """
    retries = job.config.max_retries
    logger.info("%s: %d workers train one model together", task.name, job.workers_of(task))
    for attempt in range(1, retries + 2):
        failure = _Attempt(job, shared, task, request).run(on_event)
        if failure is None:
            return
        kind, reason = failure
        if decide(kind, failed=attempt, max_retries=retries) == "give up":
            raise FoldFailedError(task.name, attempt, reason)
        logger.warning("%s: %s (%s); going on from its checkpoint, attempt %d", task.name, kind, reason, attempt + 1)


class _Attempt:
    """One start of the workers."""

    def __init__(self, job: Job, shared: tuple[Any, ...], task: ScoreTask | EvalTask, request: Resources) -> None:
        self._job, self._task, self._request = job, task, request
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0).remote()
        self._config = {"shared": shared, "task": task, "mailbox": self._mailbox}
        self._error: Exception | None = None

    def run(self, on_event: Observer) -> tuple[Failure, str] | None:
        """Train; what went wrong, if something did.

        In a thread, because Ray Train would take over the main thread's Ctrl-C.
        """
        thread = threading.Thread(target=self._fit, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL_S)
                self._pass_on(on_event)
            self._pass_on(on_event)
        finally:
            ray.kill(self._mailbox)
        return None if self._error is None else _classify(self._error)

    def _pass_on(self, on_event: Observer) -> None:
        for event in ray.get(self._mailbox.take.remote()):
            if isinstance(event, UnseenError):
                raise event
            on_event(event)

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpus = self._request["GPU"]
        try:
            TorchTrainer(
                _train_share,
                train_loop_config=self._config,
                scaling_config=ScalingConfig(
                    num_workers=self._job.workers_of(self._task),
                    use_gpu=gpus > 0,
                    resources_per_worker={name: amount for name, amount in self._request.items() if amount > 0},
                ),
                run_config=RunConfig(
                    name="ray-train",
                    storage_path=Folder(self._job.out).path(CHECKPOINTS),
                    failure_config=FailureConfig(max_failures=0),
                ),
            ).fit()
        except Exception as error:  # passed on to the thread that waits
            self._error = error


def _train_share(config: dict[str, Any]) -> None:
    """What every worker does."""
    import ray.train
    from ray.train.torch import get_device

    from unseen_ray.training.feed import Share
    from unseen_ray.training.work import Workbench

    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    _, job_ref, labels_ref, pixels_ref = config["shared"]
    job, labels_N = ray.get([job_ref, labels_ref])
    try:
        plane = (
            LazyPlane(open_source(job.source), job.size_px) if pixels_ref is None else MemoryPlane(ray.get(pixels_ref))
        )
        bench = Workbench(
            job=job, labels_N=labels_N, plane=plane, source=lambda: open_source(job.source), device=get_device()
        )
        for progress in bench.train_share(config["task"], share):
            if share.rank == 0:
                config["mailbox"].put.remote(progress)
    except UnseenError as error:
        ray.get(config["mailbox"].put.remote(error))
        raise


def _classify(error: Exception) -> tuple[Failure, str]:
    """Whether workers were lost, after which the others' connections break too, or a worker's own code is at fault."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in failures.items():
        if isinstance(failure, RayActorError) or any(word in f"{type(failure)} {failure}" for word in _LOST):
            return "worker lost", f"worker {rank}: {type(failure).__name__}"
    return "error", f"its own code raised an error:\n{str(error).strip()}"
