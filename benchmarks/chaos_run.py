"""A run under attack: its driver, a process of its own, and the folder that its files lie in."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyarrow.fs import FileSelector, FileSystem, FileType

import unseen_ray as ur
from tests.s3 import BUCKET
from unseen_ray.cli.app import entry
from unseen_ray.execution import api
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Progress
from unseen_ray.storage.fence import LOCK
from unseen_ray.storage.filesystem import read_file

ENDED = {0, 2, 3, 4, 130}  # the exit codes of the command line

IMPORTED = (
    "click.shell_completion",
    "pyarrow.dataset",
    "rich.console",
    "rich.table",
    "safetensors.torch",
    "tests.plugs",
    "torch._dynamo",
    "unseen_ray.cli.progress",
    "unseen_ray.cli.summary.run",
    "unseen_ray.execution.local",
)
_forking = multiprocessing.get_context("forkserver")
# A driver that is forked needs no seconds of the processor for its imports.
_forking.set_forkserver_preload(["__main__", "chaos_run", *IMPORTED])


def drive(line: Sequence[str], events: str) -> None:
    """The command line in this process, which notes what its run is told, with the time."""
    faulthandler.register(signal.SIGUSR1)  # tells where a driver hangs
    prune, stream = api.prune, os.open(events, os.O_WRONLY)

    def noted(config: ur.PruneConfig, *, on_event: Callable[[Any], None], **more: Any) -> ur.PruneResult:
        def note(event: Any) -> None:
            told = {"at": time.monotonic(), "pid": os.getpid(), "task": event.task}
            told["finished"] = not isinstance(event, Progress)
            if isinstance(event, Progress):
                told |= {"doing": event.doing, "done": event.done, "earlier": event.earlier}
            elif isinstance(event, Receipt):
                told |= {"reused": event.reused}
            os.write(stream, (json.dumps(told) + "\n").encode())
            on_event(event)

        return prune(config, on_event=note, **more)

    api.prune = noted
    sys.argv[1:] = line
    entry()


def _forked(line: Sequence[str], events: str, log: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    written = os.open(log, os.O_WRONLY)
    os.dup2(written, 1)
    os.dup2(written, 2)
    drive(line, events)


class Pipe:
    """A named pipe that drivers write to: `ulimit -f` and a full disk do not reach it."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = str(path), b""
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def text(self) -> str:
        """All that was written."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._read += os.read(self._end, 1 << 16)
        return self._read.decode(errors="replace")

    def close(self) -> None:
        os.close(self._end)


class Driver:
    """A driver: forked, or begun as a program, as Ray wants it."""

    def __init__(self, line: Sequence[str], events: str, log: Path, env: dict[str, str], *, program: bool) -> None:
        self._log = Pipe(log)
        self._polling = threading.Lock()  # of two threads that ask at once, one would be told 255
        if program:
            with open(log, "wb") as stream:
                begun = [sys.executable, __file__, events, *line]
                self._program = subprocess.Popen(begun, env={**os.environ, **env}, stdout=stream, stderr=stream)
            self.pid = self._program.pid
        else:
            self._program = None
            self._forked = _forking.Process(target=_forked, args=(line, events, str(log), env))
            self._forked.start()
            self.pid = self._forked.pid or 0

    def poll(self) -> int | None:
        """Its exit code, the negative number of the signal that ended it, or None while it lives."""
        with self._polling:
            return self._forked.exitcode if self._program is None else self._program.poll()

    def wait(self, seconds: float) -> int | None:
        """The same, once it has ended or the time is over."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return self.poll()

    def signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def words(self) -> str:
        """What it has printed."""
        return self._log.text()

    def close(self) -> None:
        """End it, if it lives."""
        self.signal(signal.SIGKILL)
        self.wait(10)
        self._log.close()


@dataclass
class Run:
    """A run under attack.

    Attributes:
        number: among the runs of its campaign.
        fields: of its configuration, with an `out` on a disk of its own or on S3.
        folder: for logs, and for the disk.
        env: of its drivers.
        program: see `Driver`.
        failures: what should not have happened.
        messages: what failed starts ended with.
        given_up: whether its line failed again and again.
    """

    number: int
    fields: dict[str, Any]
    folder: Path
    env: dict[str, str]
    program: bool = False
    failures: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    given_up: bool = False
    drivers: list[Driver] = field(init=False, default_factory=list)
    _deposed: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._told = Pipe(self.folder / "events")
        (self.folder / "run.json").write_text(json.dumps(self.fields))  # JSON is YAML

    @property
    def out(self) -> str:
        return str(self.fields["out"])

    @property
    def on_s3(self) -> bool:
        return "://" in self.out

    @property
    def driver(self) -> Driver:
        return self.drivers[-1]

    def start(self) -> None:
        """Start the line, again if its driver has ended."""
        log = self.folder / f"driver-{len(self.drivers)}"
        line = ["prune", str(self.folder / "run.json")]
        self.drivers.append(Driver(line, self._told.path, log, self.env, program=self.program))
        self.began = time.monotonic()

    def keep_going(self) -> bool:
        """Start the line again if its driver has failed; whether the run is still under way."""
        self.driver.words()  # a full pipe would stop it
        code = self.driver.poll()
        if code is None:
            return True
        self.look_at(self.driver, code)
        if code:
            self.start()
        return code != 0

    def look_at(self, driver: Driver, code: int) -> None:
        """Note how a driver has ended."""
        words = driver.words()
        if "Traceback" in words:
            self.failures.append(f"traceback:\n{words[-4000:]}")
        elif code not in ENDED and code not in (-signal.SIGKILL, -signal.SIGTERM):
            self.failures.append(f"ended with {code}:\n{words[-4000:]}")
        if code not in (0, 130) and "error: " in words:
            self.messages.append(words.rpartition("error: ")[2].strip().replace(self.out, "OUT"))

    def depose(self) -> Driver:
        """The driver, whose place another one takes; what it is told from now on does not count."""
        self._deposed[self.driver.pid] = time.monotonic()
        before = self.driver
        self.start()
        return before

    def events(self) -> list[dict[str, Any]]:
        """What the drivers were told, in order; a line that a kill has cut is left out."""
        found = []
        for line in self._told.text().splitlines():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if told["at"] < self._deposed.get(told["pid"], math.inf):
                    found.append(told)
        return found

    def got_on_at(self, after: float) -> float | None:
        """When the first epoch or task was finished after a time."""
        done = (e["at"] for e in self.events() if e["at"] > after and (e["finished"] or e["done"]))
        return next(done, None)

    def close(self) -> None:
        """End the drivers that live."""
        for driver in self.drivers:
            driver.close()
        self._told.close()

    def files(self) -> list[str]:
        """Names of the files in its folder."""
        fs, root = self._opened()
        found = fs.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return sorted(entry.path.removeprefix(f"{root}/") for entry in found if entry.type == FileType.File)

    def read(self, name: str) -> bytes | None:
        """A file in its folder; None where there is none."""
        fs, root = self._opened()
        try:
            return read_file(fs, f"{root}/{name}")
        except FileNotFoundError:
            return None

    def damage(self, name: str, data: bytes) -> None:
        """Replace the content of a file."""
        fs, root = self._opened()
        with fs.open_output_stream(f"{root}/{name}") as stream:
            stream.write(data)

    def holder(self) -> dict[str, Any] | None:
        """What its lock says, if it is held and whole."""
        data = self.read(LOCK)
        try:
            return dict(json.loads(data)) if data else None
        except ValueError:
            return None

    def _opened(self) -> tuple[FileSystem, str]:
        if not self.on_s3:
            return FileSystem.from_uri(Path(self.out).as_uri())
        env = {name: quote(self.env[name], safe="") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        server = self.env["AWS_ENDPOINT_URL"].removeprefix("http://")
        place = f"{BUCKET}/{self.out.rpartition('/')[2]}"
        key = f"{env['AWS_ACCESS_KEY_ID']}:{env['AWS_SECRET_ACCESS_KEY']}"
        return FileSystem.from_uri(f"s3://{key}@{place}?scheme=http&endpoint_override={quote(server, safe='')}")


if __name__ == "__main__":
    drive(sys.argv[2:], sys.argv[1])
