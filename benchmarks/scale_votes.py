"""What a worker holds while a model scores many samples, and what it scores again after it was killed.

    python benchmarks/scale.py votes --scratch /big/disk --json benchmarks/results/scale_votes_cpu.json

Real: the task of a fold, its ids, the scores of every prediction, the files of votes. Not real: nothing is trained, no image is read; a
function answers for each sample by a hash of its id. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from scale_run import CLASSES, answers
from timing import conditions, write
from train_memory import memory

FOLDS = 4
ROWS = (1_000_000, 10_000_000, 30_000_000)
_BATCH = 2048
_KILLED_AT = 0.6  # of the samples


def score(out: Path, rows: int, killed_at: int | None, answer: Connection) -> None:
    """Score the samples of fold 0's model; SIGKILL this process after `killed_at` of them."""
    import torch

    from unseen_ray.core.predictions import Predictions
    from unseen_ray.data.images.pixel_store import MemoryPixelStore
    from unseen_ray.training.task_runner import ScoringTask, TaskRunner

    def predictions(ids_M: np.ndarray) -> Iterator[Predictions]:
        nonlocal scored
        for start in range(0, len(ids_M), _BATCH):
            ids = ids_M[start : start + _BATCH]
            if killed_at is not None and scored >= killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            ones = np.ones(len(ids), np.float32)
            yield Predictions(ids_B=ids, log_probs_BC=answers(ids, 1), head_norm_B=ones, max_logit_B=ones)
            scored += len(ids)

    torch.set_num_threads(1)
    job, task, labels = _job(out, rows)
    before, scored, started = memory("VmRSS"), 0, time.perf_counter()
    pixels = MemoryPixelStore(np.empty((0, 1, 1, 3), np.uint8))
    runner = TaskRunner(job=job, labels_N=labels, pixel_store=pixels, source=lambda: None, device="cpu")  # type: ignore[arg-type, return-value]
    scoring = ScoringTask(runner, task)
    held = {"ids_mb": round((memory("VmRSS") - before) / 1e6), "ids_peak_mb": round((memory("VmHWM") - before) / 1e6)}
    Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
    for ids in scoring.left():
        for each in predictions(ids):
            for _ in scoring.add(each):
                pass
    receipt = scoring.write()
    answer.send(
        {
            "samples": len(scoring.ids_M),
            "scored": scored,
            "files": len(receipt.files),
            "seconds": round(time.perf_counter() - started, 1),
            **held,
            "peak_mb": round((memory("VmHWM") - before) / 1e6),
        }
    )


def _job(out: Path, rows: int) -> tuple[Any, Any, np.ndarray]:
    """A run whose models score `rows` samples each, and the task of its first fold."""
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.samples.id_sets import AllIds
    from unseen_ray.core.schedule import Stage
    from unseen_ray.data.sources.registry import open_source, source_ref
    from unseen_ray.pruning.plan import tasks_of
    from unseen_ray.runs.tasks import make_job

    count, path = rows * FOLDS // (FOLDS - 1), out / "labels.npy"
    if not path.exists():
        out.mkdir(parents=True)
        np.save(path, np.random.default_rng(0).integers(0, CLASSES, count).astype(np.uint8))
    source = {"use": "labels", "path": str(path), "classes": CLASSES}
    config = PruneConfig(source=source, keep=0.5, folds=FOLDS, holdout=0.0, out=str(out / "run"))
    info = open_source(source_ref(config.source)).info
    job = make_job(ResolvedRun(config), info)
    task = tasks_of(Stage(index=0, target=1, added=1), config, AllIds(), limits=job.limits)[0]
    return job, task, info.labels_N


def in_a_process(out: Path, rows: int, killed_at: int | None = None) -> dict[str, Any]:
    """What one process says, or that it was killed."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=score, args=(out, rows, killed_at, there))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        found = {"scored": killed_at}
    process.join()
    return {**found, "exit": process.exitcode}


def digests(out: Path) -> list[bytes]:
    """The ids and scores of all votes, without what a file says of its making."""
    import pyarrow.parquet as pq

    table = pq.read_table(out / "run/stage-00/votes/00.parquet")
    return [column.to_numpy().tobytes() for column in table.columns]


def add_to(subparsers: Any) -> None:
    """The subcommand `votes` of scale.py."""
    parser = subparsers.add_parser(
        "votes", help="what a worker holds while a model scores, and scores again once it was killed"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument(
        "--killed_rows", type=int, default=10_000_000, help="samples of the scoring that is killed; 0 for none"
    )
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for some 3 GB, removed in the end")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Run all cases, print what they took, and clean up."""
    import torch

    scratch = args.scratch.resolve() / "scale-votes"
    report: dict[str, Any] = {
        "conditions": conditions(torch.device("cpu"), argparse.Namespace(rows=args.rows)),
        "cases": [],
    }
    try:
        for rows in args.rows:
            report["cases"].append(in_a_process(scratch / "whole", rows))
            print(json.dumps(report["cases"][-1]), flush=True)
            if rows == args.killed_rows:
                report["killed"] = _killed(scratch, rows)
                print(json.dumps(report["killed"]), flush=True)
            shutil.rmtree(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write(args.json, report)


def _killed(scratch: Path, rows: int) -> dict[str, Any]:
    first = in_a_process(scratch / "killed", rows, int(rows * _KILLED_AT))
    second = in_a_process(scratch / "killed", rows)
    same = digests(scratch / "killed") == digests(scratch / "whole")
    again = first["scored"] + second["scored"] - second["samples"]
    return {
        "killed_at": first["scored"],
        "exit": first["exit"],
        "then": second,
        "scored_again": again,
        "same_bits": same,
    }
