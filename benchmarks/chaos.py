"""Seeded faults against real runs, in campaigns; every run's ids must be the undisturbed one's.

Drivers are killed, told to end, stopped, replaced by others while they are stopped, given a false clock and small limits; the run's disk
becomes full or read-only, its folder is renamed, its files are cut in half; an S3 server on loopback, where every second run keeps
its files, fails, dawdles, and shows new objects late. After each fault the same line is started again until the run is done. The last
campaigns are against a Ray cluster of three nodes on this machine, which loses workers and nodes as well.

The seed orders the faults and their pauses; what each of them meets depends on the clock. A campaign that is done stays in `--state`:
the same line goes on with the next one. Needs Linux; disks of their own need root, false clocks a C compiler.

python benchmarks/chaos.py --faults 1000 --state DISK/chaos --json benchmarks/results/chaos_cpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chaos_accounts import lines_of, report_of, shortfalls_of
from chaos_campaign import Campaign, Setting, undisturbed
from chaos_cluster import Cluster
from chaos_faults import CLOCK, EVERYWHERE, IN_ONE_PROCESS, OF_DISKS, ON_RAY, mount, unmount
from timing import conditions, write

from tests.distributed.nodes import client_environment
from tests.s3 import BUCKET, S3Server
from unseen_ray.storage.environment import STORAGE_WAIT_S

WAIT_S = "6"  # for which storage may fail, instead of two minutes
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def possible(folder: Path, only: list[str]) -> tuple[frozenset[str], dict[str, str]]:
    """The kinds that are wanted and possible here, and why others are not."""
    every = EVERYWHERE | IN_ONE_PROCESS | ON_RAY
    if unknown := set(only) - every.keys():
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: there is no such fault. Allowed: {', '.join(every)}.")
    skipped = {} if shutil.which("cc") else {CLOCK: "a false clock needs a C compiler"}
    if mount(folder / "disk"):
        unmount(folder / "disk")
    else:
        skipped |= dict.fromkeys(OF_DISKS, "mounting a disk needs root")
    for kind, why in skipped.items():
        print(f"skipped: {kind} ({why})", flush=True)
    return frozenset(only or every) - skipped.keys(), skipped


def setting_of(args: argparse.Namespace, folder: Path) -> Setting:
    """Look what is possible here, and what a run does that nothing happens to."""
    kinds, skipped = possible(folder, args.only)
    here = Path(__file__).resolve().parent
    env = client_environment(folder) | HEALTH | {STORAGE_WAIT_S: WAIT_S, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = f"{here.parent}{os.pathsep}{here}"
    os.environ.update(env)
    with wrong_clock(folder / "clock.so") if CLOCK in kinds else contextlib.nullcontext():
        calm = undisturbed(folder / "undisturbed", env)
    return Setting(folder, args.seed, kinds, skipped, env, args.side_by_side, *calm)


@contextlib.contextmanager
def wrong_clock(library: Path) -> Iterator[None]:
    """Have the processes that begin within, and what they fork later, ask `wrong_clock.c` for the time."""
    source = Path(__file__).with_name("wrong_clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


def one_campaign(number: int, faults: int, setting: Setting, *, on_ray: bool) -> dict[str, Any]:
    """What a campaign has shown."""
    with contextlib.ExitStack() as stack:
        servers = [S3Server() for _ in range(1 if on_ray else setting.side_by_side)]
        for server in servers:
            stack.callback(server.close)
        access = {name.lower(): value for name, value in servers[0].environment.items() if "ACCESS_KEY" in name}
        boto3.client("s3", endpoint_url=servers[0].url, **access).create_bucket(Bucket=BUCKET)
        cluster = None
        if on_ray:
            folder = setting.folder / f"cluster-{number}"
            folder.mkdir()
            cluster = Cluster({**setting.env, **servers[0].environment}, folder)
            stack.callback(cluster.close)
        return Campaign(setting, number, faults, servers, cluster).report()


def campaigns(args: argparse.Namespace, state: Path, folder: Path) -> list[dict[str, Any]]:
    """The reports of all campaigns; those that `state` holds are not done again."""
    count, setting, found = -(-args.faults // args.campaign), None, []
    for number in range(count):
        path = state / f"campaign-{number:03d}.json"
        faults, on_ray = min(args.campaign, args.faults - number * args.campaign), number >= count - args.on_ray
        asked = {"seed": args.seed, "faults": faults, "on_ray": on_ray, "only": args.only}
        if not path.exists():
            setting = setting or setting_of(args, folder)
            report = {**asked, **one_campaign(number, faults, setting, on_ray=on_ray)}
            aside = path.with_suffix(".tmp")
            aside.write_text(json.dumps(report, indent=1))
            aside.rename(path)
        report = json.loads(path.read_text())
        if other := {name: report[name] for name in asked if report[name] != asked[name]}:
            raise SystemExit(f"{path} was made with {other}, and this line asks for {asked}. Name another --state.")
        found.append(report)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--campaign", type=int, default=100, help="faults of a campaign")
    parser.add_argument("--on_ray", type=int, default=1, help="how many campaigns, the last ones, are on Ray")
    parser.add_argument(
        "--side_by_side", type=int, default=8, help="how many runs at a time, where they are not on Ray"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="FAULT", help="such as 'driver killed' 'node gone'")
    parser.add_argument(
        "--state", type=Path, default=None, help="folder of the campaigns that are done; the same line goes on"
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    with tempfile.TemporaryDirectory(prefix="ur") as scratch:
        state = args.state or Path(scratch) / "state"
        state.mkdir(parents=True, exist_ok=True)
        report = report_of(campaigns(args, state, Path(scratch)))
    for line in lines_of(report):
        print(line)
    write(args.json, {"conditions": conditions(torch.device("cpu"), args), **report})
    if short := shortfalls_of(report):
        raise SystemExit(f"falls short: {'; '.join(short)}")


if __name__ == "__main__":
    main()
