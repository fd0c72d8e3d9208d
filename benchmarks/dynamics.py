"""What scores over epochs cost: memory for a set of ImageNet's size, and time beside the passes that they share.

    python benchmarks/dynamics.py --json benchmarks/results/dynamics_cpu.json

Log-probabilities are made up and streamed batch by batch, as a model would give them: none of N x C x epochs is ever held.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import conditions, write

from unseen_ray.core import dynamics
from unseen_ray.core.trajectory import EpochView, scored_epochs

ALL = "all of them"
NONE = "none"


def batches(samples: int, classes: int, size: int) -> Any:
    """(places, (B, C) log-probabilities, (B,) labels), the same numbers shifted a little for each batch."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(size, classes)).astype(np.float32) * 3
    logits -= logits.max(axis=1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = rng.integers(0, classes, size)
    for number, start in enumerate(range(0, samples, size)):
        stop = min(start + size, samples)
        yield slice(start, stop), np.roll(log_probs, number % classes, axis=1)[: stop - start], labels[: stop - start]


def measure(name: str, samples: int, classes: int, epochs: int, size: int) -> dict[str, Any]:
    """State, peak memory above imports and seconds of one score, or of all, in this process."""
    names = {ALL: dynamics.__all__, NONE: []}.get(name, [name])
    before_mb = peak_mb()
    made = {score: getattr(dynamics, score)() for score in names}
    numbers = scored_epochs(epochs, 1)
    reducers = {score: trajectory.reduce(samples, numbers) for score, trajectory in made.items()}
    compares = any(trajectory.compares for trajectory in made.values())
    held = torch.empty((samples, classes), dtype=torch.float16) if compares else None
    began = time.perf_counter()
    for index in range(epochs):
        for places, log_probs, labels in batches(samples, classes, size):
            view = EpochView(log_probs, labels, held[places].float().numpy() if held is not None and index else None)
            for score, reducer in reducers.items():
                reducer.add(places, made[score].series(view), index)
            if held is not None:
                held[places] = torch.from_numpy(view.log_floored_BC)
    seconds = time.perf_counter() - began
    results = [reducer.result().astype(np.float32) for reducer in reducers.values()]
    state = sum(values.nbytes for reducer in reducers.values() for values in reducer.state.values())
    return {
        "score": name,
        "state_mb": round(state / 1e6, 1),
        "before_mb": round(held.nbytes / 1e6, 1) if held is not None else 0.0,
        "peak_mb": round(peak_mb() - before_mb, 1),
        "microseconds_a_sample_and_epoch": round(1e6 * seconds / samples / epochs, 3),
        "seconds": round(seconds, 1),
        "columns": len(results),
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=90, help="of the run with all scores")
    parser.add_argument("--epochs_each", type=int, default=11, help="of each score alone; memory is full after ten")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--only", help="one score, in this process; prints a line of JSON")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    sizes = (args.samples, args.classes)
    if args.only:
        import json

        epochs = args.epochs if args.only == ALL else args.epochs_each
        print(json.dumps(measure(args.only, *sizes, epochs, args.batch)))
        return
    rows = []
    for name in (NONE, *dynamics.__all__, ALL):
        rows.append(alone(name, args))
        print(rows[-1], flush=True)
    report = {
        "conditions": conditions(torch.device("cpu"), args),
        "samples": args.samples,
        "classes": args.classes,
        "epochs": args.epochs,
        "epochs_of_each_alone": args.epochs_each,
        "rows": rows,
    }
    write(args.json, report)


def alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A score in a process of its own, so that its peak is its own."""
    import json

    asked = ["samples", "classes", "epochs", "epochs_each", "batch"]
    flags = [text for flag in asked for text in (f"--{flag}", str(getattr(args, flag)))]
    line = [sys.executable, __file__, "--only", name, *flags]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


if __name__ == "__main__":
    main()
