"""Do the scores keep their order from seed to seed? Unseen against fitting, as in the paper's Figure 1b.

Prunes a source in one shot with several seeds in both modes, and compares the samples' ranks between each pair of seeds. Finished
runs under --out are used, so that the script can be interrupted.

    python benchmarks/rank_agreement.py --source data/cifar10-train.parquet --limit 10000 --out runs/ranks \
        --json benchmarks/results/rank_agreement_cifar10_10k_cpu.json
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import unseen_ray as ur
from unseen_ray.core.stats import rank_correlation

MODES = ("unseen", "fitting")


def pruned(mode: str, seed: int, args: argparse.Namespace) -> ur.PruneResult:
    fields: dict[str, Any] = {"source": {"path": args.source, "limit": args.limit}, "keep": args.keep, "seed": seed}
    if mode == "unseen":
        fields["folds"] = args.folds
    return ur.prune(ur.PruneConfig(**fields, mode=mode, score=args.score, out=f"{args.out}/{mode}-{seed}"))


def agreement(results: list[ur.PruneResult], score: str) -> dict[str, Any]:
    """Mean over pairs of seeds, and each pair."""
    scores = [result.scores.column(score).to_numpy() for result in results]
    kept = [set(result.coreset.ids.tolist()) for result in results]
    pairs = list(combinations(range(len(results)), 2))
    correlation = [rank_correlation(scores[a], scores[b]) for a, b in pairs]
    overlap = [len(kept[a] & kept[b]) / len(kept[a]) for a, b in pairs]
    return {
        "rank_correlation": float(np.mean(correlation)),
        "rank_correlation_of_pairs": correlation,
        "overlap_of_kept": float(np.mean(overlap)),
        "score_std": float(np.mean([values.std() for values in scores])),
        "accuracy_of_scorers": float(np.mean([result.manifest.stages[0]["accuracy"] for result in results])),
        "seconds": [result.manifest.cost["seconds"] for result in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--score", default="entropy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/ranks")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    results = {mode: [pruned(mode, seed, args) for seed in range(args.seeds)] for mode in MODES}
    first = results["unseen"][0].manifest
    report: dict[str, Any] = {mode: agreement(results[mode], args.score) for mode in MODES}
    report |= {"config": {**first.config, "source": Path(args.source).name, "limit": args.limit, "out": None}}
    report |= {"num_samples": first.source["num_samples"], "seeds": args.seeds, "environment": first.environment}
    for mode in MODES:
        numbers = report[mode]
        print(
            f"{mode:8} rank correlation {numbers['rank_correlation']:.3f}, overlap of the kept {numbers['overlap_of_kept']:.3f}, "
            f"standard deviation of {args.score} {numbers['score_std']:.3f}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
