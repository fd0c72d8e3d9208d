"""How cheap scores can be: cost of a choice beside how well its scores agree from seed to seed, and with those of full trainings.

    python benchmarks/bill.py --source data/cifar10-train.parquet --limit 10000 --json benchmarks/results/bill_cifar10_10k_cpu.json

The same line resumes. `with_full` compares a variant with the scores of K = 4 and full trainings under other seeds: as much as these
agree with each other (their own row) is all that can be expected.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.core.stats import rank_correlation

FULL = "K=4"
HALF_WIDTH = {"use": "small_cnn", "width": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {"folds": 4, "scoring": {"share": 1}},
    "K=4, half the epochs": {"folds": 4, "scoring": {"share": 0.5}},
    "K=4, a quarter": {"folds": 4, "scoring": {"share": 0.25}},
    "K=4, an eighth": {"folds": 4, "scoring": {"share": 0.125}},
    "K=4, a quarter, half the width": {"folds": 4, "scoring": {"share": 0.25, "model": HALF_WIDTH}},
    "K=4, a quarter, 1 vote": {"folds": 4, "scoring": {"share": 0.25, "votes": 1}},
    "K=4, a quarter, 2 models": {"folds": 4, "scoring": {"share": 0.25, "models": 2}},
    "K=8, a quarter": {"folds": 8, "scoring": {"share": 0.25}},
    "K=8, a quarter, 4 votes": {"folds": 8, "scoring": {"share": 0.25, "votes": 4}},
    "K=16, a quarter, 4 votes": {"folds": 16, "scoring": {"share": 0.25, "votes": 4}},
}
SCORES = ("entropy", "margin", "el2n", "loss")


def results(args: argparse.Namespace, fields: dict[str, Any], name: str) -> list[ur.PruneResult]:
    """The runs of a variant, one a seed; those that are finished are read."""
    source = {"use": "parquet", "path": str(args.source), "limit": args.limit}
    source |= {"size": args.size} if args.size else {}
    folder = "".join(letter if letter.isalnum() else "-" for letter in name)
    shared = {"keep": 0.5, "model": args.model, "recipe": {"use": "quick", "epochs": args.epochs}, "executor": "local"}
    return [
        ur.prune(ur.PruneConfig(source=source, seed=seed, out=args.out / f"{folder}-{seed}", **shared, **fields))
        for seed in args.seeds
    ]


def agreement(runs: list[ur.PruneResult], full: list[ur.PruneResult], score: str) -> dict[str, float]:
    """Mean rank correlations over pairs of different seeds: among the runs, and with the full ones."""
    ours, theirs = ([run.scores.column(score).to_numpy() for run in each] for each in (runs, full))
    crossed = [rank_correlation(a, b) for i, a in enumerate(ours) for j, b in enumerate(theirs) if i != j]
    return {
        "seed_to_seed": fmean(rank_correlation(a, b) for a, b in itertools.combinations(ours, 2)),
        "with_full": fmean(crossed),
    }


def row_of(name: str, runs: list[ur.PruneResult], full: list[ur.PruneResult]) -> dict[str, Any]:
    stages = [run.manifest.stages[0] for run in runs]
    return {
        "variant": name,
        "bill": runs[0].manifest.cost.bill,
        "seconds": round(fmean(stage.fit_seconds for stage in stages), 1),
        "vote_accuracy": round(fmean(stage.vote_accuracy for stage in stages), 4),
        "votes": round(float(np.mean([run.scores.column("votes").to_numpy().mean() for run in runs])), 2),
        "scores": {score: agreement(runs, full, score) for score in SCORES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="Parquet file of the training images")
    parser.add_argument("--limit", type=int, default=10_000, help="how many of the first images")
    parser.add_argument("--size", type=int, default=0, help="side of the images in pixels; 0 leaves them as they are")
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bill"))
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rows, full = [], results(args, VARIANTS[FULL], FULL)
    for name, fields in VARIANTS.items():
        rows.append(row_of(name, results(args, fields, name), full))
        entropy = rows[-1]["scores"]["entropy"]
        print(
            f"{name}: bill {rows[-1]['bill']}, entropy {entropy['seed_to_seed']:.3f}, {entropy['with_full']:.3f}",
            flush=True,
        )
    said = conditions(torch.device("cpu"), args)
    write(
        args.json, {"conditions": said, "samples": args.limit, "model": args.model, "epochs": args.epochs, "rows": rows}
    )


if __name__ == "__main__":
    main()
