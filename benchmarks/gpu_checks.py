"""What `gpu_evidence.py` checks, in order of worth, and how one check runs: in this module's process, its findings written as they come.

A check is a generator; it gives what it has found piece by piece, as a sentence and values, and raises where something is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Found = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Place:
    """Where a check finds its data and keeps what it resumes from; `small` is a try on whatever machine this is."""

    state: Path
    data: Path
    small: bool


@dataclass(frozen=True)
class Check:
    """A function `module:name` and its options; the seconds that it takes on a GPU of 2023, and in little on two cores."""

    name: str
    call: str
    seconds: float
    small_s: float = 30
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # cuda, a module, or a file of the data folder
    resumes: bool = False
    in_small: bool = True

    @property
    def file(self) -> str:
        """The name of its record."""
        return self.name.replace(" ", "-") + ".json"


CIFAR10 = ("cifar10-train.parquet", "cifar10-test.parquet")
TINY = ("tinyimagenet50-train.parquet", "tinyimagenet50-val.parquet")
COMPILED = [("resnet18_cifar", batch) for batch in (512, 128, 64, 1024)] + [("small_cnn", batch) for batch in (512, 64)]

FAST = ("airbench", "airbench-94")
ACCURACY = [
    Check(
        f"accuracy {recipe}",
        "gpu_speed:on_all_of_cifar10",
        seconds,
        options={"model": {"use": "airbench", "width": width}, "recipe": recipe, "seeds": seeds},
        needs=CIFAR10,
    )
    for recipe, width, seeds, seconds in (("airbench-94", 64, 5, 90), ("airbench-95", 96, 2, 120))
]

SPEED = [
    Check(
        "speed airbench",
        "gpu_speed:small_images",
        25,
        options={"model": FAST[0], "named": FAST[1], "batches": (1024, 512)},
    ),
    Check("speed small_cnn", "gpu_speed:small_images", 25, options={"model": "small_cnn"}),
    Check(
        "speed small_cnn without graphs",
        "gpu_speed:small_images",
        15,
        options={"model": "small_cnn", "graphs": False, "batches": (64, 512)},
    ),
    Check("speed resnet18", "gpu_speed:small_images", 30, options={"model": "resnet18_cifar"}),
    Check("speed resnet50", "gpu_speed:large_images", 70),
    *(
        Check(
            f"speed {model} compiled {batch}",
            "gpu_speed:small_images",
            45,
            options={"model": model, "batches": (batch,), "compiled": True},
            small_s=60,
            in_small=(model, batch) == COMPILED[-1],
        )
        for model, batch in COMPILED
    ),
]

IDS = [
    Check("ids locally", "gpu_ids:locally", 40, needs=CIFAR10[:1]),
    Check("ids killed", "gpu_ids:killed", 40, needs=CIFAR10[:1]),
    Check("ids on ray", "gpu_ids:on_ray", 50, needs=("ray", *CIFAR10[:1])),
    Check("ids on a quarter", "gpu_ids:on_ray", 50, options={"share": 0.25}, needs=("cuda", "ray", *CIFAR10[:1])),
]

CLAIMS = [
    Check(
        f"claims {name} keep {keep} seeds {seeds}",
        "gpu_claims:one_keep",
        seconds,
        small_s=90,
        options={"suite": f"gpu_{name}", "data": files, "seeds": seeds, "keep": keep},
        needs=files,
        resumes=True,
        in_small=(seeds, keep) == (1, 0.7),
    )
    for name, files, seconds in (("airbench", CIFAR10, 150), ("cifar10", CIFAR10, 450), ("tinyimagenet50", TINY, 400))
    for seeds in (1, 2, 3)
    for keep in (0.7, 0.5, 0.9, 0.3)
]

LIMITS = [
    Check("limits precisions", "gpu_limits:precisions", 30),
    Check("limits memory", "gpu_limits:memory", 35, needs=("cuda",)),
    Check("limits nccl", "gpu_limits:group_of_one", 20),
    Check("limits out of memory", "gpu_limits:out_of_memory", 25, needs=("cuda", *CIFAR10[:1])),
    Check("limits planned rates", "gpu_limits:planned_rates", 40, needs=CIFAR10[:1]),
]

CHECKS = [
    Check("tests", "gpu_checks:tests", 60, needs=("pytest",)),
    *SPEED[:1],
    *ACCURACY,
    *SPEED[1:],
    *IDS,
    *CLAIMS,
    *LIMITS,
]


def tests(place: Place) -> Found:
    """The tests marked gpu, by the files that have some: without Ray, others could not be collected."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "-rf", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    yield done.stdout.strip().splitlines()[-1], {"failed": done.returncode != 0}
    if done.returncode:
        raise SystemExit(f"pytest ended with {done.returncode}")


def abort(place: Place) -> Found:
    """Crashes, by which the runner is tested."""
    print("about to abort", flush=True)
    yield "halfway", {"half": True}
    os.abort()


def hang(place: Place) -> Found:
    """Does not end, likewise."""
    while True:
        time.sleep(1)
        yield "still here", {}


HIDDEN = [Check("abort", "gpu_checks:abort", 1, small_s=1), Check("hang", "gpu_checks:hang", 1, small_s=1)]


def conditions_here() -> dict[str, Any]:
    """Card, versions and commit; `importable` says which of the optional modules can be imported."""
    import torch
    from timing import conditions

    gpu = torch.cuda.is_available()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split() if gpu else []
    here = conditions(torch.device("cuda" if gpu else "cpu"), argparse.Namespace())
    return {
        **{name: value for name, value in here.items() if name != "called_with"},
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "driver": driver[0] if driver else None,
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if gpu else None,
        "code": _digest_of_code(),
        "importable": [name for name in ("ray", "pytest") if _can_import(name)],
    }


def _digest_of_code() -> str:
    """Of the package's sources: a copied tree has no commit, and one that is worked on has several versions of one."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "unseen_ray").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def run_one(check: Check, place: Place, into: Path) -> None:
    """Run a check in this process; `into` has all that it found so far, whatever becomes of it."""
    module, name = check.call.split(":")
    says: list[str] = []
    found: dict[str, Any] = {}
    for sentence, values in getattr(importlib.import_module(module), name)(place, **check.options):
        says.append(sentence)
        found.update(values)
        write_whole(into, {"says": says, "found": found})


def write_whole(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, default=str) + "\n")
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="the check to run  [default: none, the conditions are printed]")
    parser.add_argument("--into", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.name is None:
        print(json.dumps(conditions_here()))
        return
    check = next(check for check in [*CHECKS, *HIDDEN] if check.name == args.name)
    run_one(check, Place(args.state, args.data, args.small), args.into)


if __name__ == "__main__":
    main()
