"""What the driver and the aggregator do for up to 1,000 folds on 1,000 nodes, with everything but the trainings.

    python benchmarks/scale.py cluster --json benchmarks/results/scale_cluster_cpu.json

Real: Ray's streams of events and the waiting on them, fold plans, tasks as they are sent, votes in memory, the merge. Pretended: the
nodes (their resources are a list) and the folds, whose events a few actors send in their stead.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import cloudpickle
from timing import conditions, write

from unseen_ray.core.combine_votes import VoteCombiner
from unseen_ray.core.samples.id_sets import FoldIds, FoldSpec
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.tasks import VotePart, stage_zero_tasks
from unseen_ray.execution.ray.capacity import Capacity, slots
from unseen_ray.runs.tasks import Progress

FOLDS, EVENTS = (10, 100, 1000), 5
SENDERS = 4


class Sender:
    """Stands for many folds: each stream says so often how far its training is."""

    async def events(self, fold: int, count: int) -> Any:
        """Events of one fold, as a fold actor sends them."""
        for epoch in range(count):
            yield Progress(
                task=f"stage 0 fold {fold}", node="node", device="cpu", doing="train", done=epoch, total=count
            )


def events(folds: int) -> dict[str, float]:
    """Seconds for the driver to hear `EVENTS` events of each fold, waiting on all streams at once as the pool does."""
    sender = ray.remote(Sender).options(num_cpus=0.1, max_concurrency=folds)
    actors = [sender.remote() for _ in range(SENDERS)]
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    streams = [
        actors[fold % SENDERS].events.options(num_returns="streaming").remote(fold, EVENTS) for fold in range(folds)
    ]
    began, heard, left = time.perf_counter(), 0, list(streams)
    while left:
        ready, _ = ray.wait(left, num_returns=1, timeout=10, fetch_local=False)
        for stream in ready:
            try:
                ray.get(next(stream))
                heard += 1
            except StopIteration:
                left.remove(stream)
    seconds = time.perf_counter() - began
    for actor in actors:
        ray.kill(actor)
    assert heard == folds * EVENTS
    return {"folds": folds, "events": heard, "ms an event": seconds / heard * 1e3}


def plans(folds: int, num_samples: int) -> dict[str, Any]:
    """The fold plan, and what a task of it weighs when it is sent."""
    labels = np.arange(num_samples) % 1000
    population = make_population(labels, 1000)
    began = time.perf_counter()
    spec = FoldSpec(num_folds=folds, seed=0)
    FoldIds(spec, 0).resolve(population)
    planned = time.perf_counter() - began
    tasks = stage_zero_tasks(mode="unseen", spec=spec, train_on="fold", repeats=1)
    nodes = Capacity(nodes=tuple({"CPU": 8.0, "GPU": 1.0} for _ in range(folds)))
    began = time.perf_counter()
    slots(nodes, {"CPU": 1.0, "GPU": 1.0})
    return {
        "folds": folds,
        "samples": num_samples,
        "plan_s": planned,
        "task_bytes": max(len(cloudpickle.dumps(task)) for task in tasks),
        "room_on_nodes_ms": (time.perf_counter() - began) * 1e3,
    }


def merges(folds: int, num_samples: int) -> dict[str, Any]:
    """The merge of every fold's votes on all others, in the order of the folds."""
    rng = np.random.default_rng(0)
    ids, labels = np.arange(num_samples), rng.integers(0, 1000, num_samples)
    book = VoteCombiner(ids_M=ids, labels_M=labels, num_parts=folds, votes_each=folds - 1)
    for part in _parts(folds, ids, labels):
        book.add(part)
    began = time.perf_counter()
    book.combine("mean")
    seconds, votes = time.perf_counter() - began, num_samples * (folds - 1)
    return {
        "folds": folds,
        "samples": num_samples,
        "votes": votes,
        "seconds": seconds,
        "ns a vote": seconds / votes * 1e9,
    }


def _parts(folds: int, ids: np.ndarray, labels: np.ndarray) -> Iterator[VotePart]:
    rng = np.random.default_rng(1)
    for fold in range(folds):
        seen = ids % folds == fold
        mine = ids[~seen]
        yield VotePart(
            index=fold,
            ids_M=mine,
            pred_M=labels[~seen],
            p_top_M=rng.random(len(mine), np.float32),
            p_label_M=rng.random(len(mine), np.float32),
            scores={"entropy": rng.random(len(mine), np.float32)},
        )


def run() -> dict[str, Any]:
    """All of it."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    heard = [events(folds) for folds in FOLDS]
    ray.shutdown()
    merged = [merges(folds, 10_000) for folds in FOLDS[:2]] + [merges(4, count) for count in (10**5, 10**6)]
    many = [merges(folds, 2_000) for folds in FOLDS]
    progress = Progress(task="stage 0 fold 999", node="node-0999", device="cpu", doing="train", done=1, total=90)
    return {
        "events": heard,
        "event_bytes": len(pickle.dumps(progress)),
        "plans": [plans(folds, count) for folds in FOLDS for count in (100_000, 1_281_167)],
        "merges": merged + many,
        "exponent_of_merge_in_samples": exponent(
            [row["samples"] for row in merged[2:]], [row["seconds"] for row in merged[2:]]
        ),
        "exponent_of_merge_in_folds": exponent([row["votes"] for row in many], [row["seconds"] for row in many]),
    }


def add_to(subparsers: Any) -> None:
    """The subcommand `cluster` of scale.py."""
    parser = subparsers.add_parser(
        "cluster", help="the driver and the aggregator with up to 1,000 folds, without trainings"
    )
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Run it, and print what everything took."""
    report = run()
    print(json.dumps(report, indent=1))
    write(args.json, {"conditions": conditions(torch.device("cpu"), argparse.Namespace()), **report})


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else math.nan
