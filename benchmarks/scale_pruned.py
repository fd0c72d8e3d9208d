"""What the benchmarks of whole runs share: the command and what it holds, a check of what it kept, the report."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
from processes import watched
from timing import conditions, write

from unseen_ray.core.seeds import tie_keys

if TYPE_CHECKING:
    from chaos_cluster import Cluster

KEEP, FIRST = 0.7, 0.35
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Pruned:
    """When a run began and its stages ended, by the clock, what it took, what its processes held, and its stages in the manifest."""

    started: float
    ends: list[float]
    total_s: float
    peaks: dict[str, dict[str, float]]
    stages: list[dict[str, Any]]


def prune(data: Path, out: Path, cluster: Cluster | None = None, **fields: object) -> Pruned:
    """Prune Parquet files in two stages by `unseen-ray prune` with these fields, which may name modules of this folder.

    Without a cluster the run has a Ray of its own.
    """
    if cluster is not None:
        fields["address"] = cluster.address
    line = [sys.executable, "-m", "unseen_ray", "prune", "--source.use", "parquet", "--source.path", str(data)]
    line += ["--keep", str(KEEP), "--schedule", f"[{FIRST},{KEEP}]", "--policy", "top", "--also_score", "none"]
    line += ["--pixel_memory_gb", "0", "--out", str(out)]
    line += [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    started = time.time()
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=_HERE, env=cluster and cluster.env
    )
    assert process.stderr is not None
    ends: list[float] = []
    listener = threading.Thread(target=_listen, args=(process.stderr, ends))
    listener.start()
    peaks = watched(process, cluster.nodes if cluster else ())
    total_s = time.time() - started
    listener.join()
    if process.returncode:
        raise SystemExit(f"prune ended with {process.returncode}")
    return Pruned(started, ends, total_s, peaks, json.loads((out / "manifest.json").read_text())["stages"])


def _listen(log: IO[bytes], ends: list[float]) -> None:
    """Pass on what a run says, and note when each stage ended."""
    for line in log:
        if b" stage=" in line:
            ends.append(time.time())
        sys.stderr.buffer.write(line)
        sys.stderr.flush()


def checked(out: Path, count: int, votes_0: int, check: Callable[[int, Any, Any], None] = lambda *_: None) -> int:
    """How many are kept, once they are found to be those that the stored scores name, by plain numpy over all samples at once.

    Args:
        out: the run.
        count: samples of the source.
        votes_0: of each sample in stage 0.
        check: called with each stage, its ids and their scores.
    """
    coreset = pq.read_table(out / "coreset.parquet", columns=["id", "stage"])
    ids, stages = coreset.column("id").to_numpy(), coreset.column("stage").to_numpy()
    first, target = round(FIRST * count), round(KEEP * count)
    if len(ids) != target or not (np.diff(ids) > 0).all():
        raise SystemExit(f"{len(ids)} ids instead of {target}, or not in order")
    for stage, budget in ((0, first), (1, target - first)):
        table = pq.read_table(out / f"stage-{stage:02d}" / "scores.parquet", columns=["id", "votes", "entropy"])
        candidates, votes, scores = (table.column(name).to_numpy() for name in ("id", "votes", "entropy"))
        if not (votes == (1 if stage else votes_0)).all() or len(candidates) != count - (first if stage else 0):
            raise SystemExit(f"stage {stage} has other votes or candidates than it must have")
        check(stage, candidates, scores)
        if not np.array_equal(_best(scores, candidates, budget), ids[stages == stage]):
            raise SystemExit(f"stage {stage} kept others than its highest scores")
        del table, candidates, votes, scores
    return len(ids)


def _best(scores: np.ndarray, ids: np.ndarray, budget: int) -> np.ndarray:
    """The ids of the highest scores, ties by their hash."""
    lowest = np.partition(scores, len(scores) - budget)[len(scores) - budget]
    best, tied = scores > lowest, np.flatnonzero(scores == lowest)
    best[tied[np.argsort(tie_keys(ids[tied], 0))][: budget - np.count_nonzero(best)]] = True
    return ids[best]


def reported(args: argparse.Namespace, name: str, run: Callable[[Path], dict[str, Any]]) -> None:
    """Run it in a folder that is removed in the end unless `args.leave`, print what it took, and write that with the conditions."""
    scratch = args.scratch.resolve() / name
    try:
        report = run(scratch)
    finally:
        if not getattr(args, "leave", False):
            shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(report, indent=1))
    called = {name: value for name, value in vars(args).items() if name in ("samples", "size", "two_nodes")}
    write(args.json, {"conditions": conditions(torch.device("cpu"), argparse.Namespace(**called)), **report})
