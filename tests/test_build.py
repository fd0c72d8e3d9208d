"""The wheel of a commit is the same, byte for byte, wherever and whenever it is built."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def built(at: Path, files: list[str]) -> bytes:
    """A wheel from copies of the files, whose times are those of the copying."""
    for name in files:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes((ROOT / name).read_bytes())
    line = ["pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(
        [sys.executable, "-m", *line], cwd=at, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    )
    (wheel,) = (at / "dist").iterdir()
    return wheel.read_bytes()


@pytest.mark.slow
def test_two_builds_give_the_same_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone")
    files = [
        name
        for name in listed.stdout.split("\0")
        if name.startswith("unseen_ray/") or name in ("pyproject.toml", "README.md", "LICENSE")
    ]
    first = built(tmp_path / "one", files)
    time.sleep(2.1)  # a zip archive counts in steps of two seconds
    assert built(tmp_path / "another", files[::-1]) == first
