"""A sweep with its wall time, for the tables; or what a trial costs beside its trainings, against a bare loop.

python benchmarks/sweep.py benchmarks/sweeps/cifar10_10k_cpu.yaml --source data/cifar10-train.parquet \
    --json benchmarks/results/sweep_cifar10_10k_cpu.json
python benchmarks/sweep.py benchmarks/sweeps/digits_overhead.yaml --bare --json benchmarks/results/sweep_overhead_cpu.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.cli.summary.sweep import sweep_values
from unseen_ray.config.run import load_yaml
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.execution.ray.connect import ray_session
from unseen_ray.plugins import jsonable
from unseen_ray.sweeps.trials import planned_trials


def main() -> None:
    args = arguments()
    fields = load_yaml(args.sweep)
    if args.source:
        own = fields["run"].get("source")
        fields["run"]["source"] = {**(own if isinstance(own, dict) else {}), "path": args.source}
    out = args.out or f"runs/sweep-{args.sweep.stem}"
    report: dict[str, Any] = {"conditions": conditions(torch.device("cpu"), args), "sweep": fields}
    if args.bare:
        with tempfile.TemporaryDirectory() as scratch, ray_session(None):
            report |= against_a_bare_loop(fields, Path(scratch), args.rounds)
    else:
        began = time.monotonic()
        result = ur.sweep(
            ur.SweepConfig(**{**fields, "out": out}),
            on_end=lambda record: print(record.knobs, record.status, flush=True),
        )
        report |= {"wall_s": round(time.monotonic() - began, 1), **rows_of(result)}
    report["sweep"] = jsonable(fields)
    if args.source:
        report["sweep"]["run"]["source"]["path"] = Path(args.source).name
    write(args.json, report)


def rows_of(result: ur.SweepResult) -> dict[str, Any]:
    values = sweep_values(result)
    trials = [
        {
            "knobs": jsonable(record.knobs),
            "status": record.status,
            "kept": record.kept,
            "accuracies": record.accuracies,
            "baselines": record.baselines,
            "choosing_seconds": record.choosing_seconds,
            "gpu_seconds": record.gpu_seconds,
            "seconds": record.seconds,
        }
        for record in result.records
    ]
    kept = ("finished", "failed", "reused", "best", "importances", "trainings")
    return {**{name: values[name] for name in kept}, "trials": trials}


def against_a_bare_loop(fields: dict[str, Any], scratch: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a trial whose trainings take next to nothing: by a sweep of one trial at a time, and by prune and evaluate in a loop."""
    sweep_s, loop_s = [], []
    for number in range(rounds):
        config = ur.SweepConfig(**{**fields, "out": str(scratch / f"sweep-{number}"), "max_concurrent_trials": 1})
        began = time.monotonic()
        result = ur.sweep(config)
        sweep_s.append((time.monotonic() - began) / len(result.records))
        trials, _ = planned_trials(config, open_source(source_ref(fields["run"]["source"])).info)
        began = time.monotonic()
        for place, trial in enumerate(trials):
            done = ur.prune(ur.PruneConfig(**given(trial.runs[0]), out=str(scratch / f"loop-{number}-{place}")))
            ur.evaluate(done, seeds=1, against=config.against)
        loop_s.append((time.monotonic() - began) / len(trials))
        print(f"round {number}: {sweep_s[-1]:.2f} s a trial by the sweep, {loop_s[-1]:.2f} s by the loop", flush=True)
    seconds = {
        name: {"median": round(statistics.median(its), 2), "all": its}
        for name, its in (("sweep", sweep_s), ("loop", loop_s))
    }
    return {"trials": len(trials), "seconds_a_trial": seconds}


def given(run: ur.PruneConfig) -> dict[str, Any]:
    return {name: getattr(run, name) for name in run.model_fields_set - {"out", "address"}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--source", help="path or URI of the data, in place of the sweep's")
    parser.add_argument("--out", help="the sweep's folder")
    parser.add_argument("--bare", action="store_true", help="against a bare loop over the same configurations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
