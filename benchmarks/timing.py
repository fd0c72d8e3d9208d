"""What the timing benchmarks share: interleaved rounds, quartiles, and the conditions that a figure holds under."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unseen_ray.training.hardware import describe_hardware

Round = Callable[[], object]


def interleaved(
    variants: Mapping[str, Round],
    *,
    rounds: int,
    most: int,
    settle: Round | None = None,
    wide: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; every variant has its turn in each, in another order each time.

    Args:
        variants: what to time, by name.
        rounds: how many rounds at least.
        most: how many at most, while the quartiles of a variant lie further apart than `wide` of its median.
        settle: called after each variant, off the clock, so that nothing of it runs on in the next one's time.
        wide: see `most`.
        clock: seconds on the wall, or the process's on its CPUs, which neighbours disturb less.
    """
    for warm_up in variants.values():
        warm_up()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names, order = list(variants), random.Random(0)
    while len(seconds[names[0]]) < most:
        done = len(seconds[names[0]])
        if done >= rounds and all(spread(values) <= wide for values in seconds.values()):
            break
        for name in order.sample(names, len(names)):
            began = clock()
            variants[name]()
            seconds[name].append(clock() - began)
            if settle is not None:
                settle()
    return seconds


def spread(values: list[float]) -> float:
    """Distance of the quartiles as a share of the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": float(f"{middle:.4g}"), "q1": float(f"{low:.4g}"), "q3": float(f"{high:.4g}")}


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """How many times faster `over` was than `under`, round by round."""
    return quartiles([slow / fast for slow, fast in zip(seconds[under], seconds[over], strict=True)])


def conditions(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions, the commit, and how the benchmark was called."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    apart = ("json", "source", "test", "out")  # where things lie on this machine
    called = {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in apart
    }
    return {
        **describe_hardware(device),
        "ray": _version_of_ray(),
        "cpus": os.cpu_count(),
        "called_with": called,
        "commit": commit.stdout.strip(),
        "system": platform.platform(terse=True),
        "date": time.strftime("%Y-%m-%d"),
    }


def _version_of_ray() -> str | None:
    try:
        return version("ray")
    except PackageNotFoundError:  # a benchmark with --no-ray needs none
        return None


def write(path: Path | None, report: Mapping[str, Any]) -> None:
    """Put a report on disk, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
