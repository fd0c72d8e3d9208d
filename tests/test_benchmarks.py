"""What the benchmarks' pages say is what was measured, and every suite is one that can be run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import unseen_ray as ur
from tests.s3 import s3_server
from tests.terminal import screen, terminal
from unseen_ray.cli import main
from unseen_ray.storage.filesystem import Folder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SUITES = sorted((BENCHMARKS / "suites").glob("*.yaml"))


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_optimiser_counts_once_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from train_profile import shares_of  # type: ignore[import-not-found]

    times = {"Optimizer.step#SGD.step": 30, "aten::_fused_sgd_": 30, "fused_kernel": 30, "aten::cudnn_convolution": 70}
    events = [SimpleNamespace(key=key, self_device_time_total=time) for key, time in times.items()]
    assert shares_of(events, on_gpu=True) == {"convolution, forward": 0.7, "optimiser": 0.3}


@pytest.mark.slow
def test_train_speed_with_no_ray_needs_no_ray(tmp_path: Path) -> None:
    tiny = "Case('small_cnn', 16, 8, 8)"
    given = f"['x', '--no-ray', '--rounds', '2', '--most', '2', '--json', {str(tmp_path / 'speed.json')!r}]"
    code = f"import sys; sys.modules['ray'] = None; import train_speed as t; t.CPU_CASES = [t.{tiny}]; sys.argv = {given}; t.main()"
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "speed.json").read_text())["cases"].values()
    assert case["images_per_s"].keys() == {"a", "b", "c", "e", "f"}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_names_methods_that_it_has_and_fields_that_there_are(path: Path) -> None:
    suite = yaml.safe_load(path.read_text())
    methods = suite["methods"]
    assert suite["rows"]
    assert len(suite["seeds"]) >= 3
    for row in suite["rows"]:
        assert set(row) == {"methods", "scores", "keep"}
        assert set(row["methods"]) <= {*methods, "random"}
        for score in row["scores"]:
            for keep in row["keep"]:
                for name in set(row["methods"]) - {"random"}:
                    fields = {key: value for key, value in methods[name].items() if key != "resampled"}
                    if "schedule" in fields:
                        fields["schedule"] = dict(fields["schedule"])
                        fields["schedule"]["first"] = keep * fields["schedule"].pop("first_share")
                    shared = {key: suite[key] for key in ("model", "recipe") if key in suite}
                    ur.PruneConfig(source="digits", keep=keep, score=score, **shared, **fields)


def test_what_imagenet_takes_is_what_plan_says_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(BENCHMARKS)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the command line adds its folder to
    readme = (BENCHMARKS / "README.md").read_text()
    section = readme.split("## ImageNet-1K at 30 % pruning")[1].split("\n## ")[0]
    eight, more = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    line = shlex.split(eight.splitlines()[0].split("unseen-ray")[1])
    for workers, block in (("8", "\n".join(eight.splitlines()[1:])), ("64", more)):
        with terminal(columns=300) as (_, stream, read), monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            main([*line[:-1], workers])
            stream.flush()
        said = screen("".join(read), 300)
        assert [row for row in block.splitlines() if row not in said] == []
    assert "no image of it was read" in eight
    fields = yaml.safe_load((BENCHMARKS / "imagenet_30.yaml").read_text())
    config = ur.PruneConfig(**fields)
    assert (config.recipe.use, config.model) == ("imagenet-16", "resnet18")
    counts = {"use": "benchmarks.imagenet_counts:ImageNetCounts", "size": 224}
    planned, _, _ = ur.plan(ur.PruneConfig(**{**fields, "source": counts, "model": "resnet50"}))
    assert [stage.target for stage in planned.stages] == [448_408, 672_613, 896_817]


@pytest.mark.slow
def test_a_suite_measures_every_choice_and_starts_anew_when_it_changes(
    tmp_path: Path, parquet_file: Callable[..., Path]
) -> None:
    source = parquet_file(count=120, name="train.parquet")
    test = parquet_file(count=60, name="test.parquet", seed=1)
    suite = {
        "model": "small_cnn",
        "recipe": {"use": "quick", "epochs": 1, "min_steps": 0},
        "seeds": [0, 1],
        "methods": {
            "fitting": {"mode": "fitting"},
            "unseen": {"folds": 2},
            "balanced": {"folds": 2, "policy": "class_balanced"},
            "grown": {"folds": 2, "schedule": {"first_share": 0.5, "stages": 2}},
        },
        "rows": [
            {"methods": ["random", "fitting", "unseen", "balanced", "grown"], "scores": ["entropy"], "keep": [0.5]}
        ],
    }
    line = [sys.executable, BENCHMARKS / "suite.py", tmp_path / "suite.yaml", "--source", source, "--test", test]
    line += ["--out", tmp_path / "runs", "--train_on", "local", "--json", tmp_path / "found.json"]
    zeros = {}
    for epochs in (1, 2):
        suite["recipe"] = {**suite["recipe"], "epochs": epochs}
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "found.json").read_text())
        assert [row["method"] for row in found["rows"]] == ["random", "fitting", "unseen", "balanced", "grown"]
        assert all(row["samples"] == 60 and len(row["accuracies"]) == 2 for row in found["rows"])
        assert found["recipe"]["epochs"] == epochs
        assert {facts["method"] for facts in found["scores"]} == {"fitting", "unseen"}
        assert [facts["stage"] for facts in found["stages"]] == [1]
        assert str(tmp_path) not in (tmp_path / "found.json").read_text()
        zeros[epochs] = {path.name for path in (tmp_path / "runs").glob("zero-*") if path.is_dir()}
    assert len(zeros[1]) == 4  # two methods that train, two seeds
    assert len(zeros[2] - zeros[1]) == 4
    assert "chosen in" not in subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_guards_are_measured_against_labels_that_were_flipped_and_nothing_is_done_twice(
    tmp_path: Path, parquet_file: Callable[..., Path]
) -> None:
    source = parquet_file(count=150, classes=10, name="train.parquet")
    test = parquet_file(count=60, classes=10, name="test.parquet", seed=1)
    line = [sys.executable, BENCHMARKS / "label_noise.py", "--source", source, "--test", test, "--try_on", "120"]
    line += ["--seeds", "0", "1", "--out", tmp_path / "runs", "--json", tmp_path / "found.json"]
    done, found = [], []
    for _ in range(2):
        done.append(subprocess.run(line, capture_output=True, text=True, check=False))
        assert done[-1].returncode == 0, done[-1].stderr
        found.append(json.loads((tmp_path / "found.json").read_text()))
        assert len(found[-1].pop("conditions")["starts"]) == len(found)
    # Where a guard leaves fewer than the 84 that are kept, both scores keep the same ones, and these are trained once.
    (same,) = {
        sum(
            count > 120 - 84
            for row in its["guards"]
            if row["guard"] == "confident_learning"
            for count in row["suspects"]
        )
        for its in found
    }
    assert done[0].stdout.count("seed 0: accuracy") == 2 * 2 * 8 - same
    assert "seed 0: accuracy" not in done[1].stdout
    assert found[0] == found[1]
    assert str(tmp_path) not in json.dumps(found)
    assert [(name, its["flips"]) for name, its in found[0]["noises"].items()] == [
        ("symmetric", [24, 24]),
        ("class_dependent", [24, 24]),
    ]
    for path in (tmp_path / "runs").glob("*/noisy.parquet"):
        rows = pq.read_table(path).to_pydict()
        pairs = {(true, given) for true, given in zip(rows["true_label"], rows["label"], strict=True) if true != given}
        if path.parent.name.startswith("class"):
            assert pairs <= {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}
        else:
            assert len({given - true for true, given in pairs}) > 5
    for row in found[0]["guards"]:
        hits = [recall * 24 for recall in row["recall"]]
        assert [round(hit / count, 9) for hit, count in zip(hits, row["suspects"], strict=True)] == [
            round(share, 9) for share in row["precision"]
        ]
    for row in found[0]["choices"]:
        assert row["samples"] == (120 if row["method"] == "full" else 84)
        assert (row["trained"] is None) == (
            row["guard"] in ("label_margin 0.05", "label_margin 0.1", "label_margin 0.3")
        )
        if (
            row["guard"] == "label_margin 0.3"
        ):  # just as many are left as are kept: what is kept is what is not suspected
            (guard,) = (g for g in found[0]["guards"] if (g["noise"], g["guard"]) == (row["noise"], row["guard"]))
            assert row["flips"] == [24 - round(24 * recall) for recall in guard["recall"]]


def chaos(folder: Path, *more: str) -> dict[str, Any]:
    """What the chaos harness reports; it fails where a run picks other ids, hangs, or prints a traceback."""
    line = [
        sys.executable,
        BENCHMARKS / "chaos.py",
        "--seed",
        "3",
        "--state",
        folder / "state",
        "--json",
        folder / "found.json",
    ]
    done = subprocess.run([*line, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert report["faults"] == sum(kind["faults"] for kind in report["kinds"].values())
    assert report["driver_starts"] >= report["runs"] and not report["failures"]
    return report


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_survives_whatever_the_chaos_harness_does_to_it(tmp_path: Path) -> None:
    line = ["--campaign", "8", "--side_by_side", "2", "--on_ray", "0", "--faults"]
    assert len(chaos(tmp_path, *line, "8")["kinds"]) > 1
    (first,) = (tmp_path / "state").iterdir()
    before = first.stat().st_mtime_ns
    assert chaos(tmp_path, *line, "16")["faults"] == 16
    assert first.stat().st_mtime_ns == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_finished_fold_is_trained_again_for_lost_drivers_and_nodes(tmp_path: Path) -> None:
    report = chaos(tmp_path, "--faults", "6", "--on_ray", "1", "--only", "driver killed", "node gone")
    assert report["faults_on_ray"] == 6 and report["finished_tasks_done_again"] == 0
    assert report["driver_starts"] >= report["runs"] + report["kinds"]["driver killed"]["faults"]


WAITING = """
import time, pyarrow.fs
fs, path = pyarrow.fs.FileSystem.from_uri("s3://runs/file")
print(fs.open_input_file(path).read().decode(), time.time())
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_false_clock_does_not_keep_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, library = tmp_path / "clock", tmp_path / "clock.so"
    clock.write_text("3600")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "benchmarks/wrong_clock.c"], check=True)
    with s3_server(monkeypatch) as server:
        Folder("s3://runs").write("file", b"there")
        fails = iter([503, 503])
        server.fault = lambda method, path: next(fails, None)
        env = {**os.environ, "LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}
        line = [sys.executable, "-c", WAITING]
        found, at = subprocess.run(line, env=env, capture_output=True, check=True, timeout=60).stdout.split()
    assert found == b"there" and float(at) - time.time() > 3000


@pytest.mark.slow
def test_copies_are_scored_and_kept_in_three_ways(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    source = parquet_file(count=240, classes=10, name="train.parquet")
    test = parquet_file(count=60, classes=10, name="test.parquet", seed=1)
    line = [sys.executable, BENCHMARKS / "copies.py", "--source", source, "--test", test, "--try_on", "200"]
    line += ["--seeds", "0", "1", "--out", tmp_path / "runs", "--json", tmp_path / "found.json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for case in found["cases"].values():
        kept = {name: its["kept"] for name, its in case.items()}
        assert all(its["5500"]["samples"] == 110 and its["7700"]["samples"] == 154 for its in kept.values())
        assert all(its["both"] == 0 for its in kept["one of each"].values())
    for path in (tmp_path / "runs").glob("doubled-*.parquet"):
        originals = pq.read_table(path).column("original").to_numpy()
        assert (len(originals), len(np.unique(originals))) == (220, 200)
    assert {row["folds"] for row in found["accuracies"]} == {
        "random folds",
        "in one fold",
        "one of each",
        "random subset",
    }
