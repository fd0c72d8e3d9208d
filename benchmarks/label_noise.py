"""What guards are worth on labels that are known to be wrong: which flips they find, which the coreset holds, and its accuracy.

A fifth of the labels of the first 10,000 images of CIFAR-10 is flipped, in the two ways of flawed_data.py. Out-of-fold scores choose with
and without guards, and one recipe is trained on each choice and measured on the clean test set after the last epoch. A seed is that of
noise, choice and training. The same line resumes.

python benchmarks/label_noise.py --source data/cifar10-train.parquet --test data/cifar10-test.parquet \
    --json benchmarks/results/label_noise_cifar10_cpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from flawed_data import FLIPPED, NOISES, noisy, write_rows
from suite import noted_start, say
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.seeds import derive
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.evaluation.arms import ArmSubsets
from unseen_ray.evaluation.baselines import random_subset
from unseen_ray.evaluation.table import Arm, Evaluation, differences_of
from unseen_ray.evaluation.trainings import train_and_measure
from unseen_ray.execution.api import executor_for
from unseen_ray.runs.run import choosing_s
from unseen_ray.storage.checked_json import without_nan

SAMPLES, KEEP = 10_000, 0.7
FIELDS: dict[str, Any] = {
    "scoring": {"share": 1},
    "keep": KEEP,
    "folds": 4,
    "policy": "top",
    "model": "small_cnn",
    "threads": 1,
    "save_probs": True,
    "executor": "local",
    "log_to": "none",
}
RECIPE: dict[str, Any] = {"use": "quick", "epochs": 12}
SCORES = ("entropy", "loss")
CUTS = (0.05, 0.1, 0.2, 0.3)
NONE, RANDOM, FULL = "none", "random", "full"
GUARDS: dict[str, Any] = {
    NONE: NONE,
    "confident_learning": "confident_learning",
    **{f"label_margin {cut:g}": {"use": "label_margin", "cut": cut} for cut in CUTS},
}
TRAINED = (NONE, "confident_learning", "label_margin 0.2")
"""The guards whose choices are trained."""


@dataclass(frozen=True)
class Case:
    """One kind of noise with one seed, and the folder of all that is made of it."""

    noise: str
    seed: int
    args: argparse.Namespace

    @property
    def recipe(self) -> dict[str, Any]:
        """Of scoring and of training."""
        return RECIPE if self.args.try_on is None else {**RECIPE, "epochs": 1, "min_steps": 0}

    @functools.cached_property
    def folder(self) -> Path:
        """Named by all that it depends on, so that a changed benchmark finds nothing of what it was before."""
        source = Path(self.args.source)
        count = self.args.try_on or SAMPLES
        said = [self.noise, self.seed, count, FLIPPED, self.recipe, FIELDS, source.name, source.stat().st_size]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
        return Path(self.args.out, f"{self.noise}-{self.seed}-{digest}")

    @functools.cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) true and (N,) given labels; writes the Parquet file that has the given ones, where it is not there."""
        path = self.folder / "noisy.parquet"
        if not path.exists():
            rows = pq.read_table(self.args.source).slice(0, self.args.try_on or SAMPLES)
            write_rows(noisy(rows, self.noise, self.seed), path)
        table = pq.read_table(path, columns=["true_label", "label"])
        return table.column(0).to_numpy(), table.column(1).to_numpy()

    @property
    def flipped(self) -> np.ndarray:
        """(N,) bool, whose label is wrong."""
        true_N, noisy_N = self.labels
        wrong_N: np.ndarray = true_N != noisy_N
        return wrong_N

    def config(self, **more: Any) -> ur.PruneConfig:
        """The run that scores the noisy labels; what is measured goes into its folder too."""
        assert len(self.labels)
        source = {"use": "parquet", "path": str(self.folder / "noisy.parquet")}
        out = str(self.folder / "run")
        return ur.PruneConfig(source=source, recipe=self.recipe, seed=self.seed, out=out, **FIELDS, **more)

    @functools.cached_property
    def run(self) -> ur.PruneResult:
        """The folds trained, and everything scored; what is there already is not done again."""
        began = time.monotonic()
        result = ur.prune(self.config())
        print(f"{self.folder.name}: scored in {time.monotonic() - began:.0f} s", flush=True)
        return result

    def choice(self, score: str, guard: str) -> ur.PruneResult:
        """What `top` keeps by a score with a guard, chosen without training."""
        out = self.folder / f"{score} {guard}".replace(" ", "-")
        with contextlib.suppress(ur.ConfigError):  # it has not been chosen
            return ur.load(out)
        return ur.select(self.run, keep=KEEP, score=score, guard=GUARDS[guard], out=out)

    @functools.cached_property
    def drawn(self) -> np.ndarray:
        """Sorted ids of as many images at random."""
        count = len(self.flipped)
        return random_subset(np.arange(count), round(KEEP * count), derive(self.seed, "suite random"))

    def evaluated(self) -> Evaluation:
        """Each choice trained once, and measured on clean labels."""
        cost = choosing_s(self.run.manifest)
        chosen = {
            arm_name(score, guard): ArmSubsets((self.choice(score, guard).coreset.ids,), cost)
            for score in SCORES
            for guard in TRAINED
        }
        chosen[RANDOM] = ArmSubsets((self.drawn,), 0.0)
        test = {"use": "parquet", "path": str(self.args.test), "limit": self.args.try_on}
        config = self.config(test=test)
        with executor_for(config, len(chosen) + 1) as executor:
            return train_and_measure(
                ResolvedRun.of(config, open_source(source_ref(config.source)).info.size_px),
                chosen,
                against=[*list(chosen)[1:], FULL],
                skipped_ids=np.empty(0, np.int64),
                seeds=1,
                budget="epochs",
                executor=executor,
                on_event=say,
            )


def arm_name(score: str, guard: str) -> str:
    return f"{score}, {guard}"


def guard_row(cases: list[Case], guard: str) -> dict[str, Any]:
    """How well a guard finds the flips, for each seed."""
    found = []
    for case in cases:
        suspects = case.choice(SCORES[0], guard).scores.column("suspect").to_numpy()
        caught = int((suspects & case.flipped).sum())
        found.append((int(suspects.sum()), caught, int(case.flipped.sum())))
    return {
        "noise": cases[0].noise,
        "guard": guard,
        "suspects": [count for count, _, _ in found],
        "recall": [caught / flipped for _, caught, flipped in found],
        "precision": [caught / count if count else None for count, caught, _ in found],
    }


def choice_rows(cases: list[Case], tables: list[Evaluation]) -> Iterator[dict[str, Any]]:
    """What the coresets hold of the flips, and what models of them reach."""
    arms = {name: joined([by_name(table, name) for table in tables]) for name in (arm.name for arm in tables[0].arms)}
    everything = [np.arange(len(case.flipped)) for case in cases]
    plain = [(FULL, FULL, None, None, everything), (RANDOM, RANDOM, None, None, [case.drawn for case in cases])]
    guarded = [
        (arm_name(score, guard), "unseen", score, guard, [case.choice(score, guard).coreset.ids for case in cases])
        for score in SCORES
        for guard in GUARDS
    ]
    for name, method, score, guard, subsets in plain + guarded:
        held = [int(case.flipped[ids].sum()) for case, ids in zip(cases, subsets, strict=True)]
        yield {
            "noise": cases[0].noise,
            "method": method,
            "score": score,
            "guard": guard,
            "samples": len(subsets[0]),
            "flips": held,
            "share_of_flips": statistics.fmean(h / int(c.flipped.sum()) for h, c in zip(held, cases, strict=True)),
            "share_of_coreset": statistics.fmean(h / len(ids) for h, ids in zip(held, subsets, strict=True)),
            "trained": measured(arms[name]) if name in arms else None,
            "less_random": against(arms, name, RANDOM),
            "less_unguarded": against(arms, name, "" if score is None else arm_name(score, NONE)),
        }


def by_name(table: Evaluation, name: str) -> Arm:
    return next(arm for arm in table.arms if arm.name == name)


def joined(arms: list[Arm]) -> Arm:
    """One arm of those of several seeds, each with a choice of its own."""
    accuracies = tuple(accuracy for arm in arms for accuracy in arm.accuracies)
    seconds = sum(arm.seconds for arm in arms)
    return replace(arms[0], selections=len(arms), accuracies=accuracies, seconds=seconds)


def measured(arm: Arm) -> dict[str, Any]:
    std = arm.std if len(arm.accuracies) > 1 else None
    return {"accuracies": arm.accuracies, "mean": arm.mean, "std": std, "seconds": round(arm.seconds, 1)}


def against(arms: dict[str, Arm], name: str, other: str) -> dict[str, float] | None:
    """By how much an arm is better than another one, seed by seed, with a 95 % interval; None where there is none such."""
    if name == other or name not in arms or other not in arms:
        return None
    (found,) = differences_of([arms[name], arms[other]])
    return {"mean": found.mean, "low": found.low, "high": found.high}


def report_of(args: argparse.Namespace) -> dict[str, Any]:
    noises, guards, choices = {}, [], []
    for noise in NOISES:
        cases = [Case(noise, seed, args) for seed in args.seeds]
        tables = [case.evaluated() for case in cases]
        guards += [guard_row(cases, guard) for guard in GUARDS if guard != NONE]
        choices += choice_rows(cases, tables)
        accuracies = [case.run.manifest.stages[0]["accuracy"] for case in cases]  # of naming the given labels, unseen
        noises[noise] = {"flips": [int(case.flipped.sum()) for case in cases], "scoring_accuracy": accuracies}
    data = {"source": Path(args.source).name, "samples": len(cases[0].flipped), "test_samples": tables[0].test_samples}
    shared = {"fields": FIELDS, "model": tables[0].model, "recipe": tables[0].recipe, "seeds": args.seeds}
    return {"data": data, **shared, "noises": noises, "guards": guards, "choices": choices}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="CIFAR-10's training set as Parquet")
    parser.add_argument("--test", required=True, help="its test set, whose labels stay as they are")
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs  [default: runs/label_noise]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--try_on", type=int, metavar="N", help="one epoch on the first N images, to see that all runs")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    args.out = args.out or Path("runs", "label_noise" + ("-tried" if args.try_on else ""))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began, starts = time.monotonic(), noted_start(args.out, device)
    report = report_of(args)
    seconds = round(time.monotonic() - began, 1)
    report = {
        "conditions": {**conditions(device, args), "starts": starts, "seconds_of_this_start": seconds},
        **report,
    }
    write(args.json, without_nan(json.loads(json.dumps(report, default=str))))
    for row in report["choices"]:
        reached = "" if row["trained"] is None else f", accuracy {row['trained']['mean']:.4f}"
        name = " ".join(filter(None, (row["noise"], row["method"], row["score"], row["guard"])))
        print(f"{name}: {row['share_of_coreset']:.1%} of it are flips{reached}")


if __name__ == "__main__":
    main()
