"""Seeded faults against real runs on a real Ray cluster of three nodes; every run's ids must be the undisturbed one's.

The seed orders the faults and their pauses; what each of them meets depends on the clock.

Processes are killed and stopped by signals, nodes are taken away and replaced, files of the run are cut in half while it works, and
an S3 server on loopback fails and dawdles. Every second run keeps its files there, the others on local disk. Needs Linux.

python benchmarks/chaos.py --faults 100 --seed 0 --json benchmarks/results/chaos_cpu.json
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from chaos_accounts import Fault, charge, epochs_of, kinds_of, lines_of, shortfalls_of, totals_of
from chaos_cluster import Cluster, Run, descendants
from PIL import Image
from sklearn.datasets import load_digits
from timing import conditions, write

import unseen_ray as ur
from tests.distributed.nodes import client_environment
from tests.s3 import BUCKET, S3Server
from unseen_ray.storage.filesystem import Folder

COPIES = 3
FIELDS: dict[str, Any] = {
    "keep": 0.5,
    "folds": 3,
    "schedule": [0.3, 0.4, 0.5],
    "model": {"use": "small_cnn", "width": 96},
    "recipe": {
        "epochs": 6,
        "batch_size": 2,
        "min_steps": 0,
    },  # epochs of some seconds: a checkpoint after each must cost no more than 2 % of it
    "log_to": "none",
}
PATIENCE_S = 240.0
STORAGE_FAULT_S = 3.0
IDLE_RUNS = 4
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Chaos:
    """The faults; each takes the run that it is aimed at."""

    def __init__(self, cluster: Cluster, server: S3Server, rng: random.Random, only: Sequence[str]) -> None:
        self.cluster, self.server, self.rng = cluster, server, rng
        self.cut = ""
        kinds: dict[str, Callable[[Run], bool]] = {
            "fold actor killed": lambda run: self._kill("ray::FoldWorker"),
            "aggregator killed": lambda run: self._kill("ray::Aggregator"),
            "raylet killed": lambda run: self._lose(gently=False),
            "node gone": lambda run: self._lose(gently=True),
            "driver killed": lambda run: self._signal(run, signal.SIGKILL),
            "driver told to end": lambda run: self._signal(run, signal.SIGTERM),
            "fold actor frozen for 2 s": lambda run: self._freeze(),
            "file cut in half": self._cut,
            "storage fails": lambda run: self._storage(run, lambda method, path: 503),
            "storage slow": lambda run: self._storage(run, lambda method, path: 0.5),
        }
        unknown = set(only) - kinds.keys()
        if unknown:
            raise SystemExit(
                f"--only {', '.join(sorted(unknown))}: there is no such fault. Allowed: {', '.join(kinds)}."
            )
        self.kinds = {kind: strike for kind, strike in kinds.items() if kind in (only or kinds)}

    def strike(self, run: Run) -> str | None:
        """Do something that is possible now; what it was, or None where nothing is. `cut` is the file that it damaged."""
        self.cut = ""
        return next(
            (kind for kind in self.rng.sample(list(self.kinds), len(self.kinds)) if self.kinds[kind](run)), None
        )

    def _kill(self, title: str) -> bool:
        found = self.cluster.processes(title)
        if found:
            self.rng.choice(found).kill()
        return bool(found)

    def _lose(self, *, gently: bool) -> bool:
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

    def _signal(self, run: Run, number: signal.Signals) -> bool:
        alive = run.driver.poll() is None
        if alive:
            run.driver.send_signal(number)
            run.driver.wait(30)
        return alive

    def _freeze(self) -> bool:
        found = self.cluster.processes("ray::FoldWorker")
        if found:
            victim = self.rng.choice(found)
            victim.suspend()
            time.sleep(2)
            victim.resume()
        return bool(found)

    def _cut(self, run: Run) -> bool:
        folder = Folder(run.out)
        names = [name for name in folder.files() if not name.endswith(".tmp")]
        if not names:
            return False
        name = self.rng.choice(names)
        data = folder.read(name)
        if data:
            folder.write(name, data[: len(data) // 2])
            self.cut = name
        return bool(data)

    def _storage(self, run: Run, fault: Callable[[str, str], int | float | None]) -> bool:
        if not run.on_s3:
            return False
        self.server.fault = fault
        time.sleep(STORAGE_FAULT_S)
        self.server.fault = None
        return True


def attack(run: Run, chaos: Chaos, left: int) -> list[Fault]:
    """Strike a run until it is done, or `left` faults are."""
    faults: list[Fault] = []
    run.start()
    while True:
        since = faults[-1].at_s if faults else 0.0
        if not get_on(run, since):
            return faults
        if len(faults) == left:
            while run.keep_going():
                time.sleep(0.2)
            return faults
        time.sleep(chaos.rng.uniform(0, 3))
        if run.driver.poll() is None:
            at = time.time()
            storage = "S3" if run.on_s3 else "local disk"
            kind = chaos.strike(run)
            if kind is not None:
                faults.append(Fault(kind, run.number, storage, at, file=chaos.cut))
                print(f"run {run.number}, {storage}: {kind} {chaos.cut}".rstrip(), flush=True)


def get_on(run: Run, since: float) -> bool:
    """Wait until the run has got on since then; whether it is not done yet. SystemExit if it hangs."""
    end = time.monotonic() + PATIENCE_S
    while run.keep_going():
        if run.got_on_at(since):
            return True
        if time.monotonic() > end:
            raise SystemExit(f"run {run.number} hangs; its driver's last words:\n{run.log.read_text()[-3000:]}")
        time.sleep(0.1)
    return False


def noisy_digits(path: Path) -> Path:
    """The bundled digits, each some times over with noise: enough for epochs of some seconds."""
    rng = np.random.default_rng(0)
    bunch = load_digits()
    pixels = np.repeat(bunch.images, COPIES, axis=0) * 15 + rng.integers(0, 16, (COPIES * len(bunch.images), 8, 8))
    images = []
    for grey in pixels.astype(np.uint8):
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": images, "label": np.repeat(bunch.target, COPIES)}), path)
    return path


def undisturbed(cluster: Cluster, folder: Path, env: dict[str, str], fields: dict[str, Any]) -> Run:
    """A run that nothing happens to."""
    run = Run(0, {**fields, "out": str(folder / "undisturbed"), "address": cluster.address}, folder, env)
    run.start()
    if run.driver.wait(600):
        raise SystemExit(f"the undisturbed run failed:\n{run.log.read_text()[-3000:]}")
    return run


def campaign(count: int, seed: int, only: Sequence[str], folder: Path, server: S3Server) -> dict[str, Any]:
    """Runs until there were `count` faults; SystemExit if one of them picks other ids."""
    env = client_environment(folder) | HEALTH
    os.environ.update({name: env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")})
    fields = {**FIELDS, "source": str(noisy_digits(folder / "digits.parquet"))}
    cluster = Cluster(env, folder)
    try:
        chaos = Chaos(cluster, server, random.Random(seed), only)
        first = undisturbed(cluster, made(folder / "0"), env, fields)
        wanted = ur.load(first.out).coreset.ids.tolist()
        epochs, epoch_s = epochs_of(first.events())
        faults: list[Fault] = []
        runs = starts = done_again = 0
        while len(faults) < count:
            if runs >= IDLE_RUNS and not faults:
                raise SystemExit(f"{runs} runs went by, and none of {', '.join(chaos.kinds)} could be done to them.")
            runs += 1
            home = made(folder / str(runs))
            out = f"s3://{BUCKET}/run-{runs}" if runs % 2 else str(home / "run")
            run = Run(runs, {**fields, "out": out, "address": cluster.address}, home, env)
            try:
                struck = attack(run, chaos, count - len(faults))
            finally:
                run.driver.kill()
            done_again += charge(struck, run.events(), epoch_s)
            faults += struck
            starts += run.starts
            if ur.load(out).coreset.ids.tolist() != wanted:
                raise SystemExit(f"run {runs} picked other ids after {[fault.kind for fault in struck]}")
            print(f"run {runs}: the same {len(wanted)} ids after {len(struck)} faults, {run.starts} starts", flush=True)
    finally:
        cluster.close()
    return {
        "faults": len(faults),
        "runs": runs,
        "driver_starts": starts,
        "epochs_of_a_run": epochs,
        "epoch_s": round(epoch_s, 3),
        "finished_tasks_done_again": done_again,
        **totals_of(faults),
        "redone_share": sum(fault.redone for fault in faults) / (epochs * runs),
        "kinds": kinds_of(faults),
        "each": [asdict(fault) for fault in faults],
    }


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="FAULT", help="such as 'driver killed' 'node gone'")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = S3Server()
    os.environ.update(server.environment)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        with tempfile.TemporaryDirectory(prefix="ur") as folder:
            report = campaign(args.faults, args.seed, args.only, Path(folder), server)
    finally:
        server.close()
    for line in lines_of(report):
        print(line)
    write(args.json, {"conditions": conditions(torch.device("cpu"), args), **report})
    if short := shortfalls_of(report):
        raise SystemExit(f"falls short: {'; '.join(short)}")


if __name__ == "__main__":
    main()
