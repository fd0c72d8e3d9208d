"""One fit on several workers by Ray Train: data parallel, over NCCL on GPUs and gloo on CPUs.

The workers leave the model in the fit's checkpoint on the run's storage, from which a fold actor loads it to score. The fit also
resumes from that checkpoint after a worker was lost; Ray Train keeps no checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unseen_ray.data.images.loading import pixel_store_of
from unseen_ray.data.sources.registry import open_source
from unseen_ray.errors import FoldFailedError, UnseenError
from unseen_ray.execution.ray.actors import watch_node
from unseen_ray.execution.ray.capacity import fit_request, waiting_for
from unseen_ray.execution.ray.failures import Attempts, Failure
from unseen_ray.execution.ray.internals import cause_of, is_unhealthy_worker
from unseen_ray.execution.ray.waiting import Wait
from unseen_ray.runs.layout import CHECKPOINTS, RAY_TRAIN
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.host import PreemptedError, is_gpu_fault

if TYPE_CHECKING:
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.execution.ray.actor_pool import FoldPool
    from unseen_ray.execution.ray.capacity import Resources, Selector
    from unseen_ray.pruning.executor import Observer
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.runs.tasks import EvalResult, Job, Progress

__all__ = ["train_together"]

logger = logging.getLogger(__name__)

_POLL_S = 0.5
# Gloo raises a plain RuntimeError where the other end is gone.
_BROKEN = ("Connection closed by peer", "Connection reset by peer")

_RESIZE_AFTER_S = 300.0  # to start workers anew takes half a minute
_RESIZED: tuple[Failure, str] = ("preempted", "the cluster has room for another number of workers")  # no failure

Outcome = tuple[Failure, str] | None


def train_together(
    job: Job, shared: tuple[Any, ...], task: ScoreTask | EvalTask, pool: FoldPool, on_event: Observer
) -> None:
    """Train a task's model on several workers, which leave it in the fit's last checkpoint.

    They are `gpus_per_fit`, or with `min_gpus_per_fit` as many of them as the cluster has room for; a change of that starts others.

    Args:
        job: with the hardware resolved.
        shared: references to the job, the labels and the pixels.
        task: whose model to train.
        pool: whose resources the workers take; its actors are killed.
        on_event: called after each epoch.

    Raises:
        UnseenError: as a worker raised it.
        ClusterError: if the cluster had no room for the workers for `wait_s`.
        FoldFailedError: if workers were lost too often, or a worker's own code raised an error.
    """
    pool.request_actors(0)
    attempts = Attempts(job.config.max_retries, job.config.max_preemptions)

    def observe(event: Progress | Receipt | EvalResult) -> None:
        attempts.note(event)
        on_event(event)

    while (outcome := _attempt(job, shared, task, pool, observe)) is not None:
        if outcome is _RESIZED:
            logger.info(
                "%s: the cluster has room for another number of workers; resuming from its checkpoint", task.name
            )
            continue
        kind, reason = outcome
        if attempts.failed(kind) == "give up":
            raise FoldFailedError(task.name, attempts.count, reason)
        count = attempts.count + 1
        logger.warning("%s: %s (%s); resuming from its checkpoint, attempt %d", task.name, kind, reason, count)


def _attempt(
    job: Job, shared: tuple[Any, ...], task: ScoreTask | EvalTask, pool: FoldPool, on_event: Observer
) -> Outcome:
    """Start the workers once and follow them; returns what failed, or None."""
    workers = _workers(job, task, pool)
    logger.info("%s: %d workers train one model together", task.name, workers)
    driver = _start_driver()
    try:
        storage = Folder(job.out).path(CHECKPOINTS)
        ended = driver.train.remote(shared, task, workers, fit_request(pool.request), storage, pool.selectors[:1])
        return _follow(driver, ended, job, task, pool, workers, on_event)
    except RayTaskError as error:
        return "error", f"the actor that starts the workers raised an error:\n{error}"
    except RayError as error:
        return "worker lost", f"the actor that starts the workers: {type(error).__name__}"
    finally:
        ray.kill(driver)  # this also ends Ray Train's controller and workers, should they still run


def _workers(job: Job, task: ScoreTask | EvalTask, pool: FoldPool) -> int:
    """How many workers to start: as many as fit now, of the numbers that divide a batch evenly; at least the fewest allowed."""
    most = job.workers_of(task)
    fewest = job.config.min_gpus_per_fit or most
    allowed = [number for number in range(fewest, most + 1) if most % number == 0]
    room = pool.room(fit_request(pool.request))
    return max((number for number in allowed if number <= room), default=allowed[0])


def _start_driver() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(TrainDriver)
        .options(
            num_cpus=0,
            max_concurrency=4,  # workers put events and this process takes them while `train` runs
            scheduling_strategy=here,
            runtime_env={"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}},  # a user's function may open a relative path
        )
        .remote()
    )


def _follow(
    driver: Any, ended: Any, job: Job, task: ScoreTask | EvalTask, pool: FoldPool, count: int, on_event: Observer
) -> Outcome:
    """Pass on the workers' events until they have ended, or another number of them fits; ClusterError if none fits for too long."""
    request = fit_request(pool.request)
    workers = f"{count} workers of {request['CPU']:g} CPU and {request['GPU']:g} GPU"
    otherwise = (
        f"{task.name} requested {workers}, for which the cluster had no room for wait_s={job.config.wait_s:g} s. Raise wait_s, "
        "lower gpus_per_fit, or start more nodes (ray start --address); then run the same line again: what was finished is kept."
    )
    waiting, has_started, began = Wait(requested=workers, wait_s=job.config.wait_s), False, time.monotonic()
    leaves: Any = None
    while True:
        done, _ = ray.wait([ended], timeout=_POLL_S)
        for event in ray.get(driver.take.remote()):
            has_started = True
            if isinstance(event, UnseenError):
                raise event
            on_event(event)
        if done:
            outcome: Outcome = ray.get(ended)
            return _RESIZED if leaves and outcome is not None and outcome[0] == "preempted" else outcome
        fit_now = _workers(job, task, pool)
        if fit_now < count and not has_started:
            return _RESIZED
        if fit_now > count and not leaves and time.monotonic() - began > _RESIZE_AFTER_S:
            leaves = driver.leave.remote()
        may_come = has_started or pool.room(request) >= count  # other work may hold what they need
        is_busy = waiting_for(pool.capacity, request) > 0
        pool.waited_s += waiting.check(came=has_started, may_come=may_come, is_busy=is_busy, otherwise=otherwise)


class TrainDriver:
    """The actor that runs Ray Train's trainer and collects the workers' events. All that it started ends with it."""

    def __init__(self) -> None:
        self._events: list[Progress | UnseenError] = []
        self._leaves = False

    def put(self, event: Progress | UnseenError) -> bool:
        """Take a worker's event; whether the workers shall write a checkpoint and stop."""
        self._events.append(event)
        return self._leaves

    def leave(self) -> None:
        """Have the workers write a checkpoint and stop. To kill this actor would leave what Ray has reserved for them reserved."""
        self._leaves = True

    def take(self) -> list[Progress | UnseenError]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def train(
        self,
        shared: tuple[Any, ...],
        task: ScoreTask | EvalTask,
        workers: int,
        request: Resources,
        storage: str,
        selectors: Sequence[Selector],
    ) -> Outcome:
        """Let the workers train; returns what failed, or None."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        driver = ray.get_runtime_context().current_actor
        try:
            TorchTrainer(
                _train_shard,
                train_loop_config={"shared": shared, "task": task, "driver": driver},
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=request["GPU"] > 0,
                    label_selector=dict(selectors[0]) if selectors else None,
                    resources_per_worker={name: amount for name, amount in request.items() if amount > 0},
                ),
                run_config=RunConfig(
                    name=RAY_TRAIN,
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # retries are ours
                ),
            ).fit()
        except Exception as error:  # not every exception can be pickled on its way out
            return _classify(error)
        return None


def _train_shard(config: dict[str, Any]) -> None:
    """Train one shard: what every worker does."""
    import ray.train
    from ray.train.torch import get_device

    from unseen_ray.training.hardware import device_name
    from unseen_ray.training.host import claim_process, leave_node
    from unseen_ray.training.loop.batches import WorkerShare
    from unseen_ray.training.model_task import ModelTask
    from unseen_ray.training.task_runner import TaskRunner

    claim_process()
    watch_node()
    context, driver = ray.train.get_context(), config["driver"]
    shard = WorkerShare(context.get_world_rank(), context.get_world_size())
    _, job_ref, labels_ref, pixels_ref = config["shared"]
    job, labels_N = ray.get([job_ref, labels_ref])
    try:
        held = None if pixels_ref is None else ray.get(pixels_ref)
        pixel_store = pixel_store_of(held, lambda: open_source(job.source), job.size_px)
        device = get_device()
        runner = TaskRunner(
            job=job,
            labels_N=labels_N,
            pixel_store=pixel_store,
            source=lambda: open_source(job.source),
            device=device_name(device),
        )
        for progress in ModelTask(runner=runner, device=device).train_shard(config["task"], shard):
            if shard.rank == 0 and ray.get(driver.put.remote(progress)):
                leave_node()
    except UnseenError as error:
        ray.get(driver.put.remote(error))
        raise


def _classify(error: Exception) -> tuple[Failure, str]:
    """Whether workers or their GPUs were lost, which breaks the connections of the others too, or a worker's code raised an error."""
    from ray.train import PreemptionError, WorkerGroupError

    raised = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    failures = {rank: cause_of(failure) for rank, failure in raised.items()}
    if isinstance(error, PreemptionError) or any(isinstance(each, PreemptedError) for each in failures.values()):
        return "preempted", "the node of a worker is taken away"
    lost = {rank: failure for rank, failure in failures.items() if _is_loss(failure)}
    # One error of a worker's own code decides: it broke the others' connections, and would again.
    if lost and len(lost) == len(failures):
        rank, failure = next(iter(lost.items()))
        return "worker lost", f"worker {rank}: {str(failure).strip().splitlines()[-1]}"
    return "error", f"its own code raised an error:\n{str(error).strip()}"


def _is_loss(failure: BaseException) -> bool:
    from torch.distributed import DistError

    if isinstance(failure, (RayActorError, DistError)) or is_unhealthy_worker(failure) or is_gpu_fault(failure):
        return True
    return any(word in str(failure) for word in _BROKEN)
