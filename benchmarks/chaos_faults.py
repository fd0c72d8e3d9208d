"""The faults of the chaos harness, each of which takes the run that it is aimed at."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Literal

import psutil
from chaos_cluster import Cluster, descendants
from chaos_run import Run

from tests.s3 import BUCKET, S3Server
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY
from unseen_ray.storage.fence import LOCK

LONGER_THAN_THE_LOCK_S = 62.0
DISK_BYTES = 8 << 20
SELDOM = 1 / 9
CLOCK = "clock jumps"
OF_DISKS = ("disk full", "disk read-only")


class Weather:
    """What an S3 server answers, for a while, instead of the truth.

    Attributes:
        status: of every answer, if any.
        slow_s: seconds before each answer.
        hidden_s: for how long a new object is not found, and listings stay what they were.
    """

    def __init__(self) -> None:
        self.clear()
        self._new: dict[str, float] = {}

    def clear(self) -> None:
        self.status, self.slow_s, self.hidden_s = 0, 0.0, 0.0

    def __call__(self, method: str, path: str) -> int | float | Literal["old"] | None:
        now = time.monotonic()
        if method in ("PUT", "POST"):
            self._new.setdefault(path, now)
        elif method == "DELETE":
            self._new.pop(path, None)
        elif now - self._new.get(path, 0) < self.hidden_s:
            return 404
        if self.hidden_s and path.strip("/") == BUCKET:
            return "old"
        return self.status or self.slow_s or None


class Faults:
    """The kinds of faults that are possible here.

    Args:
        server: holds the files of the runs on S3.
        rng: orders the faults and their pauses.
        cluster: of Ray, if the runs use one.
        kinds: names of those that are wanted and possible.

    Attributes:
        kinds: by name, what does it to a run; False where that is not possible now.
        damaged: the file that the last fault damaged.
    """

    def __init__(self, server: S3Server, rng: random.Random, cluster: Cluster | None, kinds: Container[str]) -> None:
        self.cluster, self.rng, self.damaged = cluster, rng, ""
        self.weather = Weather()
        server.fault = self.weather
        every = EVERYWHERE | (ON_RAY if cluster else IN_ONE_PROCESS)
        self.kinds = {kind: strike for kind, strike in every.items() if kind in kinds}

    def strike(self, run: Run) -> str | None:
        """Do something that is possible now; what it was, or None where nothing is."""
        self.damaged = ""
        for kind in self.rng.sample(list(self.kinds), len(self.kinds)):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):  # it has just ended
                if self.kinds[kind](self, run):
                    return kind
        return None

    def end(self, run: Run, number: signal.Signals) -> bool:
        """Send the driver a signal that ends it."""
        alive = run.driver.poll() is None
        run.driver.signal(number)
        if run.driver.wait(30) is None:
            run.driver.signal(signal.SIGUSR1)
            time.sleep(1)
            run.failures.append(f"did not end within 30 s of {number.name}:\n{run.driver.words()[-4000:]}")
            run.driver.signal(signal.SIGKILL)
        return alive

    def stop(self, run: Run) -> bool:
        """Stop the driver for a while."""
        run.driver.signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 3))
        run.driver.signal(signal.SIGCONT)
        return True

    def depose(self, run: Run, *, waiting: bool) -> bool:
        """Stop the driver until another one has taken over, and wake it while that one works.

        Args:
            run: with a driver that holds the lock.
            waiting: whether for longer than the lock's minute; else the lock is made to name a process that has ended.
        """
        run.driver.signal(signal.SIGSTOP)
        holder = run.holder()
        if run.driver.poll() is not None or holder is None or holder["pid"] != run.driver.pid:
            run.driver.signal(signal.SIGCONT)
            return False
        if waiting:
            time.sleep(LONGER_THAN_THE_LOCK_S)
        else:
            run.damage(LOCK, json.dumps({**holder, "started": "0"}).encode())
        stopped = run.depose()
        end = time.monotonic() + 60
        while run.driver.poll() is None and time.monotonic() < end:
            found = run.holder()
            if found is not None and found["token"] != holder["token"]:
                break
            time.sleep(0.05)
        time.sleep(self.rng.uniform(0, 2))
        stopped.signal(signal.SIGCONT)
        code = stopped.wait(60)
        if code not in (0, 4):  # 0 where nothing was left to do but to remove its lock
            run.failures.append(f"a driver that had lost its run ended with {code}:\n{stopped.words()[-4000:]}")
            stopped.signal(signal.SIGKILL)
        else:
            run.look_at(stopped, code)
        return True

    def cut(self, run: Run) -> bool:
        """Cut a file of the run in half, but never the manifest and its copy both: one of the two must be whole."""
        names = [name for name in run.files() if not name.endswith(".tmp")]
        if run.read(MANIFEST) != run.read(MANIFEST_COPY):
            names = [name for name in names if name not in (MANIFEST, MANIFEST_COPY)]
        name = self.rng.choice(names) if names else ""
        data = run.read(name) if names else None
        if data:
            run.damage(name, data[: len(data) // 2])
            self.damaged = name
        return bool(data)

    def storage(self, run: Run, **weather: float) -> bool:
        """Change the S3 server's weather for a while."""
        if run.on_s3:
            for name, value in weather.items():
                setattr(self.weather, name, value)
            self._meanwhile(run, 1, 4)
            self.weather.clear()
        return run.on_s3

    def fill(self, run: Run) -> bool:
        """Fill the disk up to some kilobytes."""
        if run.on_s3:
            return False
        filler = run.folder / "disk" / "filler"
        room = shutil.disk_usage(filler.parent).free - self.rng.choice([0, 0, 4096, 16384])
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            stream.write(bytes(max(room, 0)))
        self._meanwhile(run, 0.5, 3)
        filler.unlink()
        return True

    def write_protect(self, run: Run) -> bool:
        """Make the disk read-only."""
        disk = run.folder / "disk"
        if run.on_s3 or not any(remount(disk, "ro") for _ in range(50)):  # while a file is being written, it is refused
            return False
        self._meanwhile(run, 0.5, 3)
        remount(disk, "rw")
        return True

    def move(self, run: Run) -> bool:
        """Rename the run's folder, and name it back."""
        out = Path(run.out)
        holder = None if run.on_s3 else run.holder()
        if holder is None or holder["pid"] != run.driver.pid:
            return False
        away = out.with_name("elsewhere")
        out.rename(away)
        time.sleep(self.rng.uniform(0.1, 5))
        if out.exists():
            run.failures.append(f"{sorted(os.listdir(out))} were written where the folder had been")
            shutil.rmtree(out)
        away.rename(out)
        return True

    def limit(self, run: Run, which: int) -> bool:
        """Let the driver open few files more, or write small ones alone, for the rest of its life."""
        few = len(os.listdir(f"/proc/{run.driver.pid}/fd")) + self.rng.randrange(4)
        value = few if which == resource.RLIMIT_NOFILE else self.rng.choice([0, 1000, 6000, 12_000])
        _, most = resource.prlimit(run.driver.pid, which)
        resource.prlimit(run.driver.pid, which, (value, most))
        return True

    def shift(self, run: Run) -> bool:
        """Put the driver's clock forward or back."""
        Path(run.env["CHAOS_CLOCK"]).write_text(self.rng.choice(["90", "-90", "3600", "-3600", "172800", "-172800"]))
        return True

    def kill(self, title: str) -> bool:
        """Kill a process of the cluster."""
        assert self.cluster is not None
        found = self.cluster.processes(title)
        if found:
            self.rng.choice(found).kill()
        return bool(found)

    def freeze(self, seconds: float) -> bool:
        """Stop a fold's actor for a while."""
        assert self.cluster is not None
        found = self.cluster.processes("ray::FoldWorker")
        if found:
            victim = self.rng.choice(found)
            victim.suspend()
            time.sleep(seconds)
            victim.resume()
        return bool(found)

    def lose(self, *, gently: bool) -> bool:
        """Take a node away, and have another one come."""
        assert self.cluster is not None
        node = self.rng.choice(self.cluster.workers)
        if gently:
            os.killpg(node.pid, signal.SIGTERM)  # as a cloud does before it takes a machine away
            time.sleep(1)
        else:
            for process in descendants(node.pid):
                if process.name() == "raylet":
                    process.kill()
        self.cluster.replace(node)
        return True

    def seldom(self) -> bool:
        """Whether it is the turn of a fault that takes a minute and a half."""
        return self.rng.random() < SELDOM

    def _meanwhile(self, run: Run, least_s: float, most_s: float) -> None:
        """Let time pass, in which a driver that fails may be started again, once."""
        end = time.monotonic() + self.rng.uniform(least_s, most_s)
        again = self.rng.random() < 0.5
        while time.monotonic() < end:
            if again and run.driver.poll() not in (None, 0):
                run.keep_going()
                again = False
            time.sleep(0.05)


def mount(disk: Path) -> bool:
    """Mount a small disk in memory on a new folder; whether that is allowed."""
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


def remount(disk: Path, how: Literal["ro", "rw"]) -> bool:
    """Make a disk read-only, or writable again; whether that was possible."""
    line = ["mount", "-o", f"remount,{how}", str(disk)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


def unmount(disk: Path) -> None:
    subprocess.run(["umount", str(disk)], capture_output=True, check=True)


Strike = Callable[[Faults, Run], bool]

EVERYWHERE: dict[str, Strike] = {
    "driver killed": lambda its, run: its.end(run, signal.SIGKILL),
    "driver told to end": lambda its, run: its.end(run, signal.SIGTERM),
    "driver stopped for 0 to 3 s": Faults.stop,
    "driver replaced while it is stopped": lambda its, run: its.depose(run, waiting=False),
    "driver stopped for more than a minute": lambda its, run: its.seldom() and its.depose(run, waiting=True),
    "file cut in half": Faults.cut,
    "storage fails": lambda its, run: its.storage(run, status=503),
    "storage slow": lambda its, run: its.storage(run, slow_s=0.5),
    "storage shows what is new later": lambda its, run: its.storage(run, hidden_s=its.rng.uniform(0.5, 5)),
    "disk full": Faults.fill,
    "disk read-only": Faults.write_protect,
    "folder renamed": Faults.move,
}
# Ray's processes are not ours to limit.
IN_ONE_PROCESS: dict[str, Strike] = {
    "few open files": lambda its, run: its.limit(run, resource.RLIMIT_NOFILE),
    "small files alone": lambda its, run: its.limit(run, resource.RLIMIT_FSIZE),
    CLOCK: Faults.shift,
}
ON_RAY: dict[str, Strike] = {
    "fold actor killed": lambda its, run: its.kill("ray::FoldWorker"),
    "aggregator killed": lambda its, run: its.kill("ray::Aggregator"),
    "raylet killed": lambda its, run: its.lose(gently=False),
    "node gone": lambda its, run: its.lose(gently=True),
    "fold actor stopped for 2 s": lambda its, run: its.freeze(2),
    "fold actor stopped for more than a minute": lambda its, run: its.seldom() and its.freeze(LONGER_THAN_THE_LOCK_S),
}
