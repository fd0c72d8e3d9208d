"""Progress of a script: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import unseen_ray as ur

fields = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 2, "min_steps": 0}, "policy": "top", "log_to": "none"}
ur.prune(source={"use": "digits", "limit": 300}, executor="local", out=sys.argv[1], progress=sys.argv[2] == "True", **fields)
"""


def shown(out: Path, *, progress: bool, terminal: bool) -> str:
    """What the script writes to stderr."""
    command = [sys.executable, "-c", SCRIPT, str(out), str(progress)]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode()


@pytest.mark.slow  # three processes that load torch
def test_a_script_shows_its_progress_on_a_terminal_alone(tmp_path: Path) -> None:
    text = shown(tmp_path / "a", progress=True, terminal=True)
    assert "starting" in text and "stage 0 fold 1: done, scored" in text
    assert "fold" not in shown(tmp_path / "b", progress=False, terminal=True)
    assert "fold" not in shown(tmp_path / "c", progress=True, terminal=False)
