"""How much of a run is neither start-up nor training nor scoring: the share that is ours to keep small.

Prunes a source on a private Ray cluster with two folds side by side, and compares the wall time of each stage with the time that
its longest chain of fits took on their workers.

    python benchmarks/overhead.py --runs 3 --json benchmarks/results/overhead.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import unseen_ray as ur


def one_run(source: str, workers: int, out: str) -> dict[str, float]:
    """Seconds of one run: whole, in stages, and in fits as far as they had to follow each other."""
    config = ur.PruneConfig(
        source=source,
        keep=0.7,
        folds=4,
        schedule=[0.5, 0.6, 0.7],
        recipe={"epochs": 150},
        scoring={"share": 1},
        out=out,
    )
    manifest = ur.prune(config).manifest
    stages = sum(stage["seconds"] for stage in manifest.stages)
    fits = sum(busiest([task["seconds"] for task in stage["tasks"]], workers) for stage in manifest.stages)
    return {"run_s": manifest.cost["seconds"], "stages_s": stages, "fits_s": fits, "overhead": (stages - fits) / stages}


def busiest(seconds: list[float], workers: int) -> float:
    """When the last task ends, if each goes to the worker that is free first."""
    free = [0.0] * workers
    for task in seconds:
        place = free.index(min(free))
        free[place] += task
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", default="digits")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    workers = os.cpu_count() or 1
    runs = []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_run(args.source, workers, folder))
            print({name: round(value, 4) for name, value in runs[-1].items()})
    medians = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    report: dict[str, Any] = {"medians": medians, "runs": runs, "cpus": workers, "machine": platform.machine()}
    print(f"overhead {medians['overhead']:.1%} of {medians['stages_s']:.1f} s in stages (medians of {len(runs)} runs)")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
