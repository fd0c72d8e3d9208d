"""Ray nodes as real processes, started by `ray start` and ended without touching anybody else's Ray."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

BIN = Path(sys.executable).parent


def client_environment(scratch: Path) -> dict[str, str]:
    """This process's environment without its Ray variables, with token authentication by a token of its own."""
    token = scratch / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return plain | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start(env: dict[str, str], log: Path, *args: str, on: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a node; `on` is the line that begins a command on another host."""
    ray = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--object-store-memory=200000000"]
    command = [*on, *ray, *args]
    with log.open("wb") as stream:
        return subprocess.Popen(command, env=env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(log: Path, text: str, limit_s: float = 90) -> None:
    command = f"timeout {limit_s} sh -c 'until grep -q \"{text}\" {log}; do sleep 0.2; done'"
    assert subprocess.run(command, shell=True).returncode == 0, log.read_text()[-2000:]


def stop(*nodes: subprocess.Popen[bytes]) -> None:
    """End nodes side by side, gently at first: their workers end with them, but they themselves would take half a minute."""
    for node in nodes:
        with contextlib.suppress(ProcessLookupError):  # one that failed to start
            os.killpg(node.pid, signal.SIGTERM)
    end = time.monotonic() + 3
    for node in nodes:
        try:
            node.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield entry.read_bytes().decode(errors="replace")
