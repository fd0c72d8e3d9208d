"""A Ray cluster of real nodes on this machine, which come and go."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil

from tests.distributed.nodes import free_ports, start, wait_for

WORKERS = 2


class Cluster:
    """A head without CPUs, which the driver connects to, and workers that come and go; all are real processes."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self._folder, self._count = env, folder, 0
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

    @property
    def nodes(self) -> list[subprocess.Popen[bytes]]:
        """The head and the workers."""
        return [self._head, *self.workers]

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of the cluster whose title begins so."""
        found = []
        for node in self.nodes:
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
        for node in reversed(self.nodes):
            kill_all(node)

    def _add(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        self._count += 1
        log = self._folder / f"node-{self._count}.log"
        (port,) = free_ports(1)
        node = start(self.env, log, *args, f"--dashboard-agent-listen-port={port}")
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
