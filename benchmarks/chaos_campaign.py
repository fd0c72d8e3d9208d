"""A campaign: faults against as many runs as they take, some of them side by side."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from chaos_accounts import Fault, charge, epochs_of
from chaos_cluster import Cluster
from chaos_faults import OF_DISKS, Faults, mount, unmount
from chaos_run import Run

from tests.s3 import BUCKET, S3Server
from unseen_ray.runs.layout import CORESET, MANIFEST, MANIFEST_COPY

FIELDS: dict[str, Any] = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.5,
    "folds": 3,
    "schedule": [0.3, 0.5],
    # It sleeps most of an epoch: many runs share a core, and a checkpoint after each epoch costs no more than 2 % of its time.
    "model": {"use": "tests.plugs:dozing", "seconds": 0.2},
    "recipe": {"epochs": 5, "batch_size": 16, "min_steps": 0},
    "scoring": {"share": 1},
    "log_to": "none",
}
PATIENCE_S = 240.0
MOST_STARTS = 40  # of the same line without a fault, all of which end at once
IDLE_RUNS = 6


@dataclass(frozen=True)
class Setting:
    """What the campaigns share.

    Attributes:
        folder: for the runs' disks and logs.
        seed: of the faults and their pauses.
        kinds: of faults that are wanted and possible.
        skipped: kinds that are not possible here, and why.
        env: of the drivers.
        side_by_side: how many runs at a time, where they are in one process each.
        wanted: ids of an undisturbed run.
        epochs, epoch_s: of it, and the seconds of one.
    """

    folder: Path
    seed: int
    kinds: frozenset[str]
    skipped: dict[str, str]
    env: dict[str, str]
    side_by_side: int
    wanted: list[int]
    epochs: int
    epoch_s: float


@dataclass
class Campaign:
    """A number of faults, against as many runs as that takes.

    Args:
        setting: shared with other campaigns.
        number: of the campaign.
        left: faults to come.
        servers: of S3, one for each of the runs that go on side by side.
        cluster: of Ray, for runs on it.
    """

    setting: Setting
    number: int
    left: int
    servers: list[S3Server]
    cluster: Cluster | None = None
    runs: int = 0
    starts: int = 0
    faults: list[Fault] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self) -> dict[str, Any]:
        """Do it; what came."""
        began = time.monotonic()
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(self._work, self.servers))
        return {
            "runs": self.runs,
            "driver_starts": self.starts,
            "seconds": round(time.monotonic() - began),
            "epochs_of_a_run": self.setting.epochs,
            "epoch_s": round(self.setting.epoch_s, 3),
            "skipped": self.setting.skipped,
            "failures": self.failures,
            "messages": sorted(self.messages),
            "each": [asdict(fault) for fault in self.faults],
        }

    def _work(self, server: S3Server) -> None:
        """One run after the other, as long as faults are to come."""
        rng = random.Random(f"{self.setting.seed} {self.number} {self.servers.index(server)}")
        faults = Faults(server, rng, self.cluster, self.setting.kinds)
        idle = 0
        while self.left > 0:
            with self._lock:
                self.runs += 1
                number = self.runs
            with self._run(number, server) as run:
                struck = self._attack(run, faults)
                self._account(run, struck)
            idle = 0 if struck else idle + 1
            if idle == IDLE_RUNS and self.left > 0:
                raise SystemExit(f"{idle} runs went by, and none of {', '.join(faults.kinds)} struck.")

    @contextmanager
    def _run(self, number: int, server: S3Server) -> Iterator[Run]:
        """A run with a disk of its own, or on S3."""
        folder = self.setting.folder / f"{self.number}-{number}"
        folder.mkdir()
        on_s3 = number % 2 == 0
        has_disk = not on_s3 and not self.setting.skipped.keys() & OF_DISKS
        out = f"s3://{BUCKET}/{self.number}-{number}" if on_s3 else str(folder / "disk" / "run")
        env = {**self.setting.env, **server.environment, "CHAOS_CLOCK": str(folder / "clock")}
        run = Run(number, self._fields(out), folder, env, program=self.cluster is not None)
        if has_disk:
            mount(folder / "disk")
        try:
            yield run
        finally:
            run.close()
            if has_disk:
                unmount(folder / "disk")

    def _fields(self, out: str) -> dict[str, Any]:
        where = {"address": self.cluster.address} if self.cluster else {"executor": "local"}
        return {**FIELDS, **where, "out": out}

    def _attack(self, run: Run, faults: Faults) -> list[Fault]:
        """Strike a run until it is done."""
        found: list[Fault] = []
        run.start()
        while self._goes_on(run, found[-1].at_s if found else 0.0, hasty=faults.rng.random() < 0.3):
            time.sleep(faults.rng.uniform(0, 1.5))
            if run.driver.poll() is not None or not self._take():
                continue
            at, kind = time.monotonic(), faults.strike(run)
            if kind is None:
                self._give_back()
                continue
            found.append(Fault(kind, run.number, "S3" if run.on_s3 else "local disk", at, file=faults.damaged))
        return found

    def _goes_on(self, run: Run, since: float, *, hasty: bool) -> bool:
        """Wait until the run has got on since then, or has just been started if `hasty`; whether it is not done yet."""
        end, before = time.monotonic() + PATIENCE_S, len(run.drivers)
        while run.keep_going():
            if len(run.drivers) > before + MOST_STARTS:
                words = [driver.words()[-1000:] for driver in run.drivers[-4:-1]]
                run.failures.append(f"goes no further, its holder is {run.holder()}:\n" + "\n".join(words))
                run.given_up = True
                return False
            if self.left > 0 and (hasty or run.got_on_at(since)):
                return True
            if time.monotonic() > max(end, run.began + PATIENCE_S):
                run.driver.signal(signal.SIGUSR1)
                time.sleep(1)
                run.failures.append(f"hangs:\n{run.driver.words()[-4000:]}")
                run.driver.signal(signal.SIGKILL)
                run.driver.wait(10)
                end = time.monotonic() + PATIENCE_S
            time.sleep(0.05)
        return False

    def _account(self, run: Run, faults: list[Fault]) -> None:
        charge(faults, run.events(), self.setting.epoch_s)
        if not run.given_up:
            run.failures += self._found_wrong(run)
        struck = ", ".join(fault.kind for fault in faults)
        with self._lock:
            self.faults += faults
            self.starts += len(run.drivers)
            self.messages |= set(run.messages)
            self.failures += [f"run {run.number} after {struck} {failure}" for failure in run.failures]
            starts = f"campaign {self.number}, run {run.number}, {len(run.drivers)} starts"
            print(f"{starts}: {struck}", *run.failures, sep="\n", flush=True)

    def _found_wrong(self, run: Run) -> Iterator[str]:
        """What a finished run should not have kept, or left behind."""
        ids = ids_of(run)
        if ids != self.setting.wanted:
            yield f"other ids: {ids}"
        strangers = set(run.files()) - set(json.loads(run.read(MANIFEST) or b"{}").get("files", {}))
        if left := strangers - {MANIFEST, MANIFEST_COPY}:
            yield f"left behind: {sorted(left)}"

    def _take(self) -> bool:
        with self._lock:
            is_left = self.left > 0
            self.left -= is_left
            return is_left

    def _give_back(self) -> None:
        with self._lock:
            self.left += 1


def ids_of(run: Run) -> list[int]:
    """What a finished run keeps; nothing where it has no coreset."""
    data = run.read(CORESET)
    return pq.read_table(pa.BufferReader(data))["id"].to_pylist() if data else []


def undisturbed(folder: Path, env: dict[str, str]) -> tuple[list[int], int, float]:
    """What a run does that nothing happens to: its ids, its epochs and the seconds of one."""
    folder.mkdir()
    run = Run(0, {**FIELDS, "out": str(folder / "run"), "executor": "local"}, folder, env)
    run.start()
    if run.driver.wait(600):
        raise SystemExit(f"the undisturbed run failed:\n{run.driver.words()[-3000:]}")
    return ids_of(run), *epochs_of(run.events())
