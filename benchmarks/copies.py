"""What copies do to out-of-fold scores, and what keeping them in one fold, or using one of each, is worth.

A tenth of the first 10,000 images of CIFAR-10 is doubled. Their folds are dealt at random, with the two copies kept in one fold
(`group`), and with one of the two left out (`group` with drop). `top` keeps as many samples of each by entropy, and a model is trained
on them and measured on the test set. A seed is that of what is doubled, choice and training. The same line resumes.

python benchmarks/copies.py --source data/cifar10-train.parquet --test data/cifar10-test.parquet \
    --json benchmarks/results/copies_cifar10_cpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import rankdata
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.core.seeds import rng_for
from unseen_ray.pruning.trials.measured import interval

SAMPLES, DOUBLED = 10_000, 0.1
KEPT = (7_700, 5_500)
APART, TOGETHER, DROPPED = "random folds", "in one fold", "one of each"
GROUPS: dict[str, Any] = {APART: None, TOGETHER: "original", DROPPED: {"use": "original", "drop": True}}
FIELDS: dict[str, Any] = {
    "scoring": {"share": 1},
    "keep": 0.5,
    "folds": 4,
    "policy": "top",
    "model": "small_cnn",
    "threads": 1,
    "executor": "local",
    "log_to": "none",
}
EPOCHS = 12


def doubled(path: str, count: int, seed: int, out: Path) -> Path:
    """A file of the first `count` rows, a tenth of them twice, with the row that each came from."""
    file = out / f"doubled-{seed}.parquet"
    if not file.exists():
        rows = pq.read_table(path).slice(0, count)
        twice = rng_for(seed, 1).choice(count, round(DOUBLED * count), replace=False)
        originals = rng_for(seed, 2).permutation(np.concatenate([np.arange(count), twice]))
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.take(pa.array(originals)).append_column("original", pa.array(originals)), file)
    return file


def case(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Scores and accuracies of one seed, by how folds are dealt."""
    source = doubled(args.source, args.try_on or SAMPLES, seed, args.out)
    originals = pq.read_table(source, columns=["original"]).column(0).to_numpy()
    twice = np.flatnonzero(np.bincount(originals) > 1)
    recipe = {"use": "quick", "epochs": 1 if args.try_on else EPOCHS}
    found: dict[str, Any] = {}
    for name, group in GROUPS.items():
        out = args.out / f"{name.replace(' ', '-')}-{seed}"
        run = ur.prune(
            ur.PruneConfig(source=str(source), group=group, seed=seed, recipe=recipe, out=str(out / "run"), **FIELDS)
        )
        scores = run.scores
        ids, entropy = scores.column("id").to_numpy(), scores.column("entropy").to_numpy()
        of_copies = np.isin(originals[ids], twice)
        ranks = rankdata(entropy) / len(entropy)
        right = scores.column("pred").to_numpy() == scores.column("label").to_numpy()
        found[name] = {
            "right": float(right[of_copies].mean()),
            "right_others": float(right[~of_copies].mean()),
            "entropy": float(entropy[of_copies].mean()),
            "entropy_others": float(entropy[~of_copies].mean()),
            "rank": float(ranks[of_copies].mean()),
            "kept": {count: trained(run, count, originals, twice, args, out) for count in KEPT},
        }
        print(f"seed {seed}, {name}: {found[name]}", flush=True)
    return found


def trained(
    run: ur.PruneResult, count: int, originals: np.ndarray, twice: np.ndarray, args: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """What `top` keeps as `count` samples of the full size, and the accuracy of a model trained on it."""
    total = len(run.scores)
    keep = round(count * len(originals) / 11_000) / total
    chosen = None
    with contextlib.suppress(ur.ConfigError):  # it has not been chosen
        chosen = ur.load(out / f"kept-{count}")
    if chosen is None:
        chosen = ur.select(run, keep=keep, policy="top", out=out / f"kept-{count}")
    against = ("random",) if total == len(originals) and run.config.group is None else ()
    test = {"use": "parquet", "path": args.test, "limit": args.try_on}
    table = ur.evaluate(chosen, test=test, seeds=1, against=against, executor="local")
    kept = originals[chosen.coreset.ids]
    return {
        "samples": len(kept),
        "both": int(len(kept) - len(np.unique(kept))),
        "share_of_copies": float(np.isin(kept, twice).mean()),
        **{arm.name: arm.accuracies[0] for arm in table.arms},
    }


def rows_of(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracies of each way and size, less those of random folds, seed by seed."""
    rows = []
    for count in KEPT:
        base = [each[APART]["kept"][count]["coreset"] for each in cases]
        arms = {name: [each[name]["kept"][count]["coreset"] for each in cases] for name in GROUPS}
        arms["random subset"] = [each[APART]["kept"][count]["random"] for each in cases]
        for name, values in arms.items():
            low, high = interval(values, base, paired=True) if name != APART and len(cases) > 1 else (None, None)
            rows.append(
                {
                    "kept": count,
                    "folds": name,
                    "accuracies": values,
                    "mean": statistics.fmean(values),
                    "less_random_folds": statistics.fmean(values) - statistics.fmean(base),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="CIFAR-10's training set as Parquet")
    parser.add_argument("--test", required=True, help="its test set")
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs  [default: runs/copies]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--try_on", type=int, metavar="N", help="one epoch on the first N images, to see that all runs")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    args.out = args.out or Path("runs", "copies" + ("-tried" if args.try_on else ""))
    cases = [case(args, seed) for seed in args.seeds]
    report = {
        "conditions": conditions(torch.device("cpu"), args),
        "data": {"source": Path(args.source).name, "samples": args.try_on or SAMPLES, "doubled": DOUBLED},
        "fields": FIELDS,
        "epochs": EPOCHS,
        "cases": dict(zip(args.seeds, cases, strict=True)),
        "accuracies": (rows := rows_of(cases)),
    }
    write(args.json, report)
    for row in rows:
        print(f"{row['kept']:,} kept, {row['folds']}: {row['mean']:.4f} ({100 * row['less_random_folds']:+.2f} points)")


if __name__ == "__main__":
    main()
