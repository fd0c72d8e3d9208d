"""What an error of Ray's means: a lost worker, no memory, or a fault of the work itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from unseen_ray.errors import FoldFailedError, UnseenError

if TYPE_CHECKING:
    from unseen_ray.execution.ray.failures import Attempts, Failure

__all__ = ["explain", "failure_of", "first_line", "raise_own", "settle"]

logger = logging.getLogger(__name__)

_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)


def settle(error: RayError, name: str, attempts: Attempts) -> None:
    """Raise what ends the run; else say that the task is started again."""
    failure = failure_of(error)
    raise_own(error)
    if attempts.failed(failure) == "give up":
        raise FoldFailedError(name, attempts.count, explain(error, failure)) from None
    logger.warning("%s: %s (%s); starting it again, attempt %d", name, failure, first_line(error), attempts.count + 1)


def raise_own(error: RayError) -> None:
    """Raise an error of ours as it was raised on the worker; do nothing for any other."""
    if isinstance(cause := getattr(error, "cause", None), UnseenError) and failure_of(error) == "error":
        raise cause from None


def failure_of(error: RayError) -> Failure:
    """The kind of a failure."""
    if isinstance(error, OutOfMemoryError):
        return "out of memory"
    return "worker lost" if isinstance(error, _LOST) else "error"


def explain(error: RayError, failure: Failure) -> str:
    """What to tell the user of the last failure."""
    if failure == "out of memory":
        return "it ran out of memory. Lower recipe.batch_size, or let fewer folds run on a node (higher cpus_per_fold)."
    if isinstance(error, RayTaskError):
        return f"its own code raised an error:\n{str(error).strip()}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's name if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
