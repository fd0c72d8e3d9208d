"""How long scores and `top` take beside the numpy one-liner of each: 1,000 classes, and as many scores as ImageNet-1K has images.

python benchmarks/beside_numpy.py --json benchmarks/results/beside_numpy_cpu.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import conditions, interleaved, quartiles, ratio, write

from unseen_ray.core import scores, select
from unseen_ray.core.predictions import EpochView

ROWS, CLASSES, SAMPLES, KEEP = 8192, 1000, 1_281_167, 0.7
SHARED = ("entropy", "margin", "least_confidence", "loss", "el2n", "label_margin")


def one_liners(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What a user would write, exp included."""
    rows = np.arange(len(labels_N))

    def el2n() -> np.ndarray:
        errors_NC = np.exp(log_probs_NC)
        errors_NC[rows, labels_N] -= 1
        return np.linalg.norm(errors_NC, axis=1)

    def margin() -> np.ndarray:
        probs_NC = np.exp(log_probs_NC)
        second_N, first_N = np.partition(probs_NC, -2, axis=1)[:, -2:].T
        return 1 - (first_N - second_N)

    return {
        "entropy": lambda: -(np.exp(log_probs_NC) * log_probs_NC).sum(axis=1),
        "el2n": el2n,
        "margin": margin,
        "loss": lambda: -log_probs_NC[rows, labels_N],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(size=(ROWS, CLASSES)).astype(np.float32) * 3
    log_probs_NC = torch.log_softmax(torch.from_numpy(logits_NC), 1).numpy()
    labels_N = rng.integers(0, CLASSES, ROWS)
    plain = one_liners(log_probs_NC, labels_N)

    def ours(name: str) -> Callable[[], np.ndarray]:
        return lambda: getattr(scores, name)(log_probs_NC, labels_N)

    def six() -> None:
        view = EpochView(log_probs_NC, labels_N)
        for name in SHARED:
            getattr(scores, name)(log_probs_NC, labels_N, epoch_view=view)

    values_M, ids_M = rng.random(SAMPLES, np.float32), np.arange(SAMPLES)
    classes_M, budget, none_C = rng.integers(0, CLASSES, SAMPLES), round(KEEP * SAMPLES), np.zeros(CLASSES, np.int64)
    variants = {
        **{f"numpy {name}": call for name, call in plain.items()},
        **{f"ours {name}": ours(name) for name in plain},
        "numpy exp alone": lambda: np.exp(log_probs_NC),
        "ours six scores": six,
        "numpy argsort": lambda: np.argsort(-values_M)[:budget],
        "ours top": lambda: select.top(values_M, classes_M, ids_M, budget, kept_C=none_C, seed=0),
    }
    seconds = interleaved(variants, rounds=args.rounds, most=args.rounds, clock=time.process_time)
    times = {name: ratio(seconds, f"numpy {name}", f"ours {name}") for name in plain}
    times["top beside argsort"] = ratio(seconds, "numpy argsort", "ours top")
    sums = [sum(values) for values in zip(*(seconds[f"numpy {name}"] for name in plain), strict=True)]
    times["six scores beside four one-liners"] = ratio({**seconds, "four": sums}, "four", "ours six scores")
    same = np.array_equal(
        np.sort(select.top(values_M, classes_M, ids_M, budget, kept_C=none_C, seed=0)),
        np.sort(np.lexsort((ids_M, -values_M))[:budget]),
    )
    write(
        args.json,
        {
            "conditions": conditions(torch.device("cpu"), args),
            "shapes": {"rows": ROWS, "classes": CLASSES, "samples": SAMPLES, "keep": KEEP},
            "cpu_seconds": {name: quartiles(values) for name, values in seconds.items()},
            "times_numpy": times,
            "top_keeps_the_same": bool(same),
        },
    )
    for name, found in times.items():
        print(f"{name}: {found['median']:.2f} times numpy ({found['q1']:.2f} to {found['q3']:.2f})")
    print(f"top keeps the same: {same}")


if __name__ == "__main__":
    main()
