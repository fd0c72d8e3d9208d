"""Sweeps on real Ray Tune: shared work, GPUs held by one at a time, a kill in the middle, failures, early stops, Optuna."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import unseen_ray as ur
from tests.distributed.nodes import BIN
from unseen_ray.config.run import load_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUN = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.6,
    "holdout": 0.2,
    "model": {"use": "small_cnn", "width": 8},
    "recipe": {"epochs": 2, "min_steps": 0},
}
SPACE = {"folds": [2, 3], "train_on": ["fold", "complement"], "score": ["entropy", "margin"]}


def config(out: Path, **fields: Any) -> ur.SweepConfig:
    return ur.SweepConfig(**{"run": RUN, "space": SPACE, "against": ["full"], "out": str(out), **fields})


def keys_in_cache(out: Path) -> Counter[str]:
    """How many finished works of each kind the cache holds: votes of scoring models, and results of proxies."""
    return Counter(path.name for path in (out / "work").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def swept(session: None, tmp_path_factory: pytest.TempPathFactory) -> ur.SweepResult:
    return ur.sweep(config(tmp_path_factory.mktemp("swept")))


def test_trials_share_their_trainings(swept: ur.SweepResult) -> None:
    stage_0, proxy = swept.trainings
    assert (stage_0.kind, stage_0.asked, stage_0.needed) == ("stage 0", 20, 8)  # K = 2 is the same in both geometries
    coresets = {tuple(coreset_of(swept, record.name)) for record in swept.records}
    assert (proxy.asked, proxy.needed) == (16, len(coresets) + 1)
    assert keys_in_cache(Path(swept.path)) == {"00.parquet": 8, "result.json": proxy.needed}


def coreset_of(result: ur.SweepResult, trial: str) -> list[int]:
    return ur.load(f"{result.path}/trials/{trial}/seed-0").coreset.ids.tolist()


def test_a_trial_is_what_prune_and_evaluate_make_of_its_fields(swept: ur.SweepResult, tmp_path: Path) -> None:
    record = next(r for r in swept.records if r.knobs == {"folds": 3, "train_on": "fold", "score": "margin"})
    alone = ur.prune(ur.PruneConfig(**RUN, folds=3, score="margin", executor="local", out=str(tmp_path / "run")))
    assert coreset_of(swept, record.name) == alone.coreset.ids.tolist()
    table = ur.evaluate(alone, seeds=1, against=("full",))
    assert record.accuracies == table.arms[0].accuracies
    assert record.baselines == {"full": table.arms[1].accuracies}


def test_what_is_left_behind(swept: ur.SweepResult, tmp_path: Path) -> None:
    out = Path(swept.path)
    table = pq.read_table(out / "sweep.parquet")
    assert table.num_rows == 8 and set(table.column("status").to_pylist()) == {"finished"}
    assert {"trial", "folds", "train_on", "score", "kept", "accuracy", "accuracy_full", "choosing_seconds"} <= set(
        table.column_names
    )
    best = max(table.to_pylist(), key=lambda row: (row["accuracy"], -row["image_passes"]))
    assert swept.best is not None and swept.best.name == best["trial"]
    fields = load_yaml(out / "best.yaml")
    assert {name: fields[name] for name in SPACE} == swept.best.knobs
    assert "holdout" not in fields and swept.best_config.folds == fields["folds"]
    pruned = ur.prune(ur.PruneConfig(**fields, executor="local", out=str(tmp_path / "best")))
    assert len(pruned.coreset) == 180
    front = swept.front
    assert [r.cost for r in front] == sorted(r.cost for r in front) and front[-1].accuracy == swept.best.accuracy
    assert list((out / "tune").glob("*/events.out.tfevents.*")) and list((out / "tune").glob("*/result.json"))
    page = (out / "sweep.html").read_text()
    assert page.count("<svg") == 3 and "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_sweep_again_does_nothing_and_a_larger_one_only_what_is_new(swept: ur.SweepResult) -> None:
    before = keys_in_cache(Path(swept.path))
    again = ur.sweep(config(Path(swept.path)))
    assert again.reused == 8 and again.table == swept.table
    assert keys_in_cache(Path(swept.path)) == before
    seen: list[str] = []
    more = ur.sweep(
        config(Path(swept.path), space={**SPACE, "score": ["entropy", "margin", "loss"]}),
        on_end=lambda record: seen.append(record.name),
    )
    assert (more.reused, len(more.records), len(seen)) == (8, 12, 4)
    assert keys_in_cache(Path(swept.path))["00.parquet"] == 8


def test_other_data_and_other_folders_are_refused(swept: ur.SweepResult, tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=r"holds a sweep over other data or groups \(300 samples there, 250 here"):
        ur.sweep(config(Path(swept.path), run={**RUN, "source": {"use": "digits", "limit": 250}}))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ur.ConfigError, match=r"holds notes.txt, which is not a sweep"):
        ur.sweep(config(tmp_path))
    with pytest.raises(ur.ConfigError, match="holds a sweep; its trials are the folders below"):
        ur.load(swept.path)


def test_a_trial_that_fails_is_reported_and_the_others_go_on(session: None, tmp_path: Path) -> None:
    space = {"policy": ["top", {"use": "tests.sweep_plugs:refuses_budget", "above": 100}]}
    result = ur.sweep(config(tmp_path, space=space))
    assert [record.status for record in result.records] == ["finished", "failed"]
    assert "policy refuses_budget" in result.records[1].error
    assert result.table.column("error").to_pylist()[1] == result.records[1].error
    assert result.best is not None and result.best.knobs["policy"] == "top"


def test_a_trial_whose_process_is_killed_is_started_again(session: None, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    space = {"policy": [{"use": "tests.sweep_plugs:dies_in_the_driver", "marker": str(marker)}, "top"]}
    result = ur.sweep(config(tmp_path / "sweep", space=space))
    assert marker.exists()
    assert [record.status for record in result.records] == ["finished", "finished"]
    assert result.records[0].accuracies == result.records[1].accuracies


def test_seeds_are_runs_of_their_own(session: None, tmp_path: Path) -> None:
    result = ur.sweep(config(tmp_path, space={"score": ["entropy"]}, seeds=2, seed=5, proxy={"trainings": 2}))
    (record,) = result.records
    assert len(record.accuracies) == 4 and record.std > 0
    assert len(record.baselines["full"]) == 4 and len(record.trainings) == 8
    assert sorted(path.name for path in (tmp_path / "trials" / record.name).glob("seed-*")) == ["seed-5", "seed-6"]
    assert load_yaml(tmp_path / "best.yaml")["seed"] == 5


def test_growth_that_is_worse_than_chance_is_stopped_early(session: None, tmp_path: Path) -> None:
    """Two orders that leave most classes out at first come after two that do not."""
    first = [{"use": "tests.sweep_plugs:one_class_first", "first": label} for label in range(2)]
    space = {"policy": ["random", "class_balanced", *first], "schedule.stages": [3], "schedule.first_share": [0.4]}
    asked = {"space": space, "scheduler": {"use": "asha", "reduction": 2}, "max_concurrent_trials": 1, "against": []}
    # Models that learned little are about as often right after any of them.
    asked["run"] = {**RUN, "recipe": {"epochs": 15, "min_steps": 0}, "scoring": {"share": 1}}
    result = ur.sweep(config(tmp_path, **asked))
    assert [record.status for record in result.records][2:] == ["stopped", "stopped"]
    for record in result.records:
        assert record.kept == (58 if record.status == "stopped" else 144)
        assert record.accuracies and "random" in record.baselines
    assert result.best is not None and result.best.status == "finished"
    assert ur.sweep(config(tmp_path, **asked)).reused == 4


@pytest.mark.parametrize("objective", ["accuracy", "pareto"])
def test_optuna_searches_and_goes_on(session: None, tmp_path: Path, objective: str) -> None:
    asked = {"space": {"folds": {"min": 2, "max": 4}, "score": ["entropy", "margin"]}, "search": "optuna"}
    first = ur.sweep(config(tmp_path, **asked, objective=objective, trials=3))
    assert len(first.records) <= 3 and all(2 <= record.knobs["folds"] <= 4 for record in first.records)
    more = ur.sweep(config(tmp_path, **asked, objective=objective, trials=5))
    assert more.reused == len(first.records)
    assert {record.name for record in first.records} <= {record.name for record in more.records}


def test_random_search_tries_what_it_drew(session: None, tmp_path: Path) -> None:
    asked = {"space": {"keep": {"min": 0.3, "max": 0.8}}, "search": "random", "trials": 2, "against": []}
    result = ur.sweep(config(tmp_path, **asked, run={k: v for k, v in RUN.items() if k != "keep"} | {"keep": 0.5}))
    assert [record.kept for record in result.records] == [round(r.knobs["keep"] * 240) for r in result.records]


def test_a_sweep_killed_in_the_middle_goes_on(tmp_path: Path) -> None:
    fields = {"run": {**RUN, "recipe": {"epochs": 30, "min_steps": 0}}, "space": SPACE, "against": ["full"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(fields))
    line = [str(BIN / "unseen-ray"), "sweep", "sweep.yaml", "--json"]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    whole = subprocess.run(
        [*line, "--out", "whole"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500
    )
    assert whole.returncode == 0, whole.stderr[-3000:]
    with subprocess.Popen(
        [*line, "--out", "killed"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        while len(list((tmp_path / "killed").glob("trials/*/trial.json"))) < 3:
            assert run.poll() is None, run.stderr and run.stderr.read()[-3000:]
            time.sleep(0.1)
        run.send_signal(signal.SIGKILL)
        run.wait(30)
    shelved = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "work").rglob("*.parquet")}
    assert 0 < len(shelved) < 8
    again = subprocess.run(
        [*line, "--out", "killed"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500
    )
    assert again.returncode == 0, again.stderr[-3000:]
    one, other = json.loads(whole.stdout), json.loads(again.stdout)
    assert other["reused"] >= 3
    assert other["best"]["trial"] == one["best"]["trial"] and other["best"]["accuracy"] == one["best"]["accuracy"]
    assert other["trainings"] == one["trainings"]
    for path, written in shelved.items():
        assert path.stat().st_mtime_ns == written, "a finished training was made again"
