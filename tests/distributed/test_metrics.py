"""A run's metrics as Prometheus would scrape them: names, values, and every name that the dashboard asks for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.nodes import BIN, client_environment, free_ports, start, stop, wait_for
from unseen_ray.execution.ray.metrics import COUNTERS, GAUGES, Meter
from unseen_ray.runs.tasks import Progress

pytestmark = pytest.mark.ray

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana-dashboard.json"
FIELDS = ["--source", "digits", "--source.limit", "400", "--keep", "0.6", "--schedule", "[0.4,0.6]", "--folds", "2"]
RECIPE = ["--scoring.share", "1", "--recipe.epochs", "40", "--recipe.min_steps", "0", "--recipe.batch_size", "16"]
Scrape = dict[str, dict[str, float]]


def scrape(port: int) -> Scrape:
    """What a node offers of ours: values by task, by name without `ray_unseen_ray_`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: Scrape = defaultdict(dict)
    for line in lines:
        if parts := re.fullmatch(r"ray_unseen_ray_(\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', parts[2]))
            assert "run" in labels
            found[parts[1]][labels.get("task", "")] = float(parts[3])
    return found


def fold_workers(head: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    for process in psutil.Process(head.pid).children(recursive=True):
        if "ray::FoldWorker.score" in " ".join(process.cmdline()):
            yield process


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Scrape], dict[str, object]]]:
    """Scrapes during a run of which a fold loses its worker once, the last one when it is done, and the run's manifest."""
    scratch, out = Path(tempfile.mkdtemp(prefix="ur")), tmp_path_factory.mktemp("runs") / "digits"
    env = client_environment(scratch) | {"RAY_metrics_report_interval_ms": "2000"}
    gcs, dashboard, agent, metrics = free_ports(4)
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    own = ["--num-cpus=2", f"--metrics-export-port={metrics}", f"--temp-dir={scratch}/r"]
    head = start(env, scratch / "head.log", "--head", "--dashboard-host=127.0.0.1", *ports, *own)
    scrapes: list[Scrape] = []
    try:
        wait_for(scratch / "head.log", "Ray runtime started")
        line = [str(BIN / "unseen-ray"), "prune", *FIELDS, *RECIPE, "--address", f"127.0.0.1:{gcs}", "--out", str(out)]
        with (scratch / "run.log").open("wb") as log:
            run = subprocess.Popen(line, env=env, stdout=log, stderr=log)
        killed = False
        while run.poll() is None:
            scrapes.append(scrape(metrics))
            if not killed and 1 in scrapes[-1].get("task_state", {}).values():
                next(fold_workers(head)).kill()
                killed = True
            time.sleep(0.5)
        assert run.returncode == 0, (scratch / "run.log").read_text()[-3000:]
        assert killed
        scrapes.append(scrape(metrics))
    finally:
        stop(head)
        shutil.rmtree(scratch, ignore_errors=True)
    yield scrapes, json.loads((out / "manifest.json").read_text())


@pytest.mark.slow
def test_a_run_is_counted(scraped: tuple[list[Scrape], dict[str, object]]) -> None:
    scrapes, manifest = scraped
    last = scrapes[-1]
    receipts = {task["task"]: task for stage in manifest["stages"] for task in stage["tasks"]}  # type: ignore[attr-defined]
    assert set(receipts) == {"stage 0 fold 0", "stage 0 fold 1", "stage 1"}
    assert set(last) == {*(f"{name}_total" for name in COUNTERS), *GAUGES}
    for name, receipt in receipts.items():
        lost = last["retries"][name] > 0
        trained, scored = last["samples_trained_total"][name], last["samples_scored_total"][name]
        assert trained == receipt["image_passes"] or (lost and trained > 0.9 * receipt["image_passes"])
        assert scored == receipt["scored"] or (lost and scored >= receipt["scored"])
        assert last["worker_seconds"][name] == pytest.approx(receipt["worker_seconds"])
        assert last["gpu_seconds"][name] == last["images_per_s"][name] == 0.0
    assert sum(last["retries"].values()) == 1
    assert set(last["task_state"].values()) == {3.0} and set(last["task_progress"].values()) == {1.0}
    assert last["stage"] == {"": 1.0}


@pytest.mark.slow
def test_a_run_is_shown_while_it_trains(scraped: tuple[list[Scrape], dict[str, object]]) -> None:
    training = [each for each in scraped[0] if 1.0 in each.get("task_state", {}).values()]
    assert any(speed > 0 for each in training for speed in each["images_per_s"].values())
    assert any(0 < share < 1 for each in training for share in each["task_progress"].values())
    assert all(each["stage"] in ({"": 0.0}, {"": 1.0}) for each in training)


@pytest.mark.slow
def test_the_dashboard_asks_for_what_there_is(scraped: tuple[list[Scrape], dict[str, object]]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]
    names = {name for expression in asked for name in re.findall(r"\bray_\w+", expression)}
    offered = {f"ray_unseen_ray_{name}" for name in scraped[0][-1]}
    assert names <= offered
    assert offered <= names, "a metric that the dashboard does not show"


def test_metrics_that_fail_do_not_fail_the_run(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter("runs/a")
    event = Progress(task="stage 0 fold 0", node="n", device="cpu", doing="train", done=1, total=2)
    heard: list[object] = []
    meter.begin([object()])  # type: ignore[list-item]
    assert meter.broken
    assert "metrics of this run stop: AttributeError" in caplog.text
    meter.observing(heard.append)(event)
    meter.retried("stage 0 fold 0")
    assert heard == [event]
