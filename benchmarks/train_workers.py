"""What side-by-side workers and more threads gain: images a second of fold actors that train alone, in twos, and on two threads.

    alone    one worker of one thread
    pair     two workers of one thread, at the same time: two folds
    threads  one worker of two threads

python benchmarks/train_workers.py --json benchmarks/results/train_workers_cpu.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from timing import conditions, interleaved, quartiles, write
from train_speed import CPU_CASES, Case, PacedFold, pixels


def measure_case(case: Case, rounds: int, most: int) -> dict[str, Any]:
    images, labels = (ray.put(array) for array in pixels(case, case.images))
    with tempfile.TemporaryDirectory() as folder:

        def worker(name: str, threads: int) -> Any:
            actor = ray.remote(PacedFold).options(num_cpus=0)
            return actor.remote(case, images, labels, f"{folder}/{name}", threads)

        one, other, wide = worker("one", 1), worker("other", 1), worker("wide", 2)
        seconds = interleaved(
            {
                "alone": lambda: ray.get(one.epoch.remote()),
                "pair": lambda: ray.get([one.epoch.remote(), other.epoch.remote()]),
                "threads": lambda: ray.get(wide.epoch.remote()),
            },
            rounds=rounds,
            most=most,
            settle=lambda: ray.get([actor.settle.remote() for actor in (one, other, wide)]),
        )
        for actor in (one, other, wide):
            ray.kill(actor)
    images_of = {"alone": case.images, "pair": 2 * case.images, "threads": case.images}
    slower = [both / single for both, single in zip(seconds["pair"], seconds["alone"], strict=True)]
    return {
        "rounds": len(slower),
        "images_per_s": {name: quartiles([images_of[name] / s for s in values]) for name, values in seconds.items()},
        "pair/alone time": quartiles(slower),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--most", type=int, default=24)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    report: dict[str, Any] = {"conditions": conditions(torch.device("cpu"), args), "cases": {}}
    for case in CPU_CASES:
        if args.only in case.name:
            report["cases"][case.name] = found = measure_case(case, args.rounds, args.most)
            print(case.name, found, flush=True)
            write(args.json, report)


if __name__ == "__main__":
    main()
