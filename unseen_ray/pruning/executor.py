"""The protocol between the method and where its tasks run: this process, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Job, Progress

if TYPE_CHECKING:
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.data.sources.registry import Source
    from unseen_ray.pruning.merge import Merged, MergeRequest

__all__ = ["Executor", "ExecutorSetup", "Observer"]

Observer = Callable[[Progress | Receipt | EvalResult], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSetup:
    """What an executor resolved while it got ready.

    Attributes:
        job: with precision, cpus_per_fold and gpus_per_fold resolved for the whole run, and without rows that cannot be read.
        environment: versions and hardware.
    """

    job: Job
    environment: dict[str, Any]


class Executor(Protocol):
    """Runs tasks: in this process, or on a Ray cluster."""

    def prepare(self, job: Job, source: Source) -> ExecutorSetup:
        """Acquire machines, load pixels, find bad samples, and resolve what depends on the hardware."""
        ...

    def score(self, tasks: list[ScoreTask], on_event: Observer) -> list[Receipt]:
        """Run the tasks; a task's votes are on storage before `on_event` gets its receipt."""
        ...

    def merge(self, request: MergeRequest) -> Merged:
        """Merge a stage's votes into its scores on storage."""
        ...

    def evaluate(self, tasks: list[EvalTask], on_event: Observer) -> list[EvalResult]:
        """Train on each task's subset and measure on the test set."""
        ...

    def rest(self) -> None:
        """Release idle machines; later tasks request them again."""
        ...

    def waited_s(self) -> float:
        """Seconds so far in which no task could run for want of a machine."""
        ...

    def close(self) -> None:
        """Release machines and pixels."""
        ...
