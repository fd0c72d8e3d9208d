"""What a recipe reaches on a whole data set, and in what time: accuracy on the test set after the last epoch, several seeds.

python benchmarks/train_accuracy.py --source data/cifar10-train.parquet --test data/cifar10-test.parquet --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.id_sets import AllIds
from unseen_ray.core.tasks import EvalTask
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.execution.local import LocalExecutor
from unseen_ray.runs.tasks import Progress, make_job


def say(event: Any) -> None:
    if isinstance(event, Progress) and event.done:
        print(
            f"{event.task}: epoch {event.done}/{event.total} accuracy {event.accuracy:.4f} {event.images_per_s:.0f}/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--limit", type=int, default=None, help="train on the first so many samples")
    parser.add_argument(
        "--model", type=yaml.safe_load, help="a name, or {use: name, option: value}; default: by the size"
    )
    parser.add_argument("--recipe", type=yaml.safe_load, default="quick", help="a name, or {use: name, field: value}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    source: dict[str, Any] = {"use": "parquet", "path": args.source}
    if args.limit:
        source["limit"] = args.limit
    with tempfile.TemporaryDirectory() as out:
        asked = ur.PruneConfig(
            source=source,
            keep=0.5,
            test=args.test,
            recipe=args.recipe,
            model=args.model,
            threads=args.threads,
            executor="local",
            out=out,
        )
        opened = open_source(source_ref(asked.source))
        resolved = ResolvedRun.of(asked, opened.info.size_px)
        executor = LocalExecutor()
        prepared = executor.prepare(make_job(resolved, opened.info), opened)
        tasks = [
            EvalTask(index=place, arm="full", selection=0, repeat=seed, train=AllIds())
            for place, seed in enumerate(args.seeds)
        ]
        results = executor.evaluate(tasks, say)
    accuracies = [result.accuracy for result in results]
    report = {
        "conditions": conditions(torch.device("cuda" if torch.cuda.is_available() else "cpu"), args),
        "source": Path(args.source).name,
        "samples": results[0].trained,
        "model": resolved.config.model,
        "recipe": prepared.job.config.recipe.model_dump(),
        "seeds": args.seeds,
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seconds": [result.seconds for result in results],
    }
    print({name: report[name] for name in ("model", "samples", "accuracies", "seconds")})
    write(args.json, report)


if __name__ == "__main__":
    main()
