"""The actors: thin shells around classes that do not depend on Ray."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from unseen_ray.data.images.loading import Held, pixel_store_of
from unseen_ray.data.images.pixel_files import PixelFiles, write_file
from unseen_ray.data.images.pixel_store import BadSample, PixelStore, decode_range
from unseen_ray.data.sources.registry import Source, SourceRef, open_source
from unseen_ray.errors import ConfigError
from unseen_ray.execution.ray.internals import draining_nodes
from unseen_ray.pruning.merge import Merged, Merger, MergeRequest
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.host import claim_process, leave_node

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision
    from unseen_ray.core.arrays import LabelArray
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.execution.ray.capacity import Resources, Selector
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.runs.tasks import EvalResult, Job, Progress

__all__ = ["Aggregator", "FoldWorker", "device_of_actor", "start_fold_worker", "watch_node"]

logger = logging.getLogger(__name__)

_WATCH_EVERY_S = 2.0  # clouds give notice 30 s or 2 min before


class FoldWorker:
    """Trains and scores one fold at a time, on its own device.

    The constructor does nothing that can fail: Ray reports an error there as a lost actor, without its message.
    """

    def __init__(self) -> None:
        self._source: tuple[SourceRef, Source] | None = None
        self._tasks: tuple[str, Any] | None = None

    def describe(self, precision: Precision, out: str, user_fit: bool = False) -> dict[str, Any]:
        """The node, the hardware and the precision of this worker. Imports what training needs, so that the first task starts fast.

        Args:
            precision: the configuration's.
            out: the run's folder.
            user_fit: whether a user's own function trains, which may need no torch.

        Raises:
            ConfigError: if it does not see the run's folder, where the driver has put a manifest, or torch cannot use its GPU.
        """
        if all(Folder(out).read(name) is None for name in (MANIFEST, MANIFEST_COPY)):
            raise ConfigError(
                f"node {platform.node()} does not see the run's folder: out={out} must be on storage that every node shares, "
                "under the same path or URI."
            )
        claim_process()
        place = {"node": platform.node(), "node_id": watch_node()}
        return {
            **place,
            **(_without_torch(precision) if user_fit and not _has_gpu_of_torch() else _with_torch(precision)),
        }

    def decode(self, ref: SourceRef, start: int, stop: int, size_px: int) -> Iterator[tuple[Any, list[BadSample]]]:
        """Pixels of a range of rows, and its bad samples."""
        yield decode_range(self._open(ref), range(start, stop), size_px)

    def find_bad(self, ref: SourceRef, start: int, stop: int, size_px: int) -> Iterator[tuple[None, list[BadSample]]]:
        """The bad samples of a range of rows; its pixels are dropped."""
        yield None, decode_range(self._open(ref), range(start, stop), size_px)[1]

    def write_pixels(self, ref: SourceRef, start: int, files: PixelFiles) -> Iterator[tuple[None, list[BadSample]]]:
        """Write the file of pixels that begins with row `start`; its bad samples."""
        yield None, write_file(files, self._open(ref), start)

    def score(
        self, run_id: str, job: Job, labels_N: LabelArray, pixels: Held, task: ScoreTask
    ) -> Iterator[Progress | Receipt]:
        """Train the task's model, score its samples and write the votes; the last value is the receipt."""
        yield from self._tasks_of(run_id, job, labels_N, pixels).score(task)

    def evaluate(
        self, run_id: str, job: Job, labels_N: LabelArray, pixels: Held, task: EvalTask
    ) -> Iterator[Progress | EvalResult]:
        """Train on the task's subset and measure."""
        yield from self._tasks_of(run_id, job, labels_N, pixels).evaluate(task)

    def _tasks_of(self, run_id: str, job: Job, labels_N: LabelArray, pixels: Held) -> Any:
        if self._tasks is None or self._tasks[0] != run_id:
            pixel_store = pixel_store_of(pixels, lambda: self._open(job.source), job.size_px)
            make = _model_tasks if job.config.fit is None else _user_tasks
            self._tasks = run_id, make(job, labels_N, pixel_store, lambda: self._open(job.source))
        return self._tasks[1]

    def _open(self, ref: SourceRef) -> Source:
        if self._source is None or self._source[0] != ref:
            self._source = ref, open_source(ref)
        return self._source[1]


class Aggregator:
    """Merges a stage's votes, in the order of the tasks, and writes the scores: of all ids, or of a range."""

    def __init__(self) -> None:
        self._merger: tuple[str, Merger] | None = None

    def merge(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest) -> Merged:
        """See `Merger.merge`."""
        return self._of(run_id, job, labels_N).merge(request)

    def check(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest, index: int) -> None:
        """See `Merger.check`."""
        self._of(run_id, job, labels_N).check(request, index)

    def merge_range(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest, number: int) -> Merged:
        """See `Merger.merge_range`."""
        return self._of(run_id, job, labels_N).merge_range(request, number)

    def join(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest, ranges: list[Merged]) -> Merged:
        """See `Merger.join`."""
        return self._of(run_id, job, labels_N).join(request, ranges)

    def _of(self, run_id: str, job: Job, labels_N: LabelArray) -> Merger:
        if self._merger is None or self._merger[0] != run_id:
            self._merger = run_id, Merger(job, labels_N)
        return self._merger[1]


def watch_node() -> str:
    """Have this process leave its node as soon as Ray has notice that the node is about to be taken away; returns the node's id."""
    import ray

    node_id: str = ray.get_runtime_context().get_node_id()
    threading.Thread(target=_watch, args=(node_id,), name="node watch", daemon=True).start()
    return node_id


def _watch(node_id: str) -> None:
    while True:
        try:
            if node_id in draining_nodes():
                return leave_node()
        # Ray's errors share no base; while its head does not answer, there is no notice either.
        except Exception as error:
            logger.debug("Ray does not tell which nodes are about to be taken away: %s", error)
        time.sleep(_WATCH_EVERY_S)


def start_fold_worker(request: Resources, strategy: Any, selectors: Sequence[Selector] = ()) -> Any:
    """Request an actor with the CPUs and GPUs of a fold from Ray; it comes up once a node has them free.

    Args:
        request: CPUs and GPUs.
        strategy: a scheduling strategy of Ray's.
        selectors: labels of the nodes to use, the preferred ones first; empty for any node.
    """
    import ray

    options = {
        "num_cpus": request["CPU"],
        "num_gpus": request["GPU"],
        "scheduling_strategy": strategy,
        "label_selector": dict(selectors[0]) if selectors else None,
        "fallback_strategy": [{"label_selector": dict(each)} for each in selectors[1:]] or None,
        # The pool replaces a lost actor and starts its task again: it counts failures, and knows what is on storage.
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    return ray.remote(FoldWorker).options(**options).remote()


def device_of_actor() -> Any:
    """The GPU that Ray gave this actor, else the CPU: torch may see a GPU that Ray gave to another actor.

    Raises:
        ConfigError: if torch cannot use the GPU.
    """
    import ray
    import torch

    from unseen_ray.training.hardware import first_gpu

    return first_gpu() if ray.get_gpu_ids() else torch.device("cpu")


def _has_gpu_of_torch() -> bool:
    """Whether torch can use a GPU of this actor; another library of a user's own fit may where torch cannot."""
    import ray

    from unseen_ray.training.host import may_have_gpu

    if not (ray.get_gpu_ids() and may_have_gpu()):
        return False
    import torch

    return torch.cuda.is_available()


def _with_torch(precision: Precision) -> dict[str, Any]:
    import unseen_ray.training.model_task  # noqa: F401
    from unseen_ray.training.hardware import describe_hardware, resolve_precision, supported_precisions

    device = device_of_actor()
    return {
        "precision": resolve_precision(precision, device),
        "supported": supported_precisions(device),
        **describe_hardware(device),
    }


def _without_torch(precision: Precision) -> dict[str, Any]:
    import unseen_ray.training.user_task  # noqa: F401
    from unseen_ray.training.host import cpu_precision, cpu_precisions, describe_machine

    return {"precision": cpu_precision(precision), "supported": cpu_precisions(), **describe_machine("cpu")}


def _model_tasks(job: Job, labels_N: LabelArray, pixel_store: PixelStore, source: Callable[[], Source]) -> Any:
    from unseen_ray.training.hardware import device_name
    from unseen_ray.training.model_task import ModelTask
    from unseen_ray.training.task_runner import TaskRunner

    device = device_of_actor()
    runner = TaskRunner(job=job, labels_N=labels_N, pixel_store=pixel_store, source=source, device=device_name(device))
    return ModelTask(runner=runner, device=device)


def _user_tasks(job: Job, labels_N: LabelArray, pixel_store: PixelStore, source: Callable[[], Source]) -> Any:
    from unseen_ray.training.task_runner import TaskRunner
    from unseen_ray.training.user_task import UserTask

    device, name = None, "cpu"
    if _has_gpu_of_torch():
        from unseen_ray.training.hardware import device_name

        device = device_of_actor()
        name = device_name(device)
    return UserTask(
        runner=TaskRunner(job=job, labels_N=labels_N, pixel_store=pixel_store, source=source, device=name),
        device=device,
    )
