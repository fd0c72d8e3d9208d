"""A private cluster that cannot start, or is stopped while it does: one message, and nothing is left."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LINE = [sys.executable, "-m", "unseen_ray", "prune", "--source", "digits", "--source.limit", "100", "--keep", "0.5"]
LINE += ["--folds", "2", "--log_to", "none", "--fit", "tests.plugs:centroids"]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ur", dir="/tmp") as folder:
        yield Path(folder)


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def start(out: Path, *more: str, limit: Callable[[], None] | None = None, **environment: str) -> subprocess.Popen[str]:
    line = [*LINE, "--out", str(out), *more]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**kept, **environment}, preexec_fn=limit)


def test_a_limit_of_files_that_ray_cannot_start_under_is_named(tmp_path: Path) -> None:
    driver = start(tmp_path / "run", limit=few_files)
    _, log = driver.communicate(timeout=60)
    assert driver.returncode == 4
    assert "error: Ray needs to open 256 files and more, and this process may open 64. Raise the limit" in log


ALONE = """
import ray._private.services as services
services.find_gcs_addresses = set
"""
"""Hides the clusters of tests beside this one: of those that run, `auto` takes the only one."""


def test_a_cluster_that_has_ended_is_not_waited_for(tmp_path: Path, short: Path) -> None:
    (short / "ray").mkdir()
    (short / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    began = time.monotonic()
    (short / "sitecustomize.py").write_text(ALONE)
    driver = start(tmp_path / "run", RAY_ADDRESS="auto", RAY_TMPDIR=str(short), PYTHONPATH=f"{short}:{Path.cwd()}")
    _, log = driver.communicate(timeout=90)
    assert driver.returncode == 2, log
    assert re.search(
        r"the Ray cluster at auto cannot be joined: (\[Errno 111\] Connection refused|no answer within 10 s)", log
    )
    assert time.monotonic() - began < 40


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.2, 1.0, 2.0, 4.0])
def test_a_driver_that_is_terminated_while_ray_starts_says_so(after_s: float, tmp_path: Path, short: Path) -> None:
    driver = start(tmp_path / "run", TMPDIR=str(short))
    while not (tmp_path / "run" / "manifest.json").exists() and driver.poll() is None:
        time.sleep(0.01)
    time.sleep(after_s)
    driver.send_signal(signal.SIGTERM)
    _, log = driver.communicate(timeout=60)
    assert driver.returncode == 130, log
    assert "interrupted; run the same line again to resume" in log and "Traceback" not in log
    end = time.monotonic() + 20
    while processes_of(short) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_of(short) == []
    assert list(short.glob("ray/session_2*")) == []


@pytest.mark.slow
def test_a_private_cluster_leaves_no_session(tmp_path: Path, short: Path) -> None:
    driver = start(tmp_path / "run", TMPDIR=str(short))
    _, log = driver.communicate(timeout=120)
    assert driver.returncode == 0, log
    assert [path for path in short.rglob("*") if path.is_file()] == []
    assert list(short.glob("ray/session_2*")) == []


WRITER = """
import pathlib, sys, time
folder, end = pathlib.Path(sys.argv[1]), time.monotonic() + 2
print("writing", flush=True)
for number in range(100_000):
    try:
        (folder / str(number)).touch()
    except OSError:
        folder.mkdir(parents=True, exist_ok=True)
    if time.monotonic() > end:
        break
"""


def test_a_session_in_which_a_worker_still_writes_is_removed(tmp_path: Path) -> None:
    from unseen_ray.execution.ray.connect import _remove

    logs = tmp_path / "session" / "logs"
    logs.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(logs)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "writing\n"
        _remove(str(logs.parent))
        assert worker.wait() == 0
    assert not logs.parent.exists()


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that name a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in lines if f"{folder}/" in line]
