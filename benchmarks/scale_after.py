"""What commands on a long, finished run take and hold: exports, the report, other choices from its scores and votes.

    python benchmarks/scale.py run --samples 1e8 --scratch /big/disk --leave
    python benchmarks/scale.py after --scratch /big/disk --json benchmarks/results/scale_after_cpu.json

The run is the one that `scale.py run` left. Each command is a process of its own, and what it wrote is removed before the next.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from processes import watched
from timing import conditions, write

EXPORTS = {name: ["--to", f"kept{name}"] for name in (".npy", ".txt", ".csv", ".parquet", ".json")}
EXPORTS["weights"] = ["--to", "weights.npy", "--as", "weights"]
CHOICES = {
    "as before": [],
    "--guard unlikely_label": ["--guard", "unlikely_label"],
    "--combine rank_mean": ["--combine", "rank_mean"],
    "--policy class_balanced": ["--policy", "class_balanced"],
}


def lines(run: str, only: str) -> dict[str, list[str]]:
    """The commands by name, those alone whose name holds `only`."""
    found = {"--help": ["--help"]}
    found |= {f"export {name}": ["export", run, *more] for name, more in EXPORTS.items()}
    found["report"] = ["report", run, "--no_images", "--to", "report.html"]
    found |= {
        f"select {name}": ["select", run, "--keep", "0.5", *more, "--out", "chosen"] for name, more in CHOICES.items()
    }
    return {name: line for name, line in found.items() if only in name}


def ran(name: str, line: list[str], folder: Path) -> dict[str, Any]:
    """A command's seconds, the most that it held, and what it wrote."""
    folder.mkdir()
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "unseen_ray", *line], cwd=folder, stdout=subprocess.DEVNULL
    ) as process:
        peak = watched(process)["driver"]
    row = {"command": name, "seconds": round(time.perf_counter() - began, 1)}
    row |= {"ended_with": process.returncode} if process.returncode else {}
    row |= peak
    row["written_gb"] = round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9, 2)
    shutil.rmtree(folder)
    print(row, flush=True)
    return row


def add_to(subparsers: Any) -> None:
    """The subcommand `after` of scale.py."""
    parser = subparsers.add_parser("after", help="exports, the report and other choices from the run that `run` left")
    parser.add_argument("--scratch", type=Path, required=True, help="the folder of `scale.py run --leave`")
    parser.add_argument("--only", default="", help="run only commands whose names hold this")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Run all commands and print what they took."""
    run = args.scratch.resolve() / "scale-run/run"
    samples = json.loads((run / "manifest.json").read_text())["source"]["num_samples"]
    rows = [ran(name, line, run.parent / "after") for name, line in lines(str(run), args.only).items()]
    called = argparse.Namespace(samples=samples)
    write(args.json, {"conditions": conditions(torch.device("cpu"), called), "samples": samples, "rows": rows})
