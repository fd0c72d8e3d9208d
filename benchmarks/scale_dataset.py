"""What the driver holds while Ray's workers read the scores of a long run as a Ray Dataset, beside the table and one batch of it.

    python benchmarks/scale.py dataset --samples 17000000 --scratch /big/disk --json benchmarks/results/scale_dataset_cpu.json

The run is that of `scale.py run`. The table is counted, summed after a `map_batches`, and read batch by batch in the driver.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import watched
from scale_pruned import reported
from scale_run import run

import unseen_ray as ur

_BATCH = 2**16
_STEPS = "steps.json"


def _resident_gb() -> dict[str, float]:
    """What this process holds now, and has held at most."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return {name: int(rows[row].split()[0]) * 1024 / 1e9 for name, row in (("now", "VmRSS"), ("most", "VmHWM"))}


def consume(scratch: Path) -> None:
    """Read the Dataset in each way, and write down the driver's memory after each."""
    steps: dict[str, Any] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        started = time.monotonic()
        answer = do()
        steps[name] = {"seconds": time.monotonic() - started, "driver_gb": _resident_gb()}
        return answer

    result = ur.load(scratch / "run")
    dataset = timed("start Ray, open the Dataset", result.to_ray_dataset)
    rows = timed("count", dataset.count)
    doubled = dataset.map_batches(lambda table: table.select(["entropy"]), batch_size=_BATCH, batch_format="pyarrow")
    total = timed("map_batches, sum", lambda: doubled.sum("entropy"))
    sizes = timed(
        "iter_batches in the driver",
        lambda: [batch.nbytes for batch in dataset.iter_batches(batch_size=_BATCH, batch_format="pyarrow")],
    )
    report = {
        "rows": rows,
        "sum": total,
        "table_gb": sum(sizes) / 1e9,
        "batch_rows": _BATCH,
        "batch_gb": max(sizes) / 1e9,
    }
    (scratch / _STEPS).write_text(json.dumps({**report, "steps": steps}))


def add_to(subparsers: Any) -> None:
    """The subcommand `dataset` of scale.py."""
    parser = subparsers.add_parser("dataset", help="the scores of a long run as a Ray Dataset")
    parser.add_argument("--samples", type=int, default=17_000_000)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for some 2 GB, removed in the end")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def read(scratch: Path, samples: int) -> dict[str, Any]:
    """Make the run, read it in a process of its own, and say what that held."""
    run(scratch, samples)
    process = subprocess.Popen([sys.executable, __file__, str(scratch)], cwd=Path(__file__).parent)
    peaks = watched(process)
    if process.returncode:
        raise SystemExit(f"reading the Dataset ended with {process.returncode}")
    return {**json.loads((scratch / _STEPS).read_text()), "peak_gb": peaks}


def main(args: argparse.Namespace) -> None:
    """Read it, print what that held, and clean up."""
    reported(args, "scale-dataset", lambda scratch: read(scratch, args.samples))


if __name__ == "__main__":
    consume(Path(sys.argv[1]))
