"""How long a new choice from a stored run takes: 20 of score, policy, keep, guard and rule of combination, by number of samples.

    python benchmarks/select_speed.py --json benchmarks/results/select_speed_cpu.json

The run holds two votes a sample of made-up probabilities. Each choice is what `unseen-ray select` does, once Python has started:
stored scores are read and checked, the policy chooses, coreset and scores are written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import conditions, write

import unseen_ray as ur

CHOICES: list[dict[str, Any]] = [
    {"score": "entropy", "policy": "top", "keep": 0.9},
    {"score": "entropy", "policy": "top", "keep": 0.7},
    {"score": "entropy", "policy": "top", "keep": 0.1},
    {"score": "margin", "policy": "top", "keep": 0.7},
    {"score": "least_confidence", "policy": "top", "keep": 0.7},
    {"score": "el2n", "policy": "top", "keep": 0.7},
    {"score": "loss", "policy": "top", "keep": 0.5},
    {"score": "label_margin", "policy": "class_balanced", "keep": 0.7},
    {"score": "entropy", "policy": "class_balanced", "keep": 0.3},
    {"score": "entropy", "policy": "class_floor", "keep": 0.5},
    {"score": "entropy", "policy": "class_quota", "keep": 0.5},
    {"score": "entropy", "policy": "ccs", "keep": 0.3},
    {"score": "el2n", "policy": {"use": "ccs", "cut": 0.1}, "keep": 0.1},
    {"score": "margin", "policy": "window", "keep": 0.5},
    {"score": "entropy", "policy": "moderate", "keep": 0.5},
    {"score": "el2n", "policy": "beta", "keep": 0.3},
    {"score": "entropy", "policy": "random", "keep": 0.7},
    {"score": "entropy", "policy": "top", "keep": 0.7, "guard": "confident_learning"},
    {"score": "entropy", "policy": "top", "keep": 0.7, "combine": "rank_mean"},
    {"score": "margin", "policy": "top", "keep": 0.7, "combine": "mean_prob"},
]


def stored_run(folder: Path, samples: int, classes: int) -> Path:
    """Scores of made-up probabilities of two models."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, samples)
    files = []
    for number in range(2):
        logits = 2 * rng.normal(size=(samples, classes)).astype(np.float32)
        logits[np.arange(samples), labels] += 2
        probs = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.save(folder / f"probs-{number}.npy", probs / probs.sum(axis=1, keepdims=True))
        files.append(folder / f"probs-{number}.npy")
    np.save(folder / "labels.npy", labels)
    ur.score(files, folder / "labels.npy", guard="none", out=folder / "run")
    return folder / "run"


def timed(run: Path, out: Path, choice: dict[str, Any]) -> float:
    began = time.perf_counter()
    ur.select(run, out=out, **choice)
    return time.perf_counter() - began


def named(choice: dict[str, Any]) -> str:
    """As the table calls a choice."""
    policy = choice["policy"]
    options = [] if isinstance(policy, str) else [f"{name} {value}" for name, value in policy.items() if name != "use"]
    name = policy if isinstance(policy, str) else policy["use"]
    return f"{choice['score']}, {name}{' (' + ', '.join(options) + ')' if options else ''}" + "".join(
        f", {choice[field]}" for field in ("guard", "combine") if field in choice
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000, 1_281_167])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = [
        {"choice": named(choice), "keep": choice["keep"], "seconds": {}} for choice in CHOICES
    ]
    for samples in args.samples:
        with tempfile.TemporaryDirectory() as temporary:
            run = stored_run(Path(temporary), samples, args.classes)
            for row, choice in zip(rows, CHOICES, strict=True):
                name = row["choice"].replace(" ", "-")
                seconds = [
                    timed(run, Path(temporary, f"{name}-{row['keep']}-{number}"), choice)
                    for number in range(args.rounds)
                ]
                row["seconds"][str(samples)] = round(statistics.median(seconds), 3)
                print(
                    f"{samples:,}: {row['choice']}, keep {row['keep']}: {row['seconds'][str(samples)]:.2f} s",
                    flush=True,
                )
    report = {
        "conditions": conditions(torch.device("cpu"), args),
        "samples": args.samples,
        "classes": args.classes,
        "rows": rows,
    }
    write(args.json, report)


if __name__ == "__main__":
    main()
