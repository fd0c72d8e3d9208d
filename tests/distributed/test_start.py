"""What is said when Ray starts, does not start, or could not do the work if it did."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

import unseen_ray as ur
from tests.distributed.test_sweep import RUN

LINE = [sys.executable, "-m", "unseen_ray", "prune", "--source", "digits", "--keep", "0.5"]


def test_a_ray_that_does_not_start_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # Ray cannot make its session's folder below a file
    done = subprocess.run(
        [*LINE, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_TMPDIR": str(tmp_path / "file")},
    )
    assert done.returncode == 4, done.stderr
    first, error = done.stderr.splitlines()
    assert "starting a private Ray cluster (up to 40 s; --executor local needs none) ..." in first
    assert error.startswith("error: a private Ray cluster does not start on this machine: ")
    assert "--executor local" in error


def test_a_gpu_that_is_not_there_is_refused_before_ray_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [*LINE, "--gpus_per_fold", "1", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2, done.stderr
    assert "CPU and 0 GPU. Set gpus_per_fold=0" in done.stderr and "starting" not in done.stderr


def test_a_missing_optuna_is_refused_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    config = ur.SweepConfig(run=RUN, space={"folds": [2, 3]}, search="optuna", trials=2, out=str(tmp_path / "sweep"))
    before = ray.is_initialized()
    with pytest.raises(ur.ConfigError, match=r"needs Optuna. Install it: pip install 'unseen-ray\[optuna\]'"):
        ur.sweep(config)
    assert ray.is_initialized() == before and not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_start_whose_raylet_dies_is_tried_again(tmp_path: Path) -> None:
    """Ray waits 30 s for its raylet, and says no more than that it timed out."""
    run = subprocess.Popen(
        [*LINE, "--source.limit", "200", "--recipe.epochs", "1", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed: list[int] = []

    def kill_the_first() -> None:
        while not killed and run.poll() is None:
            found = subprocess.run(["pgrep", "-P", str(run.pid), "-x", "raylet"], capture_output=True, text=True)
            for pid in map(int, found.stdout.split()):
                os.kill(pid, 9)
                killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_the_first)
    thread.start()
    out, err = run.communicate(timeout=300)
    thread.join()
    assert run.returncode == 0, err
    assert killed and "Ray has not started within its own limit of 30 s; trying again" in err
    assert "Kept 100 of 200" in out


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["raylet", "gcs_server"])
def test_a_private_ray_that_loses_its_own_processes_ends_the_run_with_one_message(tmp_path: Path, killed: str) -> None:
    """No node can join it, so the run does not wait for one."""
    fit = "{use: tests.plugs:slow_centroids, seconds: 60}"
    line = [*LINE, "--source.limit", "300", "--fit", fit, "--out", str(tmp_path / "run")]
    with open(tmp_path / "log", "w+") as log:
        run = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log)
        try:
            while "fold 0" not in (tmp_path / "log").read_text():
                assert run.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            found = subprocess.run(["pgrep", "-P", str(run.pid), "-x", killed], capture_output=True, text=True)
            os.kill(int(found.stdout), 9)
            assert run.wait(120) == 4, (tmp_path / "log").read_text()
        finally:
            run.kill()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"error: the private Ray cluster has ended: its {killed} does not run any more.")


@pytest.mark.slow
def test_workers_of_a_private_ray_stay_where_uv_run_has_put_their_driver(tmp_path: Path) -> None:
    """Below a process that calls itself `uv run`, as Ray looks for one; it would start its workers with uv, in a copy of the folder."""
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    line = [*LINE, "--source.limit", "200", "--fit", "tests.plugs:centroids", "--out", "here"]
    done = subprocess.run(
        ["uv", "run", *line],
        executable="/bin/sh",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(ur.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "coreset.parquet").exists()
