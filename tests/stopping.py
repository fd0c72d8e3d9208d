"""The command line in a process of its own, which stops itself at one moment of its writes as SIGSTOP from outside would."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unseen_ray.cli.app import entry
from unseen_ray.storage import lock
from unseen_ray.storage.environment import STORAGE_WAIT_S
from unseen_ray.storage.filesystem import Folder, is_uri

# Forked from a process that has imported all this, a driver begins within a moment.
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["tests.stopping", "torch._dynamo", "pyarrow.dataset", "unseen_ray.execution.local"])

BEFORE, CHECKED, AFTER = "before", "checked", "after"
WRITE, REMOVAL = "_put", "delete"
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Moment:
    """A moment of a driver: the `times`-th one of its kind.

    Attributes:
        when: before a change, after it, or between the last look at the lock and the rename or the request that puts a file into place.
        change: a write or a removal.
        name: a regular expression for the file within the run's folder.
    """

    when: str
    change: str
    name: str
    times: int = 1


class Driver:
    """A driver with its output in a file; it renews its lock ten times a second, and looks for one that is missing for as long.

    Args:
        line: what follows `unseen-ray`.
        log: for its output.
        moment: where it stops itself.
        variables: of its environment, beside those of this process.
    """

    def __init__(
        self, line: Sequence[str], log: Path, moment: Moment | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._process = _forking.Process(target=_drive, args=(line, str(log), moment, variables or {}))
        self._process.start()

    def ended(self) -> bool:
        return self._process.exitcode is not None

    def wait(self) -> tuple[int | None, str]:
        """Its exit code, and what it printed."""
        self._process.join(PATIENCE_S)
        return self._process.exitcode, self._log.read_text()

    def wait_until_it_stops(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self._is_stopped():
            assert not self.ended(), f"the moment never came:\n{self._log.read_text()}"
            assert time.monotonic() < end, f"it has not stopped:\n{self._log.read_text()}"
            time.sleep(0.01)

    def wake(self) -> None:
        os.kill(self._process.pid or 0, signal.SIGCONT)

    def _is_stopped(self) -> bool:
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"


def _drive(line: Sequence[str], log: str, moment: Moment | None, variables: Mapping[str, str]) -> None:
    written = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.environ.update({STORAGE_WAIT_S: "1", **variables})
    lock._BEAT_S = 0.1  # type: ignore[misc]
    if moment is not None:
        _stop_at(moment)
    sys.argv[1:] = line
    entry()


def _stop_at(moment: Moment) -> None:
    left = moment.times
    checks: dict[str, int] = {}  # of the file that is being written

    def pass_by(when: str, change: str, folder: Folder, name: str) -> None:
        nonlocal left
        root = folder.root if folder.fence is None else folder.fence.root
        within = folder.path(name).removeprefix(root)[1:]
        if (when, change) == (moment.when, moment.change) and re.fullmatch(moment.name, within):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    def around(change: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: Folder, name: str, *args: Any, **more: Any) -> Any:
            pass_by(BEFORE, change, self, name)
            checks[name] = 0
            try:
                return do(self, name, *args, **more)
            finally:
                del checks[name]
                pass_by(AFTER, change, self, name)

        return changed

    confirm = Folder.confirm

    def confirmed(self: Folder) -> None:
        confirm(self)
        for name in list(checks):
            checks[name] += 1
            if checks[name] == (1 if is_uri(self.root) else 2):
                pass_by(CHECKED, WRITE, self, name)

    Folder._put = around(WRITE, Folder._put)  # type: ignore[method-assign]
    Folder.delete = around(REMOVAL, Folder.delete)  # type: ignore[method-assign]
    Folder.delete_folder = around(REMOVAL, Folder.delete_folder)  # type: ignore[method-assign]
    Folder.confirm = confirmed  # type: ignore[method-assign]
