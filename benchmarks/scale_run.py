"""A whole run of more samples than its driver may hold: folds, votes, ranges merged by several actors, growth on storage.

    python benchmarks/scale.py run --samples 120000000 --scratch /big/disk --json benchmarks/results/scale_run_cpu.json

What is real: Ray, the source's label column, folds, votes, merge, selection, two stages, storage. What is not: nothing is trained, no
image is read; a function answers for each sample by a hash of its id.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from processes import watched
from timing import conditions, write

from unseen_ray.core.policies.base import best_first
from unseen_ray.core.scores import entropy
from unseen_ray.core.seeds import tie_keys

CLASSES, FOLDS = 10, 3
KEEP, FIRST = 0.7, 0.35
_ANSWERED = 2**18
_FILE_ROWS = 2**24
_PIXEL = b"P6\n1 1\n255\n\0\0\0"


def answers(ids_B: np.ndarray, seed: int) -> np.ndarray:
    """(B, C) log-probabilities: one class by one hash of the id, its probability by another, the rest shared evenly."""
    hashed = tie_keys(ids_B, seed)
    top = 0.1 + 0.9 * (hashed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    rest = np.maximum((1 - top) / (CLASSES - 1), np.float32(1e-30))
    log_probs = np.repeat(np.log(rest)[:, None], CLASSES, axis=1)
    log_probs[np.arange(len(ids_B)), (hashed % np.uint64(CLASSES)).astype(np.intp)] = np.log(top)
    return log_probs


def hashed(task: Any, *, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A `fit` that trains nothing; each fold and stage answers otherwise."""
    seed = 1000 * task.stage + (0 if task.fold is None else task.fold + 1)
    for start in range(0, len(task.unseen_ids), _ANSWERED):
        ids = task.unseen_ids[start : start + _ANSWERED]
        yield ids, answers(ids, seed)


def build(folder: Path, count: int) -> Path:
    """Parquet files of `count` rows: one pixel, and a random label."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, count, _FILE_ROWS)):
        rows = min(_FILE_ROWS, count - start)
        image = pa.array([_PIXEL], pa.binary()).take(pa.array(np.zeros(rows, np.int8)))
        table = pa.table({"image": image, "label": rng.integers(0, CLASSES, rows).astype(np.uint8)})
        pq.write_table(table, folder / f"train-{number:03d}.parquet", row_group_size=2**18)
    return folder


def run(scratch: Path, count: int) -> dict[str, Any]:
    """Build the set, prune it, check the ids, and say what each stage and process took."""
    data = build(scratch / "set", count)
    out = scratch / "run"
    line = [
        sys.executable,
        "-m",
        "unseen_ray",
        "prune",
        "--policy",
        "top",
        "--source.use",
        "parquet",
        "--source.path",
        str(data),
    ]
    line += ["--keep", str(KEEP), "--schedule", f"[{FIRST},{KEEP}]", "--folds", str(FOLDS)]
    line += ["--fit", "scale_run:hashed", "--also_score", "none", "--pixel_memory_gb", "0", "--out", str(out)]
    started = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
    peaks = watched(process)
    total_s = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"prune ended with {process.returncode}")
    manifest = json.loads((out / "manifest.json").read_text())
    stages = [stage["seconds"] for stage in manifest["stages"]]
    return {
        "samples": count,
        "folds": FOLDS,
        "kept": _checked(out, count),
        "seconds": {
            **{f"stage {number}": seconds for number, seconds in enumerate(stages)},
            "the rest": total_s - sum(stages),
            "prune in all": total_s,
        },
        "fit_seconds": [stage["fit_seconds"] for stage in manifest["stages"]],
        "run_gb": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e9,
        "peak_gb": peaks,
    }


def _checked(out: Path, count: int) -> int:
    """How many are kept, once scores and ids are found to be those of plain numpy over all samples at once."""
    coreset = pq.read_table(out / "coreset.parquet", columns=["id", "stage"])
    ids, stages = coreset.column("id").to_numpy(), coreset.column("stage").to_numpy()
    first, target = round(FIRST * count), round(KEEP * count)
    if len(ids) != target or not (np.diff(ids) > 0).all():
        raise SystemExit(f"{len(ids)} ids instead of {target}, or not in order")
    for stage, budget in ((0, first), (1, target - first)):
        table = pq.read_table(out / f"stage-{stage:02d}" / "scores.parquet", columns=["id", "votes", "entropy"])
        candidates, votes = table.column("id").to_numpy(), table.column("votes").to_numpy()
        if not (votes == (FOLDS - 1 if stage == 0 else 1)).all() or len(candidates) != count - (first if stage else 0):
            raise SystemExit(f"stage {stage} has other votes or candidates than it must have")
        scores = table.column("entropy").to_numpy()
        if stage == 1:
            some = np.linspace(0, len(candidates) - 1, 100_000).astype(int)
            told = entropy(answers(candidates[some], 1000), np.zeros(len(some), np.int64))
            if not np.array_equal(scores[some], told):
                raise SystemExit("stage 1 has other scores than its answers tell")
        best = best_first(scores, candidates, 0)[:budget]
        if not np.array_equal(np.sort(candidates[best]), ids[stages == stage]):
            raise SystemExit(f"stage {stage} kept others than its highest scores")
        del table, candidates, votes, scores, best
    return len(ids)


def add_to(subparsers: Any) -> None:
    """The subcommand `run` of scale.py."""
    parser = subparsers.add_parser("run", help="a whole run of more samples than its driver may hold, without images")
    parser.add_argument("--samples", type=int, default=120_000_000)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for some 10 GB, removed in the end")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Run it, print what it took, and clean up."""
    scratch = args.scratch.resolve() / "scale-run"
    try:
        report = run(scratch, args.samples)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(report, indent=1))
    write(
        args.json, {"conditions": conditions(torch.device("cpu"), argparse.Namespace(samples=args.samples)), **report}
    )
