"""Several runs on one cluster of two pretended GPUs, each a driver process of its own."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.jobs import until
from tests.distributed.nodes import client_environment, free_ports, start, stop, wait_for
from unseen_ray.execution.ray.capacity import Capacity, waiting_for
from unseen_ray.execution.ray.waiting import Wait

ROOT = Path(__file__).parents[2]
GPU, CPU = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.0}
# The command with turns of two seconds, so that a test sees some.
DRIVER = "from unseen_ray.execution.ray import actor_pool; actor_pool._TURN_S = 2.0; from unseen_ray.cli.app import main; main()"
RUN = "prune --source digits --source.limit 200 --keep 0.5 --folds 4 --gpus_per_fold 1 --fit.use tests.plugs:noted_centroids"


@dataclass(frozen=True, slots=True)
class TwoGpus:
    """A cluster of one node; `begin` starts a driver that leaves its notes, its log and its run in a folder."""

    address: str
    env: dict[str, str]

    def begin(self, folder: Path, *more: str) -> subprocess.Popen[bytes]:
        folder.mkdir()
        where = ["--fit.log", str(folder), "--fit.together", "1", "--address", self.address, "--out", f"{folder}/run"]
        line = [sys.executable, "-c", DRIVER, *RUN.split(), *where, *more]
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(line, env=self.env, cwd=ROOT, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def two_gpus(alone: None) -> Iterator[TwoGpus]:
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    env = client_environment(scratch) | {"PYTHONPATH": str(ROOT)}
    gcs, agent = free_ports(2)
    more = ["--num-cpus=4", "--num-gpus=2", "--include-dashboard=false", f"--dashboard-agent-listen-port={agent}"]
    head = start(env, scratch / "head.log", "--head", f"--port={gcs}", f"--temp-dir={scratch}/r", *more)
    try:
        wait_for(scratch / "head.log", "Ray runtime started")
        yield TwoGpus(f"127.0.0.1:{gcs}", env)
    finally:
        stop(head)
        shutil.rmtree(scratch, ignore_errors=True)


def ended(run: subprocess.Popen[bytes], folder: Path) -> str:
    """The log of a run that has ended well."""
    code, text = run.wait(180), (folder / "log").read_text()
    assert code == 0, text[-3000:]
    return text


def times(folder: Path) -> list[tuple[float, float]]:
    """When each training began and ended."""
    notes = [json.loads(path.read_text()) for path in folder.glob("0-*.json")]
    return sorted((note["began"], note["ended"]) for note in notes)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_comes_later_gets_its_turn_and_says_how_long_it_waited(two_gpus: TwoGpus, tmp_path: Path) -> None:
    first = two_gpus.begin(tmp_path / "first", "--fit.seconds", "12")
    until(lambda: any((tmp_path / "first").glob("begun-*")), "the first run trains", 60)
    later = two_gpus.begin(tmp_path / "later", "--fit.seconds", "2")
    logs = [ended(run, tmp_path / name) for run, name in ((first, "first"), (later, "later"))]
    of_first, of_later = times(tmp_path / "first"), times(tmp_path / "later")
    assert len(of_first) == len(of_later) == 4
    assert of_later[0][0] < of_first[-1][0], "the later run waited for all trainings of the first"
    assert "other work on the cluster waits for 1 CPU and 1 GPU for a fold: this run makes room" in logs[0]
    assert "waiting for 1 CPU and 1 GPU for a fold: other work on the cluster holds all that fit" in logs[1]
    assert "s of them waiting for a worker" in logs[1]
    cost = json.loads((tmp_path / "later" / "run" / "manifest.json").read_text())["cost"]
    assert 1 < cost["waiting_seconds"] < cost["seconds"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_gpu_that_no_node_has_is_refused_while_others_work(two_gpus: TwoGpus, tmp_path: Path) -> None:
    never = two_gpus.begin(tmp_path / "never", "--placement.fits", "{ray.io/accelerator-type: H100}")
    assert never.wait(60) == 2
    assert "placement.fits={'ray.io/accelerator-type': 'H100'} matches no node" in (
        tmp_path / "never" / "log"
    ).read_text().replace("\n", " ")


def test_others_wait_for_what_a_worker_holds_where_its_release_would_serve_them() -> None:
    nodes = ({"CPU": 4.0, "GPU": 2.0}, {"CPU": 8.0})
    pending = ((GPU, 2), ({"CPU": 1.0}, 5), ({"GPU": 4.0}, 1), ({"CPU": 99.0}, 1), ({"GPU": 0.5, "elsewhere": 1.0}, 1))
    assert waiting_for(Capacity(nodes=nodes, pending=pending), GPU) == 2
    assert waiting_for(Capacity(nodes=nodes, pending=pending), CPU) == 5
    assert waiting_for(Capacity(nodes=nodes), GPU) == 0


def test_a_wait_for_what_others_hold_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    waiting = Wait(requested="a GPU", wait_s=0)

    def check(*, came: bool = False, is_busy: bool) -> float:
        time.sleep(0.01)
        return waiting.check(came=came, may_come=True, is_busy=is_busy, otherwise="")

    assert check(is_busy=False) == 0  # a worker starts
    assert all(check(is_busy=True) >= 0.01 for _ in range(3))
    assert check(came=True, is_busy=True) == 0
    assert [record.message for record in caplog.records] == [
        "waiting for a GPU: other work on the cluster holds all that fit",
        "waited 0 s for a GPU",
    ]
