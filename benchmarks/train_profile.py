"""Where the time of a training step goes: our loop under torch's profiler, by kind of operation.

python benchmarks/train_profile.py --json benchmarks/results/train_profile_cpu.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from timing import conditions, write
from torch.profiler import ProfilerActivity, profile
from train_speed import CPU_CASES, GPU_CASES, Case, Paced, pixels

from unseen_ray.training.hardware import resolve_precision

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "cudnn_convolution"),
    "batch norm": ("batch_norm",),
    "activation": ("threshold_backward", "clamp_min", "relu"),
    "pooling": ("pool2d",),
    "optimiser": ("sgd", "zero_grad", "Optimizer"),
    "batches: gather, augment": ("index_select", "aten::index", "where", "arange"),
    "batches: normalise; casts and copies": ("sub_", "div_", "copy_", "_to_copy", "aten::to"),
    "sums, memory, the rest": ("",),
}


def kind_of(name: str) -> str:
    return next(kind for kind, parts in KINDS.items() if any(part in name for part in parts))


def profile_case(case: Case, device: torch.device) -> dict[str, float]:
    """Share of the time of an epoch that each kind of operation took itself, the largest first."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder:
        training = Paced(case, *pixels(case, case.images), folder, device, resolve_precision("auto", device))
        training.epoch()
        training.settle()
        with profile(activities=activities) as profiled:
            training.epoch()
    return shares_of(profiled.key_averages(), on_gpu=on_gpu)


def shares_of(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """The share of each kind in the time that the profiler's events took themselves, on the GPU where there is one."""
    taken: dict[str, float] = defaultdict(float)
    for event in events:
        if not on_gpu:
            taken[kind_of(event.key)] += event.self_cpu_time_total
        elif event.key.startswith("aten::"):  # kernels, and the optimiser's step around its own, would count twice
            taken[kind_of(event.key)] += event.self_device_time_total
    whole = sum(taken.values())
    return {kind: round(time / whole, 4) for kind, time in sorted(taken.items(), key=lambda entry: -entry[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report: dict[str, Any] = {"conditions": conditions(device, args), "cases": {}}
    for case in GPU_CASES if device.type == "cuda" else CPU_CASES:
        report["cases"][case.name] = shares = profile_case(case, device)
        print(case.name, *(f"  {share:6.1%}  {kind}" for kind, share in shares.items()), sep="\n", flush=True)
    write(args.json, report)


if __name__ == "__main__":
    main()
