"""A whole run of more samples than its driver may hold: folds, votes, ranges merged by several actors, growth on storage.

    python benchmarks/scale.py run --samples 120000000 --scratch /big/disk --json benchmarks/results/scale_run_cpu.json

What is real: Ray, the source's label column, folds, votes, merge, selection, two stages, storage. What is not: nothing is trained, no
image is read; a function answers for each sample by a hash of its id.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scale_pruned import checked, prune, reported

from unseen_ray.core.scores import entropy
from unseen_ray.core.seeds import tie_keys

CLASSES, FOLDS = 10, 3
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
    done = prune(data, out, folds=FOLDS, fit="scale_run:hashed")
    stages = [stage["seconds"] for stage in done.stages]
    return {
        "samples": count,
        "folds": FOLDS,
        "kept": checked(out, count, FOLDS - 1, _as_answered),
        "seconds": {
            **{f"stage {number}": seconds for number, seconds in enumerate(stages)},
            "the rest": done.total_s - sum(stages),
            "prune in all": done.total_s,
        },
        "fit_seconds": [stage["fit_seconds"] for stage in done.stages],
        "run_gb": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e9,
        "peak_gb": done.peaks,
    }


def _as_answered(stage: int, candidates: np.ndarray, scores: np.ndarray) -> None:
    """Refuse a last stage with other scores than the one model's answers tell."""
    if stage == 1:
        some = np.linspace(0, len(candidates) - 1, 100_000).astype(int)
        told = entropy(answers(candidates[some], 1000), np.zeros(len(some), np.int64))
        if not np.array_equal(scores[some], told):
            raise SystemExit("stage 1 has other scores than its answers tell")


def add_to(subparsers: Any) -> None:
    """The subcommand `run` of scale.py."""
    parser = subparsers.add_parser("run", help="a whole run of more samples than its driver may hold, without images")
    parser.add_argument("--samples", type=int, default=120_000_000)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for some 10 GB, removed in the end")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Run it, print what it took, and clean up."""
    reported(args, "scale-run", lambda scratch: run(scratch, args.samples))
