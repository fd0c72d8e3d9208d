"""Storage that fails for a while costs time alone; what it refuses, and what never answers, ends in a clear message."""

from __future__ import annotations

import errno
import json
import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from tests.s3 import S3Server, s3_server
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import StorageError
from unseen_ray.runs.votes import find_receipt
from unseen_ray.storage.environment import STORAGE_WAIT_S
from unseen_ray.storage.filesystem import Folder, filesystem_of, read_file, sha256_of
from unseen_ray.storage.retry import is_on_network, is_transient, retried, retried_inline
from unseen_ray.storage.tables import sha256_of_file, with_parquet

FIELDS = {
    "source": {"use": "digits", "limit": 200},
    "keep": 0.5,
    "folds": 2,
    "schedule": [0.3, 0.5],
    "recipe": {"epochs": 2, "min_steps": 0},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server(monkeypatch) as server:
        yield server


@pytest.mark.parametrize("call", [retried, lambda what, do: retried_inline(what, do, None)])
def test_a_call_that_finds_no_memory_is_no_failure_of_storage(call: Callable[[str, Callable[[], None]], None]) -> None:
    def do() -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory", "scores.parquet")

    with pytest.raises(MemoryError, match=r"scores\.parquet: cannot allocate memory"):
        call("scores.parquet", do)


OUTAGE_S = 0.7  # tried again after 0.2, 0.6 and 1.4 s


def test_time_in_which_the_process_was_stopped_is_not_counted() -> None:
    script = """
import time
from unseen_ray.storage.retry import answered
print("asking", flush=True)
answered("file", lambda: time.sleep(0.5), 1.0)
"""
    asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert asking.stdout is not None and asking.stdout.readline() == b"asking\n"
    asking.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    asking.send_signal(signal.SIGCONT)
    assert asking.wait(60) == 0
    asking.stdout.close()


def fails_until(end: float, status: int = 500) -> object:
    return lambda method, path: status if time.monotonic() < end else None


@pytest.mark.parametrize("status", [500, 503])
def test_an_outage_is_waited_for(server: S3Server, status: int) -> None:
    folder = Folder("s3://runs/outage")
    folder.write("there", b"before")
    for do in (lambda: folder.write("new", b"x" * 100), lambda: folder.read("there"), lambda: folder.delete("new")):
        asked, server.fault = server.requests, fails_until(time.monotonic() + OUTAGE_S)
        do()
        assert server.requests > asked + 2
    assert folder.read("there") == b"before"
    assert folder.names() == ["there"]


def test_failures_that_pass_are_tried_again_and_named(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[OSError | str] = [OSError(errno.EIO, "flaky"), OSError(errno.ESTALE, "moved"), "there"]

    def do() -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert retried("mount/file", do) == "there"
    assert [record.message.split(";")[0] for record in caplog.records] == [
        f"mount/file: [Errno {errno.EIO}] flaky",
        f"mount/file: [Errno {errno.ESTALE}] moved",
    ]


def test_an_outage_that_lasts_is_told_with_the_path(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEEN_RAY_STORAGE_WAIT_S", "4")
    server.fault = lambda method, path: 500
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://runs/gone/file cannot be written: .*repair the storage"):
        Folder("s3://runs/gone").write("file", b"x")
    with pytest.raises(StorageError, match=r"s3://runs/gone/file cannot be read"):
        Folder("s3://runs/gone").read("file")
    assert time.monotonic() - began < 40


def test_a_long_file_of_a_slow_storage_is_waited_for_while_it_comes(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder("s3://runs/slow")
    digest = folder.write("long", bytes(range(60)))
    monkeypatch.setenv(STORAGE_WAIT_S, "1")
    monkeypatch.setattr("unseen_ray.storage.filesystem._PIECE", 20)
    server.fault = lambda method, path: 0.4
    began = time.monotonic()
    assert sha256_of_file(folder, "long") == digest == sha256_of(folder.read_whole("long"))
    assert time.monotonic() - began > 2.5


def test_a_long_file_that_fails_late_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_WAIT_S, "1")
    attempts = iter(range(2))

    def rows() -> Iterator[np.ndarray]:
        attempt = next(attempts)
        for row in range(3):
            time.sleep(0.4)
            yield np.full((1, 2), row, np.float32)
        if not attempt:
            raise OSError(errno.ECONNRESET, "connection reset")

    Folder(str(tmp_path)).write_rows("long.npy", (3, 2), rows)
    assert np.load(tmp_path / "long.npy").tolist() == [[0, 0], [1, 1], [2, 2]]


def test_a_storage_that_never_answers_is_given_up(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder("s3://runs/silent")
    fs, image = filesystem_of(folder.path("image"))
    folder.write("image", b"pixels")
    monkeypatch.setenv(STORAGE_WAIT_S, "1")
    server.fault = lambda method, path: 9.0
    for do, what in {
        lambda: folder.read("file"): "s3://runs/silent/file cannot be read: ",
        lambda: find_receipt(folder, 0, 0, "key"): "s3://runs/silent/stage-00/votes/00.parquet cannot be read: ",
        lambda: sha256_of_file(folder, "image"): "s3://runs/silent/image cannot be read: ",
        lambda: read_file(fs, image): "",
    }.items():
        began = time.monotonic()
        with pytest.raises((StorageError, OSError), match=f"^{what}no answer within 1 s"):
            do()
        assert time.monotonic() - began < 4


@pytest.mark.slow
def test_an_interrupted_run_ends_though_its_storage_never_answers(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(STORAGE_WAIT_S, "3")
    fields = {**FIELDS, "model": {"use": "tests.plugs:dozing", "seconds": 0.3}, "executor": "local", "log_to": "none"}
    fields |= {"recipe": {"epochs": 30, "min_steps": 0}, "out": "s3://runs/interrupted"}
    (tmp_path / "run.yaml").write_text(json.dumps(fields))
    line = [sys.executable, "-m", "unseen_ray", "prune", str(tmp_path / "run.yaml")]
    run = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None and any("started" in told for told in run.stderr)
    time.sleep(1)
    server.fault = lambda method, path: 100.0
    time.sleep(4)
    run.send_signal(signal.SIGTERM)
    assert run.wait(50) == 130
    assert "interrupted; run the same line again to resume" in run.stderr.read()
    run.stderr.close()


@pytest.mark.parametrize("out", ["s3://runs/refused", "s3://nobucket/run"])
def test_what_is_refused_is_not_asked_for_again(server: S3Server, out: str) -> None:
    if "nobucket" not in out:
        server.fault = lambda method, path: 403
    asked = server.requests
    with pytest.raises(StorageError, match=rf"{out}/file cannot be written"):
        Folder(out).write("file", b"x")
    assert server.requests <= asked + 3


def test_local_failures_that_no_waiting_mends() -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EDQUOT, errno.EFBIG):
        assert not is_transient(OSError(number, "given"))
    for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        assert is_transient(OSError(number, "given"))


def test_what_is_no_failure_of_a_service_is_not_waited_for() -> None:
    assert not is_transient(OSError("Corrupt snappy compressed data."))
    assert not is_transient(OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"))
    assert is_transient(OSError("When reading object: AWS Error UNKNOWN (HTTP status 500) during GetObject operation"))
    assert not is_transient(OSError("When reading object: AWS Error ACCESS_DENIED during GetObject operation"))


def test_a_source_that_fails_for_a_while_is_waited_for(server: S3Server, tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 8)]
    data = write_parquet(tmp_path / "data.parquet", labels, images).read_bytes()
    Folder("s3://runs/data").write("data.parquet", data)
    for number, image in enumerate(images):
        Folder("s3://runs/tree").write(f"{'ab'[number % 2]}/{number:02d}.png", image)
    for path in ("s3://runs/data/data.parquet", "s3://runs/tree"):
        asked, server.fault = server.requests, fails_until(time.monotonic() + OUTAGE_S, 503)
        source = open_source(source_ref(path))
        server.fault = fails_until(time.monotonic() + OUTAGE_S)
        assert len(list(source.read(range(40)))) == len(source.info) == 40
        assert server.requests > asked + 4


def test_what_is_interrupted_is_not_tried_again() -> None:
    calls = []

    def interrupted() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retried("anything", interrupted)
    assert calls == [1]


@pytest.mark.slow
def test_a_run_on_a_storage_that_fails_now_and_then(server: S3Server, tmp_path: Path) -> None:
    undisturbed = ur.prune(ur.PruneConfig(**FIELDS, executor="local", out=tmp_path / "run"))
    draws = random.Random(0)
    failed = []

    def fault(method: str, path: str) -> int | None:
        if draws.random() < 0.2:
            failed.append(method)
            return 500
        return None

    server.fault = fault
    result = ur.prune(ur.PruneConfig(**FIELDS, executor="local", out="s3://runs/pruned"))
    server.fault = None
    assert len(failed) > 20
    assert result.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    folder = Folder("s3://runs/pruned")
    names = {name.split("/")[0] for name in result.manifest.files}
    assert set(folder.names()) == names | {"manifest.json", "manifest.copy.json", "tensorboard"}
    assert b"loopback-secret" not in (folder.read("manifest.json") or b"")


@pytest.mark.ray
@pytest.mark.slow
def test_workers_reach_the_storage_of_the_run(server: S3Server, tmp_path: Path) -> None:
    undisturbed = ur.prune(ur.PruneConfig(**FIELDS, executor="local", out=tmp_path / "run"))
    result = ur.prune(ur.PruneConfig(**FIELDS, out="s3://runs/ray"))
    assert result.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    assert "loopback-secret" not in json.dumps(result.manifest.environment)


def mounts(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> None:
    table = folder.parent / f"{folder.name}.mounts"
    table.write_text(
        f"1 1 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {folder.resolve()} rw shared:1 - {kind} server:/x rw\n"
    )
    monkeypatch.setattr("unseen_ray.storage.retry._MOUNTS", str(table))


@pytest.mark.parametrize(
    ("kind", "network"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("fuseblk", False), ("overlay", False)]
)
def test_a_network_file_system_is_known_by_its_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: bool
) -> None:
    mounts(monkeypatch, tmp_path, kind)
    assert is_on_network(str(tmp_path / "stage-00" / "a")) is network
    monkeypatch.chdir(tmp_path)
    assert not is_on_network(str(tmp_path.parent)) and not is_on_network("s3://bucket/a")


@pytest.mark.parametrize("read", ["read_whole", "sha256_of_file", "with_parquet"])
def test_a_file_that_must_be_there_is_looked_for_again_on_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    mounts(monkeypatch, tmp_path, "nfs")
    folder, late = Folder(str(tmp_path)), threading.Timer(0.1, lambda: (tmp_path / "a").hardlink_to(tmp_path / "b"))
    digest = folder.write_table("b", pa.table({"id": [1]}))
    start = time.monotonic()
    assert folder.read("a") is None and sha256_of_file(folder, "a") is None  # whether it is there is answered at once
    assert time.monotonic() - start < 0.1
    late.start()
    found = {
        "read_whole": lambda: sha256_of(folder.read_whole("a", digest)),
        "sha256_of_file": lambda: sha256_of_file(folder, "a", known=True),
        "with_parquet": lambda: with_parquet(folder, "a", lambda file: digest if file.metadata.num_rows == 1 else ""),
    }[read]()
    assert found == digest


def test_a_file_that_must_be_there_is_missed_at_once_on_a_disk(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StorageError, match="a is missing"):
        Folder(str(tmp_path)).read_whole("a")
    assert time.monotonic() - start < 1
