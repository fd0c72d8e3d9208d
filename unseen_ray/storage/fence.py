"""The fence of a run's folder: a process writes and deletes there only while the lock file names its driver.

A driver that was paused for longer than the lock's minute, or a worker that was given up for dead, may wake up while others work on
the run, or after they have finished. The lock is therefore read immediately before each commit, and a lock that is missing counts
as lost: whoever took over may have removed it at its end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from unseen_ray.errors import RunInUseError

__all__ = ["LOCK", "Fence", "token_of"]

LOCK = "lease.json"  # the name of version 0.1.0, whose drivers are to respect this one
_LOOK_AGAIN_S = 10.0  # a network file system may deny for some seconds a file that another node has just replaced
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Fence:
    """What a process must find in a run's folder before it changes anything there.

    Attributes:
        root: the folder that holds the lock, an absolute path or a URI.
        token: of the driver's lock.
    """

    root: str
    token: str

    def check(self, read: Callable[[], bytes], wait_s: float) -> None:
        """Return if the lock names this driver, or is damaged, which its driver mends.

        Args:
            read: reads the lock file.
            wait_s: for how long storage may fail.

        Raises:
            RunInUseError: if it names another driver, or is missing.
        """
        end = time.monotonic() + min(_LOOK_AGAIN_S, wait_s / 2)  # less than one call to storage may take
        while True:
            try:
                found = token_of(read())
            except (FileNotFoundError, NotADirectoryError):
                if time.monotonic() < end:
                    time.sleep(_PAUSE_S)
                    continue
                raise RunInUseError(
                    f"this driver has lost {self.root} and stops: its lock, {LOCK}, is gone. Either another driver took over and "
                    "has ended since, or the folder was moved or removed. Nothing more was written; the same line resumes what is there."
                ) from None
            if found in (None, self.token):
                return
            raise RunInUseError(
                f"this driver has lost {self.root} and stops: another driver has taken over. Nothing more was written; once no other "
                "driver works on it, the same line resumes the run."
            )


def token_of(data: bytes) -> str | None:
    """The token of a lock file; None if the file is damaged."""
    try:
        token = json.loads(data)["token"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return token if isinstance(token, str) else None
