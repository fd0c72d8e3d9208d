"""Hosts on one machine: each has its own network, name, processes, shared memory and /tmp/ray, and a cable to a switch.

All of it lives in namespaces without a name, which the kernel removes with the process that holds them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
_NET = "10.203.47"
_HOLD = "echo up; while sleep 1; do :; done"
_SWITCH = "ip link add br0 type bridge && ip link set br0 up && "
_HOST = (
    "hostname {name} && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm && "
    "mount --bind {names} /etc/hosts && ip link set lo up && "
)


def why_not() -> str | None:
    """Why this machine cannot make hosts; None where it can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found"
    if os.geteuid():
        return "network namespaces need root"
    tried = subprocess.run(_apart(f"{_SWITCH} mount -t tmpfs tmpfs /dev/shm"), capture_output=True, text=True)
    return f"this machine makes no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True, slots=True)
class Host:
    """One host.

    Attributes:
        name: its hostname.
        address: in the network of the hosts.
        pid: of its first process, whose end is the host's.
    """

    name: str
    address: str
    pid: int

    @property
    def on(self) -> Sequence[str]:
        """What begins the line of a command that is to run there."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--")


@dataclass(frozen=True, slots=True)
class Network:
    """Hosts and the switch between them."""

    hosts: tuple[Host, ...]
    switch: int

    def cut(self, host: Host) -> None:
        """Pull a host's cable: what it sends is lost, and nobody is told."""
        self._set(host, "down")

    def mend(self, host: Host) -> None:
        """Plug it in again."""
        self._set(host, "up")

    def _set(self, host: Host, state: str) -> None:
        _do("nsenter", f"--target={self.switch}", "--net", "ip", "link", "set", host.name, state)


@contextlib.contextmanager
def network(folder: Path, *names: str) -> Iterator[Network]:
    """Hosts of these names; with the block they end, and every process on them."""
    addresses = {name: f"{_NET}.{number}" for number, name in enumerate(names, start=1)}
    known = folder / "hosts"
    known.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_held(_SWITCH))
        hosts = []
        for name, address in addresses.items():
            pid = stack.enter_context(_held(_HOST.format(name=name, names=known)))
            _do(
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                str(pid),
                "type",
                "veth",
                "peer",
                "name",
                name,
                "netns",
                str(switch),
            )
            _do("nsenter", f"--target={switch}", "--net", "ip", "link", "set", name, "master", "br0", "up")
            inside = "nsenter", f"--target={pid}", "--net", "ip"
            _do(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            _do(*inside, "link", "set", "eth0", "up")
            _do(*inside, "route", "add", "default", "dev", "eth0")  # Ray finds its address by the way to anywhere
            hosts.append(Host(name, address, pid))
        yield Network(tuple(hosts), switch)


@contextlib.contextmanager
def _held(script: str) -> Iterator[int]:
    """The first process of new namespaces after a script there; they end with the block, or with this process."""
    line = ["setpriv", "--pdeathsig", "KILL", *_apart(script + _HOLD)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "up\n", f"{script} has failed"
            yield int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
        finally:
            holder.kill()


def _apart(script: str) -> list[str]:
    apart = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*apart, "sh", "-c", script]


def _do(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(line)}: {done.stderr}"
