"""The paper's claims on data at hand: accuracy, rank agreement, dispersion and classes, over methods, scores, keeps and seeds.

A suite is a YAML file: `methods` are fields of a run by name, `rows` say which of them choose by which score at which keep. Methods
that differ only in what follows their scores share the training of stage 0. Every choice is trained by one recipe, once a seed, and
measured after the last epoch, on the test set or, with `held_out: [first, end]`, on rows of the source. The same line resumes.

python benchmarks/suite.py benchmarks/suites/cifar10_20k_cpu.yaml --source data/cifar10-train.parquet \
    --test data/cifar10-test.parquet --json benchmarks/results/cifar10_20k_cpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.seeds import derive
from unseen_ray.core.stats import common_range, correlation, fullest_bin, rank_correlation
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.evaluation.arms import ArmSubsets
from unseen_ray.evaluation.baselines import random_subset
from unseen_ray.evaluation.evaluate import resampled_arm, subsets_of
from unseen_ray.evaluation.table import Arm, Evaluation, break_even_of, differences_of
from unseen_ray.evaluation.trainings import train_and_measure
from unseen_ray.execution.api import executor_for
from unseen_ray.runs.tasks import Progress
from unseen_ray.storage.checked_json import without_nan

RANDOM, FULL = "random", "full"
SHARED = ("model", "recipe", "scoring", "threads")
AFTER_SCORING = ("schedule", "policy", "guard", "combine", "resampled")
"""Fields of a method that change what follows stage 0, not its training. `resampled: 0.5` trains on half of what is chosen, and draws
the others anew in each epoch, as `ur.KeptSampler` does."""


@dataclass(frozen=True)
class Choice:
    """A method that chose by a score at a keep."""

    method: str
    score: str
    keep: float

    @property
    def name(self) -> str:
        """How the results call it."""
        return " ".join([self.method, *([] if self.method == RANDOM else [self.score]), f"{self.keep:g}"])


@dataclass
class Suite:
    """A suite with the data that it runs on."""

    asked: dict[str, Any]
    args: argparse.Namespace
    info: Any = field(init=False)

    def __post_init__(self) -> None:
        self.info = open_source(source_ref(self.fields()["source"])).info

    def fields(self, **changes: Any) -> dict[str, Any]:
        """Fields that every run of the suite shares, and more."""
        source = {"use": "parquet", **self.asked.get("source", {})}
        source["root" if source["use"] in ("cifar10", "cifar100", "imagenet") else "path"] = self.args.source
        return {"source": source, **{name: self.asked[name] for name in SHARED if name in self.asked}, **changes}

    @property
    def seeds(self) -> list[int]:
        """Of choice and training."""
        return list(self.asked["seeds"])

    @functools.cached_property
    def choices(self) -> list[Choice]:
        """The rows, one by one."""
        choices = [
            Choice(method, score, keep)
            for row in self.asked["rows"]
            for method in row["methods"]
            for score in row["scores"]
            for keep in row["keep"]
        ]
        return list({choice.name: choice for choice in choices}.values())  # random is one for all scores

    def base(self, method: str) -> str:
        """A method with the same stage 0 that chooses in one shot, first of all one of stage 0 alone; itself where there is none."""
        methods = self.asked["methods"]
        wanted = scoring_fields(methods[method])
        shots = [
            name for name, fields in methods.items() if "schedule" not in fields and scoring_fields(fields) == wanted
        ]
        return next((name for name in shots if methods[name] == wanted), next(iter(shots), method))

    def stage_zero(self, method: str, seed: int) -> tuple[Path, dict[str, Any]]:
        """Folder and fields of the run whose stage 0 a method chooses from; how many it keeps does not matter."""
        base = self.base(method)
        fields = {**scoring_fields(self.asked["methods"][base]), "keep": 0.5, "seed": seed}
        return self._folder(f"zero {base}", fields), fields

    def choice(self, choice: Choice, seed: int) -> tuple[Path, dict[str, Any]]:
        """Folder and fields of a choice, by a run of its own or from a stage 0."""
        fields = {**self.asked["methods"][choice.method], "score": choice.score, "keep": choice.keep, "seed": seed}
        if "schedule" in fields:
            fields["schedule"] = schedule(fields["schedule"], choice.keep)
        return self._folder(choice.name, fields), fields

    def _folder(self, name: str, fields: dict[str, Any]) -> Path:
        """Named by all that its ids depend on, so that a changed suite finds nothing of what it was before."""
        data = [self.info.fingerprint, self.info.sample, self.info.size_px]
        said = [data, [self.asked.get(name) for name in SHARED], fields]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
        return Path(self.args.out, re.sub(r"[^\w.]+", "-", f"{name} {fields['seed']} {digest}"))


def tried(asked: dict[str, Any], count: int) -> dict[str, Any]:
    """A suite in little: one epoch, on the first `count` images."""
    recipe = asked.get("recipe", {})
    named = {"use": recipe} if isinstance(recipe, str) else recipe
    short = {"epochs": 1, "min_steps": 0, "steps": None}
    return {**asked, "source": {**asked.get("source", {}), "limit": count}, "recipe": {**named, **short}}


def scoring_fields(method: dict[str, Any]) -> dict[str, Any]:
    """Fields of a method that its stage 0 depends on."""
    return {name: value for name, value in method.items() if name not in AFTER_SCORING}


def prune(suite: Suite, path: Path, **fields: Any) -> None:
    """A whole run by the command line, in a process of its own."""
    asked = suite.fields(**fields, executor=suite.args.prune_on)
    with contextlib.suppress(ur.ConfigError):  # it has not finished
        ur.load(path)
        return
    file = Path(f"{path}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(asked))
    began = time.monotonic()
    line = [sys.executable, "-m", "unseen_ray", "prune", str(file), "--out", str(path), "--json"]
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    print(f"{path.name}: chosen in {time.monotonic() - began:.0f} s", flush=True)


def prune_all(suite: Suite) -> None:
    """Every run that trains: the stages 0 first, which the others use."""
    methods = suite.asked["methods"]
    used = [method for method in methods if any(choice.method == method for choice in suite.choices)]
    zero = dict(suite.stage_zero(method, seed) for seed in suite.seeds for method in used)
    grown = {}
    for choice in suite.choices:
        for seed in suite.seeds if "schedule" in methods.get(choice.method, {}) else ():
            path, fields = suite.choice(choice, seed)
            grown[path] = {**fields, "reuse": [str(suite.stage_zero(choice.method, seed)[0])]}
    with ThreadPoolExecutor(suite.args.at_once) as pool:
        for runs in (zero, grown):
            for done in [pool.submit(prune, suite, path, **fields) for path, fields in runs.items()]:
                done.result()


def schedule(asked: dict[str, Any], keep: float) -> dict[str, Any]:
    """With `first_share`, the first target as a share of the budget."""
    shared = dict(asked)
    share = shared.pop("first_share", None)
    return shared if share is None else {**shared, "first": round(keep * share, 6)}


def chosen_by(suite: Suite, choice: Choice) -> ArmSubsets:
    """The ids of a choice, for each seed, and what one cost."""
    if choice.method == RANDOM:
        ids_N = make_population(suite.info.labels_N, suite.info.num_classes).ids_N
        size = round(choice.keep * len(ids_N))
        return ArmSubsets(tuple(random_subset(ids_N, size, derive(seed, "suite random")) for seed in suite.seeds), 0.0)
    runs = [result_of(suite, choice, seed) for seed in suite.seeds]
    share = suite.asked["methods"][choice.method].get("resampled")
    return subsets_of(runs) if share is None else resampled_arm(runs, share)


def result_of(suite: Suite, choice: Choice, seed: int) -> ur.PruneResult:
    """A run of several stages as it is; a choice in one shot, made from its stage 0 without training."""
    path, fields = suite.choice(choice, seed)
    with contextlib.suppress(ur.ConfigError):
        return ur.load(path)
    after = {name: fields[name] for name in ("policy", "guard", "combine") if name in fields}
    return ur.select(suite.stage_zero(choice.method, seed)[0], keep=choice.keep, score=choice.score, **after, out=path)


def evaluated(suite: Suite) -> Evaluation:
    """All choices trained and measured: one table."""
    chosen = {choice.name: chosen_by(suite, choice) for choice in suite.choices}
    _, *others = chosen
    asked = suite.fields(keep=0.5, executor=suite.args.train_on)
    test = held_out(suite) if "held_out" in suite.asked else suite.args.test
    if test:
        asked["test"] = {"use": "parquet", "path": str(test), "limit": suite.args.try_on}
    first = next(choice.method for choice in suite.choices if choice.method != RANDOM)
    home, _ = suite.stage_zero(first, suite.seeds[0])  # what is measured goes there
    resolved = ResolvedRun.of(ur.PruneConfig(**asked, out=str(home)), suite.info.size_px)
    with executor_for(resolved.config, len(chosen) * len(suite.seeds)) as executor:
        return train_and_measure(
            resolved,
            chosen,
            against=[*others, FULL],
            skipped_ids=np.empty(0, np.int64),
            seeds=1,
            budget=suite.asked.get("budget", "epochs"),
            executor=executor,
            on_event=say,
        )


def held_out(suite: Suite) -> Path:
    """Rows of the training set that are not pruned, as a file: what decisions are made on, so that the test set is looked at once."""
    if suite.args.test:
        raise SystemExit(
            f"{suite.args.suite} measures on rows {suite.asked['held_out']} of the source. Leave --test out."
        )
    first, end = suite.asked["held_out"]
    if first < len(suite.info):
        raise SystemExit(
            f"rows {first} to {end} are held out, and the first {len(suite.info)} are pruned. Lower source.limit to {first}."
        )
    path = Path(suite.args.out, f"held-out-{first}-{end}-{suite.info.fingerprint[:8]}.parquet")
    if not path.exists():
        rows = pq.read_table(suite.args.source).slice(first, end - first)
        if rows.num_rows < end - first:
            raise SystemExit(f"{suite.args.source} ends before row {end}, up to which rows are held out.")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
    return path


def say(event: Any) -> None:
    if not isinstance(event, Progress):
        print(
            f"{event.task}: accuracy {event.accuracy:.4f} of {event.trained:,} samples in {event.seconds:.0f} s",
            flush=True,
        )


def score_facts(suite: Suite) -> list[dict[str, Any]]:
    """Rank agreement over seeds and dispersion of each trained method's stage 0; the paper's Figure 1."""
    trained = {name for name in suite.asked["methods"] if suite.base(name) == name}
    found = []
    for score in dict.fromkeys(choice.score for choice in suite.choices if choice.method in trained):
        methods = dict.fromkeys(c.method for c in suite.choices if c.method in trained and c.score == score)
        columns = {method: stage_zero_scores(suite, method, score) for method in methods}
        within = common_range([values for its in columns.values() for values in its])
        for method, its in columns.items():
            correlations = [rank_correlation(one, other) for one, other in combinations(its, 2)]
            found.append(
                {
                    "method": method,
                    "score": score,
                    "rank_correlation": float(np.mean(correlations)) if correlations else None,
                    "rank_correlation_of_pairs": correlations,
                    "fullest_bin": float(np.mean([fullest_bin(values, within) for values in its])),
                    "score_std": float(np.mean([values.std() for values in its])),
                }
            )
    return found


def stage_zero_scores(suite: Suite, method: str, score: str) -> list[np.ndarray]:
    """(N,) scores of all samples, for each seed."""
    paths = [suite.stage_zero(method, seed)[0] for seed in suite.seeds]
    return [ur.load(path).scores.column(score).to_numpy() for path in paths]


def stage_facts(suite: Suite) -> list[dict[str, Any]]:
    """How the order by a later stage's model agrees with that of stage 0, over its candidates; the paper's Figure 2."""
    found = []
    for choice in suite.choices:
        if "schedule" in suite.asked["methods"].get(choice.method, {}):
            reports = [ur.report_values(suite.choice(choice, seed)[0])["importance"] for seed in suite.seeds]
            found += [
                {
                    "method": choice.method,
                    "score": choice.score,
                    "keep": choice.keep,
                    "stage": rows[0]["stage"],
                    "rank_correlation": mean_of_known([row["rank_correlation"] for row in rows]),
                    "overlap": mean_of_known([row["overlap"] for row in rows]),
                }
                for rows in zip(*reports, strict=True)
            ]
    return found


def mean_of_known(values: list[float | None]) -> float | None:
    """None where no seed has a value, as the rank correlation of scores that are all alike."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def class_facts(arm: Arm, full: Arm, sizes_C: np.ndarray) -> dict[str, Any]:
    """Do hard classes get more, and are classes closer in accuracy? Hard by the accuracy of the model of everything."""
    by_accuracy = correlation(np.array(full.class_accuracy), np.array(arm.class_samples) / np.maximum(sizes_C, 1))
    return {
        "class_spread": arm.class_spread,
        "worst_class": arm.worst_class,
        "share_by_accuracy": by_accuracy,
    }


def report_of(suite: Suite, table: Evaluation) -> dict[str, Any]:
    full = next(arm for arm in table.arms if arm.name == FULL)
    return {
        "suite": suite.asked,
        "data": {"source": Path(suite.args.source).name, "samples": len(suite.info), "test_samples": table.test_samples},
        "model": table.model,
        "recipe": table.recipe,
        "full": {**measured(full), "class_spread": full.class_spread, "worst_class": full.worst_class},
        "rows": rows_of(suite, table),
        **{f"rows_by_{other.budget}": rows_of(suite, other) for other in table.others},
        "bills": bills(suite),
        "scores": score_facts(suite),
        "stages": stage_facts(suite),
    }  # fmt: skip


def bills(suite: Suite) -> dict[str, float | None]:
    """What the choice of each method in one shot costs, as a share of one training on all samples."""
    shots = {
        c.method for c in suite.choices if c.method != RANDOM and "schedule" not in suite.asked["methods"][c.method]
    }
    runs = {method: ur.load(suite.stage_zero(method, suite.seeds[0])[0]) for method in sorted(shots)}
    return {method: run.manifest.cost.bill for method, run in runs.items()}


def rows_of(suite: Suite, table: Evaluation) -> list[dict[str, Any]]:
    """Each choice under the budget of a table."""
    arms = {arm.name: arm for arm in table.arms}
    full = arms[FULL]
    sizes_C = np.bincount(suite.info.labels_N, minlength=suite.info.num_classes)
    rows = []
    for choice in suite.choices:
        arm = arms[choice.name]
        even = break_even_of([arm, full])
        score = None if choice.method == RANDOM else choice.score  # random is one row for all scores
        rows.append(
            {
                "method": choice.method,
                "score": score,
                "keep": choice.keep,
                **measured(arm),
                **class_facts(arm, full, sizes_C),
                "less_random": against(arm, arms, Choice(RANDOM, choice.score, choice.keep)),
                "less_fitting": None if score is None else against(arm, arms, Choice("fitting", score, choice.keep)),
                "pays_after_trainings": even.trainings if even and arm.choosing_s else None,
            }
        )
    return rows


def noted_start(out: Path, device: torch.device) -> list[dict[str, Any]]:
    """When the suite was started, and from which commit, this time included: its rows may be of several days."""
    path = Path(out, "starts.json")
    starts = json.loads(path.read_text()) if path.exists() else []
    now = conditions(device, argparse.Namespace())
    starts.append({name: now[name] for name in ("date", "commit") if name in now})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(starts, indent=1))
    return starts


def measured(arm: Arm) -> dict[str, Any]:
    return {
        "samples": arm.samples,
        "accuracies": arm.accuracies,
        "mean": arm.mean,
        "std": arm.std,
        "seconds": round(arm.seconds, 1),
        "seconds_each": round(arm.seconds_each, 2),
        "choosing_s": None if arm.choosing_s is None else round(arm.choosing_s, 2),
    }


def against(arm: Arm, arms: dict[str, Arm], other: Choice) -> dict[str, float | None] | None:
    """By how much an arm is better than another one, with a 95 % interval; None where there is none such, or it is the same."""
    if other.name not in arms or other.name == arm.name:
        return None
    (found,) = differences_of([arm, arms[other.name]])
    return {"mean": found.mean, "low": found.low, "high": found.high}


def lines_of(report: dict[str, Any]) -> Sequence[str]:
    """What the terminal gets."""
    full = report["full"]
    yield f"full: {full['mean']:.4f}, {full['samples']:,} samples"
    for row in report["rows"]:
        std = "" if row["std"] is None else f" ± {row['std']:.4f}"
        lead = "" if row["less_random"] is None else f", {row['less_random']['mean']:+.4f} to random"
        yield f"{row['method']} {row['score'] or ''} {row['keep']:g}: {row['mean']:.4f}{std}{lead}"
    for facts in report["scores"]:
        if facts["rank_correlation"] is not None:
            yield (
                f"{facts['method']} {facts['score']}: rank correlation {facts['rank_correlation']:.3f}, "
                f"fullest of 20 bins {facts['fullest_bin']:.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument(
        "--source", required=True, help="where the training data is: `path` or `root` of the suite's source"
    )
    parser.add_argument("--test", help="the test data  [default: the source's own, where it has some]")
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs  [default: runs/NAME OF THE SUITE]")
    parser.add_argument("--prune_on", default="local", choices=["local", "ray"], help="where the runs are made")
    parser.add_argument("--at_once", type=int, default=2, help="how many runs are made at a time")
    parser.add_argument("--train_on", default="ray", choices=["local", "ray"], help="where the choices are trained")
    parser.add_argument("--try_on", type=int, metavar="N", help="one epoch on the first N images, to see that all runs")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    args.out = args.out or Path("runs", args.suite.stem + ("-tried" if args.try_on else ""))
    asked = yaml.safe_load(args.suite.read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suite = Suite(tried(asked, args.try_on) if args.try_on else asked, args)
    began, starts = time.monotonic(), noted_start(args.out, device)
    prune_all(suite)
    report = report_of(suite, evaluated(suite))
    report = {
        "conditions": {
            **conditions(device, args),
            "starts": starts,
            "seconds_of_this_start": round(time.monotonic() - began, 1),
        },
        **report,
    }
    report = without_nan(json.loads(json.dumps(report, default=str)))
    for line in lines_of(report):
        print(line)
    write(args.json, report)


if __name__ == "__main__":
    main()
