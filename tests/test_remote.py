"""Object stores that cannot be reached: a clear error in seconds, and Ctrl-C is heard meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import unseen_ray as ur
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import filesystem_of


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def on_google(port: int) -> str:
    return f"gs://anonymous@bucket-{port}/a.parquet?scheme=http&endpoint_override=127.0.0.1:{port}"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_google_that_cannot_be_reached_is_an_error_in_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"gs://\S+ cannot be opened: .*Could not connect to server\. Check .*GOOGLE_APPL"
    ):
        filesystem_of(on_google(closed_port()))
    assert time.monotonic() - began < 20


def test_a_server_that_is_silent_is_given_up(silent: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEEN_RAY_STORAGE_WAIT_S", "1")
    with pytest.raises(ConfigError, match=r"cannot be opened: no answer within 1 s\. Check the address, the network"):
        filesystem_of(on_google(silent.getsockname()[1]))


def test_ctrl_c_is_heard_while_a_server_is_silent(silent: socket.socket) -> None:
    line = [sys.executable, "-m", "unseen_ray", "plan", "--keep", "0.5", "--source", on_google(silent.getsockname()[1])]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    silent.settimeout(60)
    connection, _ = silent.accept()
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    connection.close()
    assert process.returncode == 130 and err.strip() == "interrupted; run the same line again to resume"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("az://container/data", r"Unrecognized .* an address on Azure is abfs://container@account\.dfs"),
        ("abfs://container/data", r"valid account name.*AZURE_CLIENT_SECRET; an address on Azure is abfs://container@"),
        ("abfs://account.dfs.core.windows.net/container/data", r"an address on Azure is abfs://container@account\.dfs"),
        ("abfs://c@account.dfs.core.windows.net/a?credential_kind=environment", r"credentials \(AZURE_TENANT_ID, "),
    ],
)
def test_addresses_on_azure_that_cannot_be_used_say_how_they_are_written(
    path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_TENANT_ID", raising=False)
    with pytest.raises(ConfigError, match=message):
        filesystem_of(path)


def test_containers_and_public_buckets_are_no_passwords_but_keys_are() -> None:
    for path in ("abfs://container@account.dfs.core.windows.net/a", "gs://anonymous@bucket/a"):
        source = {"use": "parquet", "path": path}
        assert ur.PruneConfig(source=source, keep=0.5).source == source
    for path in (
        "abfs://container:a2V5@account.dfs.core.windows.net/a",
        "abfs://container@account.dfs.core.windows.net/a?client_secret=a",
        "gs://me@bucket/a",
    ):
        with pytest.raises(ConfigError, match=r"holds a key or a password .*AZURE_CLIENT_SECRET"):
            ur.PruneConfig(source={"use": "parquet", "path": path}, keep=0.5)
