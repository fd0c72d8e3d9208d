"""What a command and the processes that it starts hold in memory."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil

__all__ = ["watched"]

_POLL_S = 0.5
_SHOWN = 6


def watched(process: subprocess.Popen[bytes]) -> dict[str, dict[str, float]]:
    """Wait for a command, and say what it and the processes below it held at most, in GB, the largest of each name.

    Returns:
        By name, `driver` for the command itself, `resident` with what is shared or mapped from files, and `own` without.
    """
    peaks: dict[str, dict[str, float]] = {}
    while process.poll() is None:
        for name, held in _held(process.pid):
            peak = peaks.setdefault(name, dict.fromkeys(held, 0.0))
            for kind, size in held.items():
                peak[kind] = max(peak[kind], size)
        time.sleep(_POLL_S)
    process.wait()
    largest = sorted(peaks.items(), key=lambda item: (item[0] != "driver", -item[1]["resident"]))
    return dict(largest[:_SHOWN])


def _held(pid: int) -> list[tuple[str, dict[str, float]]]:
    found = []
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for each in processes:
        try:
            status = Path(f"/proc/{each.pid}/status").read_text()
            name = "driver" if each.pid == pid else each.name()
        except (OSError, psutil.NoSuchProcess):
            continue
        sizes = dict(row.split(":", 1) for row in status.splitlines() if row.startswith(("VmHWM", "RssAnon")))
        if len(sizes) == 2:
            kb = {kind: int(value.split()[0]) for kind, value in sizes.items()}
            found.append((name, {"resident": kb["VmHWM"] * 1024 / 1e9, "own": kb["RssAnon"] * 1024 / 1e9}))
    return found
