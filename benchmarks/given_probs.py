"""What `score` and a guard take for probabilities of ImageNet's size, beside cleanlab on the same file.

    python benchmarks/given_probs.py --scratch DISK --json benchmarks/results/given_probs_cpu.json

The probabilities are made up: each sample has a class, its label is another in 5 % of all, and the logit of its class is raised by a
number that differs from sample to sample. The file has 5.1 GB, and `score` writes as much again where it stores probabilities.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import watched
from timing import conditions, write

ROWS = 2**13

CLEANLAB = """
import resource, sys, numpy as np
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[5]), int(sys.argv[5])))
from cleanlab.filter import find_label_issues
probs, labels = (np.load(path, mmap_mode="r" if path.endswith("probs.npy") else None) for path in sys.argv[1:3])
found = find_label_issues(labels, probs, filter_by=sys.argv[3], n_jobs=1)
np.save(sys.argv[4], found)
"""


def make(folder: Path, samples: int, classes: int) -> list[str]:
    """Write the probabilities and the labels; the lines' arguments."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, samples)
    labels = np.where(rng.random(samples) < 0.05, rng.integers(0, classes, samples), truth)
    np.save(folder / "labels.npy", labels)
    probs = np.lib.format.open_memmap(folder / "probs.npy", "w+", np.float32, (samples, classes))
    for start in range(0, samples, ROWS):
        some = truth[start : start + ROWS]
        logits = rng.normal(size=(len(some), classes)).astype(np.float32)
        logits[np.arange(len(some)), some] += rng.normal(8, 3, len(some)).astype(np.float32)
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs[start : start + ROWS] = values / values.sum(axis=1, keepdims=True)
    probs.flush()
    return ["--probs", str(folder / "probs.npy"), "--labels", str(folder / "labels.npy")]


def ran(name: str, line: list[str]) -> dict[str, Any]:
    """A command's seconds and the most memory that it held; how it ended, if it failed."""
    began = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        peak = watched(process)["driver"]
    row = {"command": name, "seconds": round(time.perf_counter() - began, 1)}
    row |= {"ended_with": process.returncode} if process.returncode else {}
    row |= peak
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder for 16 GB")
    parser.add_argument(
        "--cleanlab_gb", type=float, default=18, help="of address space that cleanlab gets; 0 leaves it out"
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    given = make(args.scratch, args.samples, args.classes)
    ours = [sys.executable, "-m", "unseen_ray"]
    rows = [ran("python -m unseen_ray --help", [*ours, "--help"])]
    out = str(args.scratch / "scored")
    for more in ([], ["--guard", "confident_learning"], ["--guard", "prune_by_noise_rate"]):
        for kept in ("false", "true"):
            shutil.rmtree(out, ignore_errors=True)
            line = ["score", "--save_probs", kept, *more]
            rows.append(ran(" ".join(line), [*ours, *line, *given, "--out", out]))
    for more in (["--guard", "confident_learning"], ["--combine", "mean_prob"], ["--combine", "rank_mean"]):
        line = ["select", out, "--keep", "0.7", "--policy", "top", *more]
        rows.append(ran(" ".join(["select", *more]), [*ours, *line, "--out", str(args.scratch / more[1])]))
    if args.cleanlab_gb:
        for name in ("confident_learning", "prune_by_noise_rate"):
            line = [
                "-c",
                CLEANLAB,
                given[1],
                given[3],
                name,
                str(args.scratch / f"cleanlab-{name}.npy"),
                str(int(args.cleanlab_gb * 1e9)),
            ]
            rows.append(ran(f"cleanlab's {name}", [sys.executable, *line]))
    report = {
        "conditions": conditions(torch.device("cpu"), args),
        "samples": args.samples,
        "classes": args.classes,
        "file_gb": round(args.samples * args.classes * 4 / 1e9, 2),
        "rows": rows,
    }
    write(args.json, report)


if __name__ == "__main__":
    main()
