"""What the chaos harness attacks: a Ray cluster of real nodes on this machine, and runs whose driver is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import unseen_ray as ur
from tests.distributed.nodes import free_ports, start, wait_for
from unseen_ray.cli.signals import Interruption
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Progress

WORKERS = 2


class Cluster:
    """A head without CPUs, which the driver connects to, and workers that come and go; all are real processes."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._env, self._folder, self._count = env, folder, 0
        (self._port,) = free_ports(1)
        self._head = self._start(
            "--head", f"--port={self._port}", f"--temp-dir={folder}/r", "--num-cpus=0", "--include-dashboard=false"
        )
        self.workers: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(WORKERS):
                self.workers.append(self._add())
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of the cluster whose title begins so."""
        found = []
        for node in (self._head, *self.workers):
            for process in descendants(node.pid):
                try:
                    if " ".join(process.cmdline()).startswith(title) or process.name() == title:
                        found.append(process)
                except psutil.Error:
                    continue
        return found

    def replace(self, node: subprocess.Popen[bytes]) -> None:
        """End what is left of a worker at once, and have another one come."""
        kill_all(node)
        self.workers.remove(node)
        self.workers.append(self._add())

    def close(self) -> None:
        for node in (*self.workers, self._head):
            kill_all(node)

    def _add(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        self._count += 1
        log = self._folder / f"node-{self._count}.log"
        (port,) = free_ports(1)
        node = start(self._env, log, *args, f"--dashboard-agent-listen-port={port}")
        wait_for(log, "Ray runtime started")
        return node


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a node and every process below it."""
    for process in [*descendants(node.pid), node]:
        try:
            process.kill()
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    node.wait()


def drive(fields: dict[str, Any], events: Path) -> int:
    """A run in this process, which notes what it is told with the time; the exit code of the command line."""
    interruption = Interruption()
    interruption.listen()
    with events.open("a", buffering=1) as stream:

        def note(event: Any) -> None:
            told = {"at": time.time(), "task": event.task, "finished": not isinstance(event, Progress)}
            if isinstance(event, Progress):
                told |= {"doing": event.doing, "done": event.done}
            elif isinstance(event, Receipt):
                told |= {"reused": event.reused}
            stream.write(json.dumps(told) + "\n")

        try:
            ur.prune(ur.PruneConfig(**fields), on_event=interruption.interruptible(note))
        except KeyboardInterrupt:
            return 130
        except ur.UnseenError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


@dataclass
class Run:
    """A run under attack: its driver, and what that was told."""

    number: int
    fields: dict[str, Any]
    folder: Path
    env: dict[str, str]
    starts: int = 0
    driver: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the driver, again if it has ended."""
        self.starts += 1
        line = [sys.executable, __file__, json.dumps(self.fields), str(self.events_file)]
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(line, env=self.env, stdout=log, stderr=log)

    @property
    def out(self) -> str:
        return str(self.fields["out"])

    @property
    def on_s3(self) -> bool:
        return "://" in self.out

    @property
    def events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "driver.log"

    def events(self) -> list[dict[str, Any]]:
        """What the drivers were told, in order; a line that a kill has cut is left out."""
        if not self.events_file.exists():
            return []
        found = []
        for line in self.events_file.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def got_on_at(self, after: float) -> float | None:
        """When the first epoch or task was finished after a time."""
        done = (e["at"] for e in self.events() if e["at"] > after and (e["finished"] or e["done"]))
        return next(done, None)

    def keep_going(self) -> bool:
        """Start the driver again if it has failed; whether the run is still under way."""
        code = self.driver.poll()
        if code == 0:
            return False
        if code is not None:
            self.start()
        return True


if __name__ == "__main__":
    sys.exit(drive(json.loads(sys.argv[1]), Path(sys.argv[2])))
