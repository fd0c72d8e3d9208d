"""Conditional requests: of drivers on S3 one alone gets a run, and no late request of another lands."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import botocore.config
import pytest

import unseen_ray as ur
from tests.s3 import S3Server, s3_server
from tests.stopping import CHECKED, WRITE, Driver, Moment
from tests.test_lock import stranger
from tests.test_zombies import LINE, LOCAL
from unseen_ray.errors import RunInUseError
from unseen_ray.runs.manifest import Manifest, read_manifest, write_manifest
from unseen_ray.storage import lock
from unseen_ray.storage.environment import STORAGE_WAIT_S
from unseen_ray.storage.fence import LOCK
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.lock import held
from unseen_ray.storage.remote import conditional
from unseen_ray.storage.remote.conditional import conditional_file
from unseen_ray.storage.retry import is_transient

OUT = Folder("s3://runs/run")
MOMENTS = [
    Moment(CHECKED, WRITE, LOCK, times=2),
    Moment(CHECKED, WRITE, "manifest.json"),
    Moment(CHECKED, WRITE, "manifest.json", times=3),
    Moment(CHECKED, WRITE, "manifest.copy.json", times=2),
]
ROUNDS = 8


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    monkeypatch.setattr(conditional, "_unconditional", set())
    monkeypatch.setattr(conditional, "_reached", set())
    monkeypatch.setattr(lock, "_BEAT_S", 0.05)
    monkeypatch.setattr(lock, "_SETTLE_S", float("nan"))  # nobody sleeps for so long
    with s3_server(monkeypatch) as server:
        for name in OUT.files():  # moto keeps them
            OUT.delete(name)
        yield server


def manifest(generation: int = 0) -> Manifest:
    asked = ur.PruneConfig(source="digits", keep=0.5).to_json()
    source = {"fingerprint": "", "num_samples": 1, "num_classes": 1, "class_names": []}
    return Manifest(created="", config=asked, asked=asked, source=source, generation=generation)


def at_request(server: S3Server, method: str, name: str, do: Callable[[], object]) -> threading.Event:
    """Do something once, when the server gets such a request and before it obeys it; the event tells that it is done."""
    is_done, begin = threading.Event(), threading.Lock()

    def fault(asked: str, path: str) -> None:
        if asked == method and path.endswith(name) and begin.acquire(blocking=False):
            do()
            is_done.set()

    server.fault = fault
    return is_done


def taken_by_another() -> bytes:
    """Another driver's lock, written as one without conditions does."""
    data = lock._bytes_of(stranger(0))
    OUT.write(LOCK, data)
    return data


@pytest.mark.parametrize(
    "silent", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["a new run", "a silent driver's"]
)
def test_of_drivers_that_begin_at_once_one_gets_the_run_and_none_waits(server: S3Server, silent: bool) -> None:
    def drive(barrier: threading.Barrier) -> str:
        barrier.wait()
        try:
            with held(OUT):
                barrier.wait()
                return "held"
        except RunInUseError as error:
            barrier.wait()
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        for _ in range(ROUNDS):
            if silent:
                OUT.write(LOCK, lock._bytes_of(stranger(90)))
            barrier = threading.Barrier(3)
            ended = sorted(each.result() for each in [pool.submit(drive, barrier) for _ in range(3)])
            assert ended.count("held") == 1 and all("s3://runs/run is held by" in each for each in ended[1:]), ended
            assert OUT.read(LOCK) is None


@pytest.mark.parametrize("name", ["manifest.json", "manifest.copy.json"])
def test_a_manifest_under_way_when_another_driver_took_over_lands_nowhere(server: S3Server, name: str) -> None:
    with held(OUT) as own:
        write_manifest(own.folder, manifest())

        def take_over() -> None:
            taken_by_another()
            for each in ("manifest.json", "manifest.copy.json"):
                OUT.write(each, b"of the other one")

        is_done = at_request(server, "PUT", name, take_over)
        with pytest.raises(RunInUseError, match="another driver has taken over"):
            write_manifest(own.folder, manifest(1))
        assert is_done.is_set()
        assert OUT.read(name) == b"of the other one"


def test_a_first_manifest_under_way_when_another_driver_was_quicker_lands_nowhere(server: S3Server) -> None:
    with held(OUT) as own:
        at_request(server, "PUT", "manifest.json", lambda: (taken_by_another(), OUT.write("manifest.json", b"first")))
        with pytest.raises(RunInUseError, match="another driver has taken over"):
            write_manifest(own.folder, manifest())
        assert OUT.read("manifest.json") == b"first"


def test_a_late_manifest_of_the_driver_before_does_not_stop_the_one_that_took_over(server: S3Server) -> None:
    with held(OUT) as own:
        at_request(server, "PUT", "manifest.json", lambda: OUT.write("manifest.json", b"late"))
        write_manifest(own.folder, manifest(1))
        found = read_manifest(OUT)
        assert found is not None and found.generation == 1


def test_a_lock_that_comes_after_another_ones_lands_nowhere(server: S3Server) -> None:
    other: list[bytes] = []
    at_request(server, "PUT", LOCK, lambda: other.append(taken_by_another()))
    with pytest.raises(RunInUseError, match="is held by process 7 on far"), held(OUT):
        pass
    assert OUT.read(LOCK) == other[0]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_renewal_or_removal_of_a_lock_that_is_lost_lands_nowhere(server: S3Server, method: str) -> None:
    other: list[bytes] = []
    with held(OUT) as own:
        is_done = at_request(server, method, LOCK, lambda: other.append(taken_by_another()))
        if method == "PUT":
            end = time.monotonic() + 10
            with pytest.raises(RunInUseError, match="has taken over"):
                while time.monotonic() < end:
                    own.check()
                    time.sleep(0.02)
    assert is_done.is_set() and OUT.read(LOCK) == other[0]


@pytest.mark.parametrize(
    ("name", "silent"),
    [(LOCK, False), (LOCK, True), ("manifest.json", False)],
    ids=["created", "taken over", "manifest"],
)
def test_an_answer_that_is_lost_is_no_other_driver(server: S3Server, name: str, silent: bool) -> None:
    if silent:
        OUT.write(LOCK, lock._bytes_of(stranger(90)))
    left = iter(["lost"])
    server.fault = lambda method, path: next(left, None) if method == "PUT" and path.endswith(name) else None
    with held(OUT) as own:
        write_manifest(own.folder, manifest())
        own.check()
    assert next(left, None) is None and OUT.names() == ["manifest.copy.json", "manifest.json"]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_conflict_of_requests_at_once_is_asked_again(server: S3Server, method: str) -> None:
    left = iter([409])
    server.fault = lambda asked, path: next(left, None) if asked == method and path.endswith(LOCK) else None
    with held(OUT) as own:
        own.check()
    assert next(left, None) is None and OUT.read(LOCK) is None


@pytest.mark.parametrize("conditions", ["refused", "ignored"])
def test_a_store_without_conditions_is_told_once_and_used_as_before(
    server: S3Server, conditions: Literal["refused", "ignored"], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(lock, "_SETTLE_S", 0.3)
    server.conditions = conditions
    with held(OUT) as own, pytest.raises(RunInUseError, match="is held by"), held(OUT):
        pass
    with held(OUT) as own:
        write_manifest(own.folder, manifest())
    assert read_manifest(OUT) == manifest()
    said = [each.getMessage() for each in caplog.records if "no conditional requests to s3://runs" in each.getMessage()]
    assert len(said) == 1 and ("ignores" in said[0] if conditions == "ignored" else "501" in said[0])
    assert "loopback" not in caplog.text


def test_a_lock_is_removed_from_a_store_that_checks_writes_alone(server: S3Server, caplog: Any) -> None:
    server.conditions = "kept by writes"
    for _ in range(2):
        with held(OUT):
            pass
        assert OUT.read(LOCK) is None
    assert not caplog.records


def test_without_boto3_drivers_settle_by_waiting(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    with pytest.raises(ValueError, match="Invalid value NaN"), held(OUT):
        pass
    monkeypatch.setattr(lock, "_SETTLE_S", 0.3)
    with held(Folder("s3://runs/other")) as own:
        write_manifest(own.folder, manifest())
        own.check()


def test_a_boto3_that_knows_no_conditions_is_as_none(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    config = botocore.config.Config
    known = {name: value for name, value in config.OPTION_DEFAULTS.items() if "checksum" not in name}
    monkeypatch.setattr(config, "OPTION_DEFAULTS", OrderedDict(known))  # as it was before 1.36
    monkeypatch.setenv("AWS_NEW_CLIENT", "1")
    OUT.write("a", b"1", conditional=True)
    OUT.write("a", b"2", conditional=True)
    assert OUT.read("a") == b"2"
    said = [each.getMessage() for each in caplog.records]
    assert len(said) == 1 and "boto3 is too old" in said[0] and "pip install 'boto3>=1.36'" in said[0]


def test_an_outage_does_not_end_conditions(server: S3Server) -> None:
    OUT.write("a", b"1", conditional=True)
    fs, _ = filesystem_of(OUT.root)
    file = conditional_file(OUT.path("a"), fs.region)
    assert file is not None
    server.close()
    for _ in range(2):  # of the connection that may still be open, and of a new one
        with pytest.raises(OSError, match=r"(ConnectionClosed|EndpointConnection)Error during head_object") as error:
            file.etag()
        assert is_transient(error.value)
    assert "EndpointConnectionError" in str(error.value)
    assert conditional_file(OUT.path("a"), fs.region) is not None


def test_where_boto3_never_came_through_pyarrow_writes(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # which pyarrow does not ask
    monkeypatch.setenv("AWS_NEW_CLIENT", "2")
    OUT.write("a", b"1", conditional=True)
    assert OUT.read("a") == b"1" and "no conditional requests to s3://runs: ProxyConnectionError" in caplog.text


def test_conditional_requests_go_where_pyarrow_goes(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    OUT.write("a-b", b"1", conditional=True)
    assert OUT.read("a-b") == b"1"
    fs, _ = filesystem_of(OUT.root)
    file = conditional_file(OUT.path("a-b"), fs.region)
    assert file is not None and file.client.meta.region_name == fs.region == "eu-west-1"


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment.name} {moment.times}")
def test_no_lock_and_no_manifest_of_a_driver_that_was_stopped_before_its_request_lands(
    server: S3Server, moment: Moment, tmp_path: Path
) -> None:
    line = [*LINE, *LOCAL, "--keep", "0.3", "--out", OUT.root]
    variables = {**server.environment, STORAGE_WAIT_S: "3"}
    first = Driver(line, tmp_path / "first", moment, variables)
    first.wait_until_it_stops()
    OUT.write(LOCK, json.dumps({**json.loads(OUT.read(LOCK) or b""), "started": "0"}).encode())
    code, log = Driver(line, tmp_path / "second", variables=variables).wait()
    assert code == 0, log
    before = {name: OUT.read(name) for name in OUT.files()}
    first.wake()
    code, log = first.wait()
    assert code == 4 and log.count("error: this driver has lost") == 1, log
    assert {name: OUT.read(name) for name in OUT.files()} == before
    assert json.loads(before["manifest.json"] or b"")["finished"]
