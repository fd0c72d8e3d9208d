"""The actors: thin shells over plain classes that know nothing of Ray."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from unseen_ray.data.images.loading import Held, plane_of
from unseen_ray.data.images.pixel_files import PixelFiles, write_file
from unseen_ray.data.images.planes import BadSample, Plane, decode_range
from unseen_ray.data.sources.registry import Source, SourceRef, open_source
from unseen_ray.errors import ConfigError
from unseen_ray.pruning.merge import Merged, Merger, MergeRequest
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY
from unseen_ray.storage.filesystem import Folder

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision
    from unseen_ray.core.arrays import LabelArray
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.runs.entries import Receipt
    from unseen_ray.runs.tasks import EvalResult, Job, Progress

__all__ = ["Aggregator", "FoldWorker", "device_of_actor"]


class FoldWorker:
    """Owns the training of one fold at a time, on a device of its own. The constructor does nothing that can fail."""

    def __init__(self) -> None:
        self._source: tuple[SourceRef, Source] | None = None
        self._bench: tuple[str, Any] | None = None
        self._test: tuple[str, Any] | None = None

    def probe(self, precision: Precision, out: str, own_fit: bool = False) -> dict[str, Any]:
        """Where this worker runs, what it has, and what precision it would compute with; loads what training needs.

        Args:
            precision: the configuration's.
            out: the run's folder.
            own_fit: whether a user's own function trains, which needs no torch of ours.

        Raises:
            ConfigError: if it does not see the run's folder, in which the driver has put a manifest.
        """
        if all(Folder(out).read(name) is None for name in (MANIFEST, MANIFEST_COPY)):
            raise ConfigError(
                f"node {platform.node()} does not see the run's folder: out={out} must be on storage that every node shares, "
                "under the same path or URI."
            )
        import ray

        where = {"node": platform.node(), "node_id": ray.get_runtime_context().get_node_id()}
        return {**where, **(_without_torch(precision) if own_fit and not _may_have_gpu() else _with_torch(precision))}

    def decode(self, ref: SourceRef, start: int, stop: int, size_px: int) -> Iterator[tuple[Any, list[BadSample]]]:
        """Pixels of a range of rows, and the bad ones."""
        yield decode_range(self._open(ref), range(start, stop), size_px)

    def find_bad(self, ref: SourceRef, start: int, stop: int, size_px: int) -> Iterator[tuple[None, list[BadSample]]]:
        """The bad samples of a range of rows, without keeping its pixels."""
        yield None, decode_range(self._open(ref), range(start, stop), size_px)[1]

    def keep(self, ref: SourceRef, start: int, files: PixelFiles) -> Iterator[tuple[None, list[BadSample]]]:
        """The bad samples of the file that begins with a row, its pixels put in place."""
        yield None, write_file(files, self._open(ref), start)

    def score(
        self, run_id: str, job: Job, labels_N: LabelArray, pixels: Held, task: ScoreTask
    ) -> Iterator[Progress | Receipt]:
        """Train the task's model, score, put the votes on storage, then hand over the receipt."""
        yield from self._workbench(run_id, job, labels_N, pixels).score(task)

    def evaluate(
        self, run_id: str, job: Job, labels_N: LabelArray, pixels: Held, task: EvalTask
    ) -> Iterator[Progress | EvalResult]:
        """Train on the task's subset and measure."""
        from unseen_ray.training.model_task import open_test

        bench = self._workbench(run_id, job, labels_N, pixels)
        if self._test is None or self._test[0] != run_id:
            self._test = run_id, open_test(bench.runner)
        yield from bench.evaluate(task, self._test[1])

    def _workbench(self, run_id: str, job: Job, labels_N: LabelArray, pixels: Held) -> Any:
        if self._bench is None or self._bench[0] != run_id:
            plane = plane_of(pixels, lambda: self._open(job.source), job.size_px)
            make = _workbench if job.config.fit is None else _own_bench
            self._bench = run_id, make(job, labels_N, plane, lambda: self._open(job.source))
        return self._bench[1]

    def _open(self, ref: SourceRef) -> Source:
        if self._source is None or self._source[0] != ref:
            self._source = ref, open_source(ref)
        return self._source[1]


class Aggregator:
    """Merges a stage's votes, in the order of the tasks, and puts the scores on storage: all of them, or a range of the ids."""

    def __init__(self) -> None:
        self._merger: tuple[str, Merger] | None = None

    def merge(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest) -> Merged:
        """See `merge.Merger.merge`."""
        return self._of(run_id, job, labels_N).merge(request)

    def check(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest, index: int) -> None:
        """See `merge.Merger.check`."""
        self._of(run_id, job, labels_N).check(request, index)

    def merge_range(self, run_id: str, job: Job, labels_N: LabelArray, request: MergeRequest, number: int) -> Merged:
        """See `merge.Merger.merge_range`."""
        return self._of(run_id, job, labels_N).merge_range(request, number)

    def _of(self, run_id: str, job: Job, labels_N: LabelArray) -> Merger:
        if self._merger is None or self._merger[0] != run_id:
            self._merger = run_id, Merger(job, labels_N)
        return self._merger[1]


def device_of_actor() -> Any:
    """The GPU that Ray gave this actor, else the CPU; an actor without one may see the others' GPUs all the same."""
    import ray
    import torch

    return torch.device("cuda", 0) if ray.get_gpu_ids() and torch.cuda.is_available() else torch.device("cpu")


def _may_have_gpu() -> bool:
    import ray

    from unseen_ray.training.machine import may_have_gpu

    return bool(ray.get_gpu_ids()) and may_have_gpu()


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
    from unseen_ray.training.machine import cpu_precision, cpu_precisions, describe_machine

    return {"precision": cpu_precision(precision), "supported": cpu_precisions(), **describe_machine("cpu")}


def _workbench(job: Job, labels_N: LabelArray, plane: Plane, source: Callable[[], Source]) -> Any:
    from unseen_ray.training.hardware import device_name
    from unseen_ray.training.model_task import ModelTask
    from unseen_ray.training.task_runner import TaskRunner

    device = device_of_actor()
    runner = TaskRunner(job=job, labels_N=labels_N, plane=plane, source=source, device=device_name(device))
    return ModelTask(runner=runner, device=device)


def _own_bench(job: Job, labels_N: LabelArray, plane: Plane, source: Callable[[], Source]) -> Any:
    from unseen_ray.training.task_runner import TaskRunner
    from unseen_ray.training.user_task import UserTask

    device, name = None, "cpu"
    if _may_have_gpu() and (found := device_of_actor()).type == "cuda":
        from unseen_ray.training.hardware import device_name

        device, name = found, device_name(found)
    return UserTask(
        runner=TaskRunner(job=job, labels_N=labels_N, plane=plane, source=source, device=name), device=device
    )
