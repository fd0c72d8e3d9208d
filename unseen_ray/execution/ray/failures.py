"""What to do about a task that failed: a decision as a value, apart from the machinery that acts on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from unseen_ray.runs.tasks import Progress

__all__ = ["Attempts", "Decision", "Failure", "decide"]

Failure = Literal["worker lost", "out of memory", "error"]
Decision = Literal["retry", "give up"]

_MEMORY_RETRIES = 1


def decide(failure: Failure, *, failed: int, max_retries: int) -> Decision:
    """Whether to start a task again.

    A lost worker says nothing against the task. Running out of memory may be a neighbour's doing once. An error raised
    by the task itself would be raised again.

    Args:
        failure: what happened.
        failed: how often in a row this task has failed in this way, this time included.
        max_retries: the configuration's.
    """
    allowed = {"worker lost": max_retries, "out of memory": min(_MEMORY_RETRIES, max_retries), "error": 0}[failure]
    return "retry" if failed <= allowed else "give up"


@dataclass(slots=True)
class Attempts:
    """A task's failures in a row: one that trains an epoch further than ever before begins to count anew.

    Attributes:
        max_retries: the configuration's.
        count: how often the task has failed in all.
    """

    max_retries: int
    count: int = 0
    _reached: tuple[bool, int] = (False, 0)
    _in_a_row: Counter[Failure] = field(default_factory=Counter)

    def heard(self, event: object) -> None:
        """Take a value that the task has yielded. Scoring comes after all training, and begins anew after every loss."""
        if isinstance(event, Progress):
            at = event.doing == "score", event.done if event.doing == "train" else 0
            if at > self._reached:
                self._reached = at
                self._in_a_row.clear()

    def failed(self, failure: Failure) -> Decision:
        """Count a failure and decide."""
        self.count += 1
        self._in_a_row[failure] += 1
        return decide(failure, failed=self._in_a_row[failure], max_retries=self.max_retries)
