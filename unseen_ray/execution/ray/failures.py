"""What a failure on the cluster means, and what to do about it: start the task again, or give up."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from unseen_ray.errors import FoldFailedError, UnseenError, first_line
from unseen_ray.runs.tasks import Progress
from unseen_ray.training.host import PreemptedError, is_gpu_fault

__all__ = [
    "Attempts",
    "Decision",
    "Failure",
    "decide",
    "explain",
    "failure_of",
    "handle_failure",
    "loss_of",
    "raise_own",
]

logger = logging.getLogger(__name__)

Failure = Literal["preempted", "worker lost", "GPU failed", "out of memory", "error"]
Decision = Literal["retry", "give up"]

_MEMORY_RETRIES = 1
_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)


def decide(failure: Failure, *, failed: int, max_retries: int, max_preemptions: int = 0) -> Decision:
    """Whether to start a task again.

    A lost worker or a GPU that failed is no fault of the task. A task that ran out of the node's memory may have shared it with a
    large one, and gets another chance. An error that the task itself raised would be raised again.

    Args:
        failure: what happened.
        failed: how often in a row the task has failed in this way, including this time.
        max_retries, max_preemptions: the configuration's; the latter for nodes that were taken away with notice.
    """
    own = {"preempted": max_preemptions, "out of memory": min(_MEMORY_RETRIES, max_retries), "error": 0}
    return "retry" if failed <= own.get(failure, max_retries) else "give up"


@dataclass(slots=True)
class Attempts:
    """Counts a task's failures in a row; an epoch further than ever before resets the count.

    Attributes:
        max_retries, max_preemptions: the configuration's.
        count: the total number of failures.
    """

    max_retries: int
    max_preemptions: int = 0
    count: int = 0
    _reached: tuple[bool, int] = (False, 0)
    _in_a_row: Counter[Failure] = field(default_factory=Counter)

    def note(self, event: object) -> None:
        """Take note of a value that the task has yielded."""
        # Progress in scoring resets nothing: it starts over with every worker, so a task could fail there for ever.
        if isinstance(event, Progress):
            at = event.doing == "score", event.done if event.doing == "train" else 0
            if at > self._reached:
                self._reached = at
                self._in_a_row.clear()

    def failed(self, failure: Failure) -> Decision:
        """Count a failure, and decide what to do."""
        self.count += 1
        self._in_a_row[failure] += 1
        return decide(
            failure,
            failed=self._in_a_row[failure],
            max_retries=self.max_retries,
            max_preemptions=self.max_preemptions,
        )


def handle_failure(error: RayError, name: str, attempts: Attempts) -> None:
    """Log that the task is started again, or raise what ends the run.

    Raises:
        UnseenError: as the task raised it.
        FoldFailedError: if it has failed too often.
    """
    failure = failure_of(error)
    raise_own(error)
    if attempts.failed(failure) == "give up":
        raise FoldFailedError(name, attempts.count, explain(error, failure)) from None
    if failure == "preempted":
        logger.info("%s: %s; going on elsewhere, from its checkpoint", name, loss_of(error))
    else:
        logger.warning("%s: %s; starting it again, attempt %d", name, loss_of(error), attempts.count + 1)


def raise_own(error: RayError) -> None:
    """Raise an error of this package as the worker raised it; do nothing for any other error."""
    if isinstance(cause := getattr(error, "cause", None), UnseenError) and failure_of(error) == "error":
        raise cause from None


def failure_of(error: RayError) -> Failure:
    """The kind of a failure."""
    if isinstance(getattr(error, "cause", None), PreemptedError):
        return "preempted"
    if isinstance(error, RayActorError) and error.preempted:
        return "preempted"
    if isinstance(error, OutOfMemoryError):
        return "out of memory"
    if is_gpu_fault(error):
        return "GPU failed"
    return "worker lost" if isinstance(error, _LOST) else "error"


def explain(error: RayError, failure: Failure) -> str:
    """The user's message about the last failure."""
    if failure == "preempted":
        return (
            "its nodes were taken away more than max_preemptions times in a row before it got further. Raise max_preemptions, or name "
            "nodes that stay by placement.fits."
        )
    if failure == "out of memory":
        return "it ran out of memory. Lower recipe.batch_size, or let fewer folds run on a node (higher cpus_per_fold)."
    if failure == "GPU failed":
        return f"its GPU failed, or its own code on the GPU did:\n{str(error).strip()}"
    if isinstance(error, RayTaskError):
        return f"its own code raised an error:\n{str(error).strip()}"
    return loss_of(error)


def loss_of(error: RayError) -> str:
    """What was lost, in words; the log of `-v` has Ray's own, with its ids and states."""
    logger.debug("Ray says: %s", error)
    if failure_of(error) == "preempted":
        return "its node is taken away"
    if isinstance(error, OutOfMemoryError):
        return "it ran out of memory"
    if is_gpu_fault(error):
        return f"its GPU failed: {str(error).strip().splitlines()[-1]}"
    if isinstance(error, ActorUnavailableError):
        return "its worker does not answer"
    if isinstance(error, ObjectLostError):
        return "data that it needs was lost with a node"
    return "its worker or that worker's node was lost" if isinstance(error, _LOST) else first_line(error)
