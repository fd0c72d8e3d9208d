"""Commands that are given at the same time, with the same folder."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import held

LINE = shlex.split("--keep 0.5 --folds 2 --executor local --recipe.epochs 3 --recipe.min_steps 0 --log_to none")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    labels = np.arange(60) % 3
    return write_parquet(tmp_path / "data.parquet", labels, [png_bytes(pixels) for pixels in class_pixels(labels, 8)])


def test_a_folder_that_somebody_prepares_is_left_to_them(tmp_path: Path, data: Path) -> None:
    with held(Folder(str(tmp_path / "out"))), pytest.raises(ur.UnseenError, match="process"):
        ur.prepare(str(data), tmp_path / "out", size=8)
    assert not (tmp_path / "out").exists()
    assert ur.prepare(str(data), tmp_path / "out", size=8)


def started(data: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    line = ["prune", "--source", str(data), *LINE, "--out", str(out), *more]
    return subprocess.Popen([sys.executable, "-m", "unseen_ray", *line], stderr=subprocess.DEVNULL)


def ids_of(out: Path) -> list[int]:
    return pq.read_table(out / "coreset.parquet").column("id").to_pylist()


@pytest.mark.slow
def test_runs_that_share_a_pixel_folder_keep_the_same_and_leave_nothing(tmp_path: Path, data: Path) -> None:
    assert started(data, tmp_path / "alone").wait(300) == 0
    share = ["--pixel_memory_gb", "0", "--pixel_folder", str(tmp_path / "pixels")]
    runs = [started(data, tmp_path / f"run{number}", *share) for number in range(3)]
    while not (tmp_path / "pixels").exists():
        time.sleep(0.02)
    runs[2].send_signal(signal.SIGKILL)
    assert [run.wait(300) for run in runs] == [0, 0, -signal.SIGKILL]
    assert started(data, tmp_path / "run2", *share).wait(300) == 0
    assert {tuple(ids_of(tmp_path / f"run{number}")) for number in range(3)} == {tuple(ids_of(tmp_path / "alone"))}


@pytest.mark.slow
def test_the_same_line_given_four_times_at_once_is_done_once(tmp_path: Path, data: Path) -> None:
    assert started(data, tmp_path / "alone").wait(300) == 0
    for more in ([], ["--fresh"]):
        runs = [started(data, tmp_path / "run", *more) for _ in range(4)]
        codes = {run.wait(300) for run in runs}
        assert 0 in codes and codes <= {0, 4}, codes
        assert ids_of(tmp_path / "run") == ids_of(tmp_path / "alone")
