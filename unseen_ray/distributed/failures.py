"""What to do about a task that failed: a decision as a value, apart from the machinery that acts on it."""

from __future__ import annotations

from typing import Literal

__all__ = ["Decision", "Failure", "decide"]

Failure = Literal["worker lost", "out of memory", "error"]
Decision = Literal["retry", "give up"]

_MEMORY_RETRIES = 1


def decide(failure: Failure, *, failed: int, max_retries: int) -> Decision:
    """Whether to start a task again.

    A lost worker says nothing against the task. Running out of memory may be a neighbour's doing once. An error raised
    by the task itself would be raised again.

    Args:
        failure: what happened.
        failed: how often this task has failed in this way, this time included.
        max_retries: the configuration's.
    """
    allowed = {"worker lost": max_retries, "out of memory": min(_MEMORY_RETRIES, max_retries), "error": 0}[failure]
    return "retry" if failed <= allowed else "give up"
