"""Seconds and peak memory of a choice from score shards, by number of samples, and whether it is that of the whole table.

    python benchmarks/scale.py selection --scratch /big/disk --json benchmarks/results/scale_selection_cpu.json

Shards are written as a run's scores are: Parquet parts of 4,194,304 rows, zstd, with page checksums. Scores are those of an entropy-like
spread, rounded for a tenth of the samples, so that many tie. Each choice is made in a process of its own, whose peak is told with its
imports; it ends with the last chosen id. CPU seconds are those of all its threads: what it would take on a machine without neighbours
is between half of them and all of them, on two cores. The slope is that of a line through the logarithms of sizes and seconds.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.limits import Limits
from unseen_ray.core import select
from unseen_ray.core.outofcore.chunks import Chunk, Memory
from unseen_ray.core.outofcore.select import choose
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import StoredTable, part_file

NAME = "scores.parquet"
PART_ROWS = Limits().rows_of_a_part
CHOICES: dict[str, dict[str, Any]] = {"top": {}, "class_balanced": {}, "ccs": {}}
COMPARED: dict[str, dict[str, Any]] = {
    "top": {},
    "random": {},
    "class_balanced": {},
    "class_floor": {},
    "class_quota": {},
    "ccs": {"cut": 0.1},
    "window": {},
    "moderate": {},
    "beta": {},
}
KEEP, SEED = 0.3, 0
WRITERS = 2


def add_to(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "selection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e7, 1e8, 1e9])
    parser.add_argument("--compared", type=float, default=1e7, help="samples, of which every policy is compared")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where shards lie for a while; up to 8 GB for 1e9 samples"
    )
    parser.add_argument("--json", type=Path, default=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Every size and choice, and the comparison before the last size."""
    rows: list[dict[str, Any]] = []
    equal: dict[str, bool] = {}
    for place, size in enumerate(map(int, args.sizes)):
        if place == len(args.sizes) - 1:  # the longest comes last, and what is known by then is in the report
            equal = compared(args)
            report(args, rows, equal)
        for row in measured(args, size):
            rows.append(row)
            print(row, flush=True)
            report(args, rows, equal)


def measured(args: argparse.Namespace, size: int) -> Iterator[dict[str, Any]]:
    """Each choice from shards of one size, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="scale-selection-") as scratch:
        began = time.perf_counter()
        written(Path(scratch), size, args.classes, probs=False)
        disk_gb = sum(path.stat().st_size for path in Path(scratch).rglob("*.parquet")) / 1e9
        print(f"{size:,} samples: {disk_gb:.2f} GB written in {time.perf_counter() - began:.0f} s", flush=True)
        for policy in ("", *CHOICES):
            asked = {
                "folder": scratch,
                "policy": policy,
                "samples": size,
                "classes": args.classes,
                "threads": args.threads,
            }
            line = [sys.executable, __file__, json.dumps(asked)]  # without what the other subcommands import
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
            yield {"samples": size, "disk_gb": round(disk_gb, 2), **json.loads(done.stdout.splitlines()[-1])}


def report(args: argparse.Namespace, rows: list[dict[str, Any]], equal: dict[str, bool]) -> None:
    import torch
    from timing import conditions, write

    called = argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in ("run", "scratch")})
    write(
        args.json,
        {
            "conditions": conditions(torch.device("cpu"), called),
            "keep": KEEP,
            "classes": args.classes,
            "compared": {"samples": int(args.compared), "equal": equal},
            "exponents": {clock: exponents(rows, clock) for clock in ("seconds", "cpu_seconds")},
            "rows": rows,
        },
    )


def exponents(rows: list[dict[str, Any]], clock: str) -> dict[str, float]:
    """By choice, the slope of a line through the logarithms of sizes and of times."""
    slopes = {}
    for policy in CHOICES:
        its = [row for row in rows if row["policy"] == policy]
        if len(its) > 1:
            sizes, times = (np.log([row[name] for row in its]) for name in ("samples", clock))
            slopes[policy] = round(float(np.polyfit(sizes, times, 1)[0]), 3)
    return slopes


def written(folder: Path, samples: int, classes: int, *, probs: bool) -> None:
    """Score shards, by two generators side by side."""
    target = Folder(str(folder))

    def write(number: int) -> None:
        rng = np.random.default_rng((7, number))
        begin = number * PART_ROWS
        rows = min(PART_ROWS, samples - begin)
        scores = -np.log(rng.random(rows, np.float32) + np.float32(1e-6))
        tied = rng.random(rows, np.float32) < 0.1
        scores[tied] = np.round(scores[tied], 1)
        columns = {"id": np.arange(begin, begin + rows), "label": rng.integers(0, classes, rows), "entropy": scores}
        if probs:
            columns["p_label"] = rng.random(rows, np.float32)
        target.write_table(part_file(NAME, number), pa.table(columns))

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(-(-samples // PART_ROWS))))


def table_of(folder: Path, samples: int) -> StoredTable:
    return StoredTable(Folder(str(folder)), NAME, {part_file(NAME, n): "" for n in range(-(-samples // PART_ROWS))})


def chunks(table: StoredTable, columns: Sequence[str]) -> Iterator[Chunk]:
    for batch in table.batches(["entropy" if name == "score" else name for name in columns]):
        yield {name: column.to_numpy() for name, column in zip(columns, batch.columns, strict=True)}


def alone(folder: str, policy: str, samples: int, classes: int, threads: int) -> dict[str, Any]:
    """One choice in this process; without a policy the shards are read once, which leaves them in the page cache as far as they fit."""
    table = table_of(Path(folder), samples)
    began, worked = time.perf_counter(), time.process_time()
    if policy:
        given = {"kept_C": np.zeros(classes, np.int64), "seed": SEED, "options": CHOICES[policy]}
        shards = functools.partial(chunks, table)
        chosen = choose(policy, shards, round(KEEP * samples), **given, memory=Memory(threads=threads))
        found = sum(len(chunk["id"]) for chunk in chosen.rows(shards, ("id",)))
        assert found == round(KEEP * samples)
    else:
        for _ in table.batches():
            pass
    return {
        "policy": policy or "one pass",
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - worked, 2),
        "peak_mb": peak_mb(),
    }


def peak_mb() -> int:
    """Of this process alone: what getrusage says is not below what its parent held when it began."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)


def compared(args: argparse.Namespace) -> dict[str, bool]:
    """By policy, whether the ids are those that it chooses of the whole table."""
    samples, budget = int(args.compared), round(KEEP * args.compared)
    equal = {}
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="scale-selection-") as scratch:
        written(Path(scratch), samples, args.classes, probs=True)
        table = table_of(Path(scratch), samples)
        whole = pa.Table.from_batches(list(table.batches()))
        ids, labels, scores, probs = (whole.column(name).to_numpy() for name in ("id", "label", "entropy", "p_label"))
        shards = functools.partial(chunks, table)
        for policy, options in COMPARED.items():
            given: dict[str, Any] = {"kept_C": np.arange(args.classes), "seed": SEED}
            more = {"p_label_M": probs} if policy == "beta" else {}
            picked = getattr(select, policy)(scores, labels, ids, budget, **given, **more, **options)
            chosen = choose(policy, shards, budget, **given, options=options)
            found = np.concatenate([chunk["id"] for chunk in chosen.rows(shards, ("id",))])
            equal[policy] = bool(np.array_equal(found, np.sort(ids[picked])))
            print(
                f"{samples:,} samples, {policy}: {'as' if equal[policy] else 'NOT AS'} from the whole table", flush=True
            )
    return equal


if __name__ == "__main__":
    print(json.dumps(alone(**json.loads(sys.argv[1]))))
