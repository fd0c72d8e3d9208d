"""How much faster folds get with more GPUs: the stage of eight folds on one, two, four and eight pretended GPUs.

A fold waits rather than computes (a `fit` of one's own), so that what is measured is ours: asking for actors, starting them, handing out
folds, collecting votes; and not this machine's cores. Wanted is T1 / (8 T8) of at least 0.95. What a real fold takes on top, which a
machine of few cores would have to do eight times at once, is measured alone: its actor's start with PyTorch, and its first training.

    python benchmarks/strong_scaling.py --json benchmarks/results/strong_scaling_cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import conditions, write

import unseen_ray as ur

ROOT = str(Path(__file__).resolve().parent.parent)
SOURCE = {"use": "digits", "limit": 400}
REAL = {"model": "small_cnn", "recipe": {"epochs": 2, "min_steps": 0}, "scoring": {"share": 1}}
WANTED = 0.95


def on_gpus(gpus: int, fields: dict[str, Any]) -> dict[str, Any]:
    """One run on a private cluster of one node with so many pretended GPUs, and CPUs enough."""
    import ray

    times: dict[str, list[float]] = {"begun": [], "done": []}

    def observe(event: Any) -> None:
        if getattr(event, "doing", "") == "train" and not event.done:
            times["begun"].append(time.monotonic())
        if hasattr(event, "files"):
            times["done"].append(time.monotonic())

    ray.init(num_cpus=gpus + 1, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as out:
            asked = time.monotonic()
            config = ur.PruneConfig(source=SOURCE, keep=0.5, log_to="none", out=out, **fields)
            manifest = ur.prune(config, on_event=observe).manifest
            ended = time.monotonic()
    finally:
        ray.shutdown()
    (stage,) = manifest.stages
    return {
        "gpus": gpus,
        "run_s": round(ended - asked, 3),
        "stage_s": round(stage["seconds"], 3),
        "until_first_fold_s": round(min(times["begun"]) - asked, 3),
        "until_last_fold_s": round(max(times["begun"]) - asked, 3) if gpus >= fields["folds"] else None,
        "seconds_of_folds": [task["seconds"] for task in stage["tasks"]],
    }


def apart(gpus: int, fields: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own: nothing is warm."""
    line = [sys.executable, __file__, "--one", str(gpus), json.dumps(fields)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def start_of(kind: str) -> float:
    """Seconds from asking for a fold actor to its answer, with what training needs loaded and the data opened."""
    import ray

    from unseen_ray.execution.ray.actors import FoldWorker
    from unseen_ray.runs.manifest import Manifest, write_manifest
    from unseen_ray.runs.manifest_entries import SourceEntry
    from unseen_ray.storage.filesystem import Folder

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as out:
            nothing = SourceEntry(fingerprint="", num_samples=0, num_classes=0, class_names=[])
            write_manifest(Folder(out), Manifest(created="", config={}, asked={}, source=nothing))
            seconds = []
            for _ in range(3):
                began = time.monotonic()
                actor = ray.remote(FoldWorker).options(num_cpus=1).remote()
                ray.get(actor.describe.remote("auto", out, kind == "own fit"))
                seconds.append(time.monotonic() - began)
                ray.kill(actor)
            return statistics.median(seconds)
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 4, 2, 1], help="in the order of the measurement")
    parser.add_argument("--seconds", type=float, default=30.0, help="of one fold")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    waits = {"fit": {"use": "tests.plugs:slow_centroids", "seconds": args.seconds}, "folds": args.folds}
    rows = []
    for gpus in args.gpus:
        rows.append(apart(gpus, waits))
        print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: row["gpus"])
    for row in rows:
        row["efficiency"] = round(rows[0]["stage_s"] * rows[0]["gpus"] / (row["gpus"] * row["stage_s"]), 4)
    starts = {kind: round(apart_start(kind), 3) for kind in ("own fit", "torch")}
    first_s, second_s = apart(1, {**REAL, "folds": 2})["seconds_of_folds"]
    report = {
        "folds": rows,
        "wanted": WANTED,
        "a real fold on top": {
            "actor_start_s": starts["torch"],
            "actor_start_without_torch_s": starts["own fit"],
            "first_training_more_s": round(first_s - second_s, 3),
        },
        "conditions": conditions(torch.device("cpu"), args),
    }
    print(json.dumps(report["a real fold on top"]))
    last = rows[-1]
    print(f"efficiency of the stage on {last['gpus']} GPUs: {last['efficiency']:.3f} (wanted: {WANTED})")
    write(args.json, report)


def apart_start(kind: str) -> float:
    line = [sys.executable, __file__, "--start", kind]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(on_gpus(int(sys.argv[2]), json.loads(sys.argv[3]))))
    elif sys.argv[1:2] == ["--start"]:
        print(start_of(sys.argv[2]))
    else:
        main()
