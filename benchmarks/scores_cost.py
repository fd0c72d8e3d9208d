"""What scores add to a run with entropy alone: seconds of its trainings and scorings, and peak memory, in both modes.

    python benchmarks/scores_cost.py --source data/cifar10-train.parquet --json benchmarks/results/scores_cost_cpu.json

Four runs a round, one after the other, each in a process of its own:
entropy alone; every score of one pass; entropy and one cheap score over epochs, which makes models score after every epoch; every score.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from timing import conditions, write

from unseen_ray.core import dynamics, scores

RUNS: dict[str, list[str]] = {
    "entropy": ["--also_score", "none"],
    "every score of one pass": [],
    "entropy, scored every epoch": ["--also_score", "[correctness]"],
    "every score": ["--score_every", "1"],
}
AGAINST = {"every score of one pass": "entropy", "every score": "entropy, scored every epoch"}
"""What a run's scores add to, the passes over the images being the same."""


def measured(name: str, mode: str, args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Seconds of the trainings and scorings of one run, and its peak memory."""
    line = [sys.executable, "-m", "unseen_ray", "prune", "--keep", "0.7", "--out", str(out), "--mode", mode]
    line += ["--source.use", "parquet", "--source.path", args.source, "--source.limit", str(args.limit)]
    line += [
        "--executor",
        "local",
        "--log_to",
        "none",
        "--recipe.epochs",
        str(args.epochs),
        "--recipe.min_steps",
        "0",
        "--json",
        *RUNS[name],
    ]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}:\n{said[-2000:]}")
    cost = json.loads((out / "manifest.json").read_text())["cost"]
    return {"seconds": cost["fit_seconds"], "peak_mb": usage.ru_maxrss / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="Parquet of images, such as CIFAR-10's")
    parser.add_argument("--limit", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {
        mode: {name: [] for name in RUNS} for mode in ("unseen", "fitting")
    }
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(args.rounds):
            for mode, its in rounds.items():
                for place, name in enumerate(RUNS):
                    its[name].append(measured(name, mode, args, Path(temporary, f"{number}-{mode}-{place}")))
                    print(number, mode, name, its[name][-1], flush=True)
    report = {
        "conditions": conditions(torch.device("cpu"), args),
        "samples": args.limit,
        "scores_of_one_pass": len(scores.__all__),
        "scores_over_epochs": len(dynamics.__all__),
        "rows": [row(mode, name, its) for mode, its in rounds.items() for name in RUNS],
    }
    for found in report["rows"]:
        print(found)
    write(args.json, report)


def row(mode: str, name: str, its: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of a run, and of its ratios to the one whose passes it shares, round by round."""
    other = its[AGAINST.get(name, "entropy")]
    ratios = {
        what: [one[what] / base[what] for one, base in zip(its[name], other, strict=True)]
        for what in ("seconds", "peak_mb")
    }
    alone = [one["seconds"] / base["seconds"] for one, base in zip(its[name], its["entropy"], strict=True)]
    return {
        "mode": mode,
        "run": name,
        "seconds": round(statistics.median(one["seconds"] for one in its[name]), 2),
        "peak_mb": round(statistics.median(one["peak_mb"] for one in its[name]), 1),
        "same_passes": AGAINST.get(name),
        "seconds_ratio": round(statistics.median(ratios["seconds"]), 3),
        "peak_ratio": round(statistics.median(ratios["peak_mb"]), 3),
        "seconds_to_entropy": round(statistics.median(alone), 3),
    }


if __name__ == "__main__":
    main()
