"""SIGTERM and Ctrl-C: the driver ends quickly, takes its cluster along, and the same line goes on."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import unseen_ray as ur

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TIMES = 20
FIELDS = "--source digits --keep 0.5 --folds 2 --recipe.batch_size 8 --recipe.min_steps 0 --scoring.share 1"
LINE = [sys.executable, "-m", "unseen_ray", "prune", *FIELDS.split()]


def stop(line: list[str], log: Path, sent: signal.Signals, wait_s: float) -> tuple[float, float, int]:
    """Start a run, stop it while it trains; seconds until the last file was written and until the end, and the exit code."""
    with log.open("wb") as stream:
        process = subprocess.Popen(line, stdout=stream, stderr=stream, start_new_session=True)
    end = time.monotonic() + 120
    while b"stage 0 fold" not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    time.sleep(wait_s)
    ours = psutil.Process(process.pid).children(recursive=True)
    assert len(ours) > 3  # a private cluster and its workers
    at, began = time.time(), time.monotonic()
    os.kill(process.pid, sent)
    code = process.wait(60)
    seconds = time.monotonic() - began
    _, alive = psutil.wait_procs(ours, timeout=15)
    assert not alive, alive
    files = [path for path in Path(line[-1]).rglob("*") if path.is_file()]
    return max(path.stat().st_mtime for path in files) - at, seconds, code


@pytest.mark.timeout(1500)
def test_a_stopped_driver_ends_at_once_and_takes_its_cluster_along(tmp_path: Path) -> None:
    rng = random.Random(0)
    seconds, saved = [], []
    out, log = tmp_path / "run", tmp_path / "log"
    line = [*LINE, "--recipe.epochs", "2000", "--out", str(out)]
    for turn in range(TIMES):
        sent = (signal.SIGTERM, signal.SIGINT)[turn % 2]
        wrote, took, code = stop(line, log, sent, rng.uniform(0, 3))
        assert code == 130, log.read_text()
        assert "interrupted; run the same line again to resume" in log.read_text()
        assert "Traceback" not in log.read_text()
        seconds.append(took)
        saved.append(wrote)
    print(f"seconds to the end: median {statistics.median(seconds):.2f}, most {max(seconds):.2f}, of {TIMES}")
    print(f"seconds to the last write: median {statistics.median(saved):.2f}, most {max(saved):.2f}")
    assert statistics.median(saved) < 1
    assert statistics.median(seconds) < 3
    assert max(seconds) < 15


def test_a_stopped_run_ends_in_the_same_ids(tmp_path: Path) -> None:
    line = [*LINE, "--recipe.epochs", "40", "--out"]
    for turn in range(3):
        *_, code = stop([*line, str(tmp_path / "stopped")], tmp_path / "log", signal.SIGTERM, float(turn))
        assert code == 130, (tmp_path / "log").read_text()
    for name in ("stopped", "whole"):
        subprocess.run([*line, str(tmp_path / name)], check=True, capture_output=True)
    stopped, whole = ur.load(tmp_path / "stopped"), ur.load(tmp_path / "whole")
    assert stopped.coreset.ids.tolist() == whole.coreset.ids.tolist()
    assert stopped.scores == whole.scores
