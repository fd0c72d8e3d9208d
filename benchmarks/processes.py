"""What a command and the processes that it starts hold in memory."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

__all__ = ["watched"]

_POLL_S = 0.5
_SHOWN = 6


def watched(
    process: subprocess.Popen[bytes], others: Sequence[subprocess.Popen[bytes]] = ()
) -> dict[str, dict[str, float]]:
    """Wait for a command, and say what it and the processes below it held at most, the largest of each name, and computed.

    Args:
        process: of the command.
        others: whose processes below are counted, too: nodes that work for it.

    Returns:
        By name, `driver` for the command itself, `resident_gb` with what is shared or mapped from files, `own_gb` without, and `cpu_s`
        of all processes of the name.
    """
    peaks: dict[str, dict[str, float]] = {}
    computed: dict[tuple[str, int], float] = {}
    while process.poll() is None:
        for name, pid, cpu_s, held in _held(process.pid, [each.pid for each in others]):
            peak = peaks.setdefault(name, dict.fromkeys(held, 0.0))
            for kind, size in held.items():
                peak[kind] = max(peak[kind], round(size, 3))
            computed[name, pid] = cpu_s
        time.sleep(_POLL_S)
    process.wait()
    for name, peak in peaks.items():
        peak["cpu_s"] = round(sum(cpu_s for (whose, _), cpu_s in computed.items() if whose == name), 1)
    largest = sorted(peaks.items(), key=lambda item: (item[0] != "driver", -item[1]["resident_gb"]))
    return dict(largest[:_SHOWN])


def _held(pid: int, others: Sequence[int]) -> list[tuple[str, int, float, dict[str, float]]]:
    found = []
    for each in itertools.chain.from_iterable(map(_below, (pid, *others))):
        try:
            cpu_s = sum(each.cpu_times()[:2])
            status = Path(f"/proc/{each.pid}/status").read_text()
            name = "driver" if each.pid == pid else each.name().split(".")[0]  # an actor's, without the call
        except (OSError, psutil.NoSuchProcess):
            continue
        sizes = dict(row.split(":", 1) for row in status.splitlines() if row.startswith(("VmHWM", "RssAnon")))
        if len(sizes) == 2:
            kb = {kind: int(value.split()[0]) for kind, value in sizes.items()}
            sizes_gb = {"resident_gb": kb["VmHWM"] * 1024 / 1e9, "own_gb": kb["RssAnon"] * 1024 / 1e9}
            found.append((name, each.pid, cpu_s, sizes_gb))
    return found


def _below(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
