"""The actors: thin shells over plain classes that know nothing of Ray."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from unseen_ray.core.arrays import IntArray
from unseen_ray.core.tasks import EvalTask, ScoreTask
from unseen_ray.data.plane import BadSample, LazyPlane, MemoryPlane, decode_range
from unseen_ray.errors import ConfigError
from unseen_ray.job import EvalResult, Job, Progress, Receipt
from unseen_ray.manifest import MANIFEST, MANIFEST_COPY
from unseen_ray.recipe import Precision
from unseen_ray.sources import Source, SourceRef, open_source
from unseen_ray.storage import Folder
from unseen_ray.votes import MergeRequest, merge_stage

__all__ = ["Aggregator", "FoldWorker", "device_of_actor"]


class FoldWorker:
    """Owns the training of one fold at a time, on a device of its own. The constructor does nothing that can fail."""

    def __init__(self) -> None:
        self._source: tuple[SourceRef, Source] | None = None
        self._bench: tuple[str, Any] | None = None
        self._test: tuple[str, Any] | None = None

    def probe(self, precision: Precision, out: str) -> dict[str, Any]:
        """Where this worker runs, what it has, and what precision it would compute with; loads what training needs.

        Raises:
            ConfigError: if it does not see the run's folder, in which the driver has put a manifest.
        """
        if all(Folder(out).read(name) is None for name in (MANIFEST, MANIFEST_COPY)):
            raise ConfigError(
                f"node {platform.node()} does not see the run's folder: out={out} must be on storage that every node shares, "
                "under the same path or URI."
            )
        import ray

        import unseen_ray.training.work  # noqa: F401
        from unseen_ray.training.hardware import describe_hardware, resolve_precision, supported_precisions

        device = device_of_actor()
        return {
            "node": platform.node(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "precision": resolve_precision(precision, device),
            "supported": supported_precisions(device),
            **describe_hardware(device),
        }

    def decode(self, ref: SourceRef, start: int, stop: int, size_px: int) -> Iterator[tuple[Any, list[BadSample]]]:
        """Pixels of a range of rows, and the bad ones."""
        yield decode_range(self._open(ref), range(start, stop), size_px)

    def find_bad(self, ref: SourceRef, start: int, stop: int, size_px: int) -> Iterator[tuple[None, list[BadSample]]]:
        """The bad samples of a range of rows, without keeping its pixels."""
        yield None, decode_range(self._open(ref), range(start, stop), size_px)[1]

    def score(
        self, run_id: str, job: Job, labels_N: IntArray, pixels: Any, task: ScoreTask
    ) -> Iterator[Progress | Receipt]:
        """Train the task's model, score, put the votes on storage, then hand over the receipt."""
        yield from self._workbench(run_id, job, labels_N, pixels).score(task)

    def evaluate(
        self, run_id: str, job: Job, labels_N: IntArray, pixels: Any, task: EvalTask
    ) -> Iterator[Progress | EvalResult]:
        """Train on the task's subset and measure."""
        from unseen_ray.training.work import open_test

        bench = self._workbench(run_id, job, labels_N, pixels)
        if self._test is None or self._test[0] != run_id:
            self._test = run_id, open_test(bench)
        yield from bench.evaluate(task, self._test[1])

    def _workbench(self, run_id: str, job: Job, labels_N: IntArray, pixels: Any) -> Any:
        from unseen_ray.training.work import Workbench

        if self._bench is None or self._bench[0] != run_id:
            plane = MemoryPlane(pixels) if pixels is not None else LazyPlane(self._open(job.source), job.size_px)
            bench = Workbench(
                job=job, labels_N=labels_N, plane=plane, source=lambda: self._open(job.source), device=device_of_actor()
            )
            self._bench = run_id, bench
        return self._bench[1]

    def _open(self, ref: SourceRef) -> Source:
        if self._source is None or self._source[0] != ref:
            self._source = ref, open_source(ref)
        return self._source[1]


class Aggregator:
    """Merges a stage's votes, in the order of the tasks, and puts the scores on storage."""

    def merge(self, job: Job, labels_N: IntArray, request: MergeRequest) -> tuple[pa.Table, dict[str, str]]:
        """See `votes.merge_stage`."""
        return merge_stage(job, labels_N, request)


def device_of_actor() -> Any:
    """The GPU that Ray gave this actor, else the CPU; an actor without one may see the others' GPUs all the same."""
    import ray
    import torch

    return torch.device("cuda", 0) if ray.get_gpu_ids() and torch.cuda.is_available() else torch.device("cpu")
