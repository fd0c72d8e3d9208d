"""The errors that unseen_ray raises, and the exit code that each one ends a command with.

UnseenError                     4  anything below
├── ConfigError (ValueError)    2  a configuration that cannot run; lists every problem at once
├── DataError (ValueError)      3  a data set that cannot be read
│   └── BadSampleError          3  one sample that cannot be decoded
├── LeakError                   4  a score from a model that had seen the sample
├── FitError                    4  a user's function answered with something unusable
├── IncompleteScoreError        4  votes are missing, doubled or damaged
├── FoldFailedError             4  a fold failed for good
├── ClusterError                4  the cluster does not bring what a fold needs
├── RunInUseError               4  another driver works on the run
└── StorageError                4  the run folder cannot be read or written
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BadSampleError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "FitError",
    "FoldFailedError",
    "IncompleteScoreError",
    "LeakError",
    "RunInUseError",
    "StorageError",
    "UnseenError",
    "first_line",
]


class UnseenError(Exception):
    """Root of the tree; `exit_code` is what a command ends with."""

    exit_code = 4

    def _render_traceback_(self, *_: Any) -> list[str]:
        """What a notebook shows: the message without the way through our code."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UnseenError, ValueError):
    """A configuration that cannot run.

    Args:
        problems: one message, or all of them; each says what was given, what is allowed and what to do.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            message = f"{len(self.problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class DataError(UnseenError, ValueError):
    """A data set that cannot be read as it is."""

    exit_code = 3


class BadSampleError(DataError):
    """Samples that cannot be decoded.

    Args:
        keys: their portable names, such as `train.parquet:17`; the first few of them.
        reason: what the decoder said of the first.
        total: how many there are, as far as was looked.
    """

    def __init__(self, keys: Sequence[str], reason: str, total: int) -> None:
        self.keys, self.reason, self.total = tuple(keys), reason, total
        more = (
            f" So are {', '.join(self.keys[1:])}{' and more' if total > len(self.keys) else ''}: {total} in all."
            if total > 1
            else ""
        )
        super().__init__(
            f"sample {self.keys[0]} cannot be decoded: {reason}.{more} "
            f"Repair or remove {'them' if total > 1 else 'it'}, or set `on_bad_sample: skip` to leave such samples out."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.keys, self.reason, self.total)


class LeakError(UnseenError):
    """A score was about to be computed on samples that its model was trained on, or was not asked for."""


class FitError(UnseenError):
    """A function that the user plugged in answered with something that cannot be used."""


class IncompleteScoreError(UnseenError):
    """The votes of a stage do not cover its candidates exactly."""


class FoldFailedError(UnseenError):
    """A task failed for good.

    Args:
        task: the task as a person reads it, such as `stage 0 fold 2`.
        attempts: how many times it was started.
        cause: the last failure; a user's own traceback where there is one.
    """

    def __init__(self, task: str, attempts: int, cause: str) -> None:
        self.task, self.attempts, self.cause = task, attempts, cause
        times = "once" if attempts == 1 else f"{attempts} times"
        super().__init__(
            f"{task} failed after it was started {times}: {cause}\nWhat was finished is kept: run the same line to resume."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task, self.attempts, self.cause)


class ClusterError(UnseenError):
    """The cluster does not bring what a fold needs."""


class RunInUseError(UnseenError):
    """Another driver works on the run."""


class StorageError(UnseenError):
    """The run folder cannot be read or written."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
