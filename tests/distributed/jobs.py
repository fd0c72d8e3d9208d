"""Runs that are handed in as Ray jobs, and what they leave in their folder while they are at work."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.nodes import BIN
from unseen_ray.storage.filesystem import sha256_of


def rays(folder: Path, *args: str, job: str | None = None) -> list[str]:
    """The line of a `ray job submit` of an `unseen-ray prune` from a folder."""
    named = [] if job is None else ["--submission-id", job]
    return [str(BIN / "ray"), "job", "submit", "--working-dir", str(folder), *named, "--", "unseen-ray", "prune", *args]


def ours(folder: Path, *args: str) -> list[str]:
    """The line of an `unseen-ray submit` from a folder."""
    return [str(BIN / "unseen-ray"), "submit", "--working-dir", str(folder), *args]


def done(line: Sequence[str], env: dict[str, str], limit_s: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=limit_s)


@dataclass(frozen=True, slots=True)
class Followed:
    """A command that follows a job, and the file that takes what it says."""

    command: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        return self.log.read_text()

    def found(self, pattern: str) -> list[str]:
        """What a pattern finds in what was said so far."""
        return re.findall(pattern, self.text())

    def ended(self, limit_s: float = 400) -> int:
        return self.command.wait(limit_s)


@contextlib.contextmanager
def followed(line: Sequence[str], env: dict[str, str], log: Path) -> Iterator[Followed]:
    """A command in the background; it ends with the block."""
    with log.open("wb") as stream, subprocess.Popen(line, env=env, stdout=stream, stderr=stream) as command:
        try:
            yield Followed(command, log)
        finally:
            command.kill()


def until(happened: Callable[[], object], what: str, limit_s: float = 120) -> float:
    """Wait for something; how many seconds that took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < limit_s, f"within {limit_s:.0f} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def until_checkpoint(out: Path, limit_s: float = 120) -> None:
    until(lambda: epochs(out), "no training has begun", limit_s)


def epochs(out: Path) -> dict[str, int]:
    """After how many epochs the last checkpoint of each task in training stands."""
    found = {}
    for path in out.glob("checkpoints/*/checkpoint.json"):
        with contextlib.suppress(FileNotFoundError):  # a task that is done has none
            head = json.loads(path.read_text())
            found[head["task"]] = head["position"]["epoch"]
    return found


def votes(out: Path) -> dict[str, str]:
    """Digest of the votes of each finished task of stage 0."""
    paths = sorted(out.glob("stage-00/votes/*.parquet"))
    return {f"stage 0 fold {int(path.stem)}": sha256_of(path.read_bytes()) for path in paths}


def places_of(text: str, *roots: Path) -> list[Path]:
    """Files below some folders that hold a text."""
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    return [path for path in files if text.encode() in path.read_bytes()]
