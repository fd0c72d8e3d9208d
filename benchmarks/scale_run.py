"""A whole run of more samples than its driver may hold: folds, votes, ranges merged by several actors, growth on storage.

    python benchmarks/scale.py run --scratch /big/disk --json benchmarks/results/scale_run_cpu.json

What is real: Ray, the source's label column, folds, votes, merge, selection, two stages, storage. What is not: nothing is trained, no
image is read; a function answers for each sample by a hash of its id. The first size is small: what its processes hold is imports.
A stage is scored until its last vote is on storage, merged until its last score is, and the rest of it is the choice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scale_pruned import checked, prune, reported

from unseen_ray.core.scores import entropy
from unseen_ray.core.seeds import tie_keys

if TYPE_CHECKING:
    from chaos_cluster import Cluster

CLASSES, FOLDS = 10, 3
_ANSWERED = 2**18
_FILE_ROWS = 2**24
_ALL, _SOME = 20_000_000, 100_000  # up to so many samples all scores are made anew, else those of so many
_PHASES = ("scoring", "merging", "choosing")
_WORKING = ("driver", "ray::FoldWorker", "ray::Aggregator")
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


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Two Ray nodes of one CPU, and a head without any beside the driver; all on this machine."""
    here = Path(__file__).resolve().parent
    sys.path.append(str(here.parent))
    from chaos_cluster import Cluster

    from tests.distributed.nodes import client_environment

    with tempfile.TemporaryDirectory(prefix="ur") as folder:
        env = client_environment(Path(folder)) | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
        cluster = Cluster(env, Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


def run(scratch: Path, count: int, cluster: Cluster | None) -> dict[str, Any]:
    """Build the set, prune it, check scores and ids, and say what each phase and process took."""
    shutil.rmtree(scratch, ignore_errors=True)
    data = build(scratch / "set", count)
    out = scratch / "run"
    done = prune(data, out, cluster, folds=FOLDS, fit="scale_run:hashed")
    case = {
        "samples": count,
        "kept": checked(out, count, FOLDS - 1, partial(_as_answered, out, count)),
        "seconds": {
            "stages": [_phases(out, *each) for each in zip(done.stages, done.ends, strict=True)],
            "the rest": round(done.total_s - sum(stage["seconds"] for stage in done.stages), 1),
            "prune in all": round(done.total_s, 1),
        },
        "run_gb": round(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e9, 2),
        "processes": done.peaks,
    }
    print(json.dumps(case), flush=True)
    return case


def _phases(out: Path, stage: dict[str, Any], end: float) -> dict[str, float]:
    folder = out / f"stage-{stage['index']:02d}"
    voted, merged = (_written(folder, name) for name in ("votes", "scores"))
    scored_s = stage["seconds"] - (end - voted)
    return {"scoring": round(scored_s, 1), "merging": round(merged - voted, 1), "choosing": round(end - merged, 1)}


def _written(folder: Path, name: str) -> float:
    """When the last file was written of those that begin so, or lie in such a folder."""
    return max(path.stat().st_mtime for top in folder.glob(f"{name}*") for path in (top, *top.rglob("*.parquet")))


def exponents(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The slopes of lines through the logarithms of sizes and of seconds: of each phase, and of what each process computed.

    What the first, small case takes is what starts take, and is not counted.
    """
    first, *long = cases
    sizes = np.log([case["samples"] for case in long])

    def slopes(of: Callable[[dict[str, Any]], dict[str, float]]) -> dict[str, float]:
        least, found = of(first), [of(case) for case in long]
        return {
            name: round(float(np.polyfit(sizes, np.log([its[name] - least[name] for its in found]), 1)[0]), 3)
            for name in least
        }

    return {
        "seconds": slopes(lambda case: {p: sum(s[p] for s in case["seconds"]["stages"]) for p in _PHASES}),
        "cpu_s": slopes(lambda case: {name: case["processes"][name]["cpu_s"] for name in _WORKING}),
    }


def _as_answered(out: Path, count: int, stage: int, candidates: np.ndarray, scores: np.ndarray) -> None:
    """Refuse a stage with other scores than its models' answers tell."""
    some = candidates if count <= _ALL else candidates[np.linspace(0, len(candidates) - 1, _SOME).astype(int)]
    if not np.array_equal(scores[np.searchsorted(candidates, some)], _means(out, stage, some)):
        raise SystemExit(f"stage {stage} has other scores than its answers tell")


def _means(out: Path, stage: int, ids: np.ndarray) -> np.ndarray:
    """The mean, of the models that have a vote on each id on storage, of the scores of what they answer for it."""
    totals, voters = np.zeros(len(ids)), np.zeros(len(ids))
    for votes in sorted((out / f"stage-{stage:02d}" / "votes").iterdir()):
        seed = 1000 * stage + (int(votes.stem) + 1 if stage == 0 else 0)
        voted = np.zeros(len(ids), bool)
        for file in sorted(votes.iterdir()) if votes.is_dir() else [votes]:
            its = pq.read_table(file, columns=["id"]).column("id").to_numpy()
            first, last = np.searchsorted(ids, (its[0], its[-1] + 1))
            places = np.minimum(np.searchsorted(its, ids[first:last]), len(its) - 1)
            voted[first:last] = its[places] == ids[first:last]
        for start in range(0, len(ids), _ANSWERED):
            of = np.arange(start, min(start + _ANSWERED, len(ids)))[voted[start : start + _ANSWERED]]
            totals[of] += entropy(answers(ids[of], seed), np.zeros(len(of), np.int64))
        voters += voted
    return (totals / voters).astype(np.float32)


def add_to(subparsers: Any) -> None:
    """The subcommand `run` of scale.py."""
    parser = subparsers.add_parser("run", help="whole runs of more samples than their driver may hold, without images")
    parser.add_argument("--samples", type=float, nargs="+", default=[1e5, 1e7, 1e8])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for some 10 GB, removed in the end")
    parser.add_argument(
        "--two_nodes", action="store_true", help="on a Ray cluster of two nodes instead of one of the run's own"
    )
    parser.add_argument("--leave", action="store_true", help="leave the last run in the folder, for `scale.py after`")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Make a run of each size, print what they took, and clean up."""

    def all_sizes(scratch: Path) -> dict[str, Any]:
        with two_nodes() if args.two_nodes else contextlib.nullcontext() as cluster:
            cases = [run(scratch, int(count), cluster) for count in args.samples]
        return {"folds": FOLDS, "cases": cases, "exponents": exponents(cases) if len(cases) > 2 else None}

    reported(args, "scale-run", all_sizes)
