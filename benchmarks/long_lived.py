"""What a process that prunes again and again keeps: threads, descriptors, memory, shared memory and temporary files after each run.

    python benchmarks/long_lived.py --runs 50 --json benchmarks/results/long_lived.json

`local` trains in this process; `ray` starts and ends a private Ray cluster for each run; `session` prunes within one session that
`ray.init` opened before. /dev/shm is the machine's: measure on one that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import unseen_ray as ur

KINDS = ("local", "ray", "session")


def held(folder: Path) -> dict[str, int]:
    """What this process holds, bytes of /dev/shm in use, and the files and folders below `folder`."""
    gc.collect()
    shm = os.statvfs("/dev/shm")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # of the listing itself
        "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20),
        "shm_mb": round((shm.f_blocks - shm.f_bfree) * shm.f_frsize / 2**20),
        "temporary": sum(1 for _ in folder.rglob("*")),
    }


def prune_once(kind: str, out: str) -> None:
    """One run on the digits, as short as a run with two stages can be."""
    executor: Any = "local" if kind == "local" else "ray"
    config = ur.PruneConfig(source="digits", keep=0.5, folds=2, schedule=[0.25, 0.5], recipe={"epochs": 1}, out=out)
    ur.prune(config, executor=executor)


def measure(kind: str, runs: int, folder: Path) -> list[dict[str, float]]:
    """What is held after each run of one kind."""
    rows = []
    for _ in range(runs):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            prune_once(kind, out)
        rows.append({**held(folder), "seconds": round(time.perf_counter() - began, 1)})
        print(kind, len(rows), rows[-1], flush=True)
    return rows


def growth(rows: list[dict[str, float]]) -> dict[str, float]:
    """What each run adds, from the second half of the runs: the first ones load libraries."""
    middle = len(rows) // 2
    later = max(len(rows) - 1 - middle, 1)
    return {name: round((rows[-1][name] - rows[middle][name]) / later, 2) for name in rows[0] if name != "seconds"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=50, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path, required=True, help="file whose entries of these kinds are replaced")
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    report |= {"cpus": os.cpu_count(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory(prefix="ll") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        for kind in args.kinds:
            if kind == "session":
                import ray

                ray.init(include_dashboard=False, log_to_driver=False)
            rows = measure(kind, args.runs, Path(folder))
            report[kind] = {"runs": len(rows), "first": rows[0], "last": rows[-1], "added_a_run": growth(rows)}
            print(kind, "added a run:", report[kind]["added_a_run"])
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
