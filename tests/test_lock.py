"""One driver a run: real processes, on local disk and on an S3 server."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import unseen_ray as ur
from tests.s3 import s3_server
from unseen_ray.errors import RunInUseError
from unseen_ray.storage import filesystem, lock
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import LOCK, Holder, held

FIELDS = "--source digits --source.limit 200 --keep 0.5 --folds 2 --executor local --log_to none"
LINE = [sys.executable, "-m", "unseen_ray", "prune", *FIELDS.split()]


def start(out: str, *, go: Path) -> subprocess.Popen[str]:
    """A run that trains once the file `go` is there."""
    fit = ["--fit", json.dumps({"use": "tests.plugs:waiting_centroids", "until": str(go)})]
    return subprocess.Popen([*LINE, *fit, "--out", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def raced(out: str, count: int, *, go: Path) -> list[tuple[int, str, str]]:
    """Exit codes, answers and logs of drivers that start at once; one that holds the run goes on when the others have ended."""
    drivers = [start(out, go=go) for _ in range(count)]
    end = time.monotonic() + 120
    while sum(driver.poll() is None for driver in drivers) > 1 and time.monotonic() < end:
        time.sleep(0.05)
    go.touch()
    return [(driver.wait(60), *driver.communicate()) for driver in drivers]


def stranger(age_s: float) -> Holder:
    return Holder(
        token="t", host="far", pid=7, job="raysubmit_1", home="elsewhere", started="1", beat=time.time() - age_s
    )


def write(folder: Folder, holder: Holder) -> None:
    folder.write(LOCK, lock._bytes_of(holder))


def holder_of(folder: Folder) -> dict[str, object]:
    return json.loads(folder.read(LOCK) or b"{}")


def test_a_run_is_held_while_it_lasts_and_let_go(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    with held(folder) as own:
        assert holder_of(folder)["pid"] == os.getpid()
        own.check()
        with (
            pytest.raises(RunInUseError, match=rf"held by process {os.getpid()} on .* last reported \d s ago"),
            held(folder),
        ):
            pass
    assert folder.names() == []


def test_the_same_line_twice_runs_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = raced(str(out), 3, go=tmp_path / "go")
    assert sorted(code for code, _, _ in ended) == [0, 4, 4]
    for code, stdout, stderr in ended:
        if code == 4:
            assert "is held by process" in stderr
            assert stdout == ""
    assert len(ur.load(out).coreset) == 100
    assert LOCK not in os.listdir(out)


@pytest.mark.slow
def test_the_same_line_twice_runs_once_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server(monkeypatch):
        ended = raced("s3://runs/twice", 2, go=tmp_path / "go")
        assert sorted(code for code, _, _ in ended) == [0, 4], ended
        assert len(ur.load("s3://runs/twice").coreset) == 100
        assert LOCK not in Folder("s3://runs/twice").names()


def test_after_a_killed_driver_the_same_line_goes_on_at_once(tmp_path: Path) -> None:
    out, go = tmp_path / "run", tmp_path / "go"
    killed = start(str(out), go=go)
    deadline = time.monotonic() + 60
    while not (out / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()  # waits for it, and closes its pipes
    assert (out / LOCK).exists()
    go.touch()
    began = time.monotonic()
    again = start(str(out), go=go)
    _, log = again.communicate(timeout=120)
    assert again.returncode == 0, log
    assert time.monotonic() - began < 40
    assert "taking over" in log


def test_a_driver_elsewhere_is_left_to_its_work_until_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    write(folder, stranger(30))
    with (
        pytest.raises(RunInUseError, match=r"process 7 on far, job raysubmit_1, which last reported 3\d s ago"),
        held(folder),
    ):
        pass
    monkeypatch.setattr(lock, "_BEAT_S", 0.1)
    monkeypatch.setattr(lock, "_SETTLE_S", 0.2)
    write(folder, stranger(90))
    with held(folder):
        assert holder_of(folder)["pid"] == os.getpid()


def test_the_age_of_a_report_is_given_where_it_is_known() -> None:
    assert stranger(90).silence() == "90 s"
    for beat in (0.0, math.nan, time.time() + 3600):
        assert replace(stranger(0), beat=beat).silence() == "an unknown time"


def test_a_clock_that_is_behind_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_S", 0.5)
    folder = Folder(str(tmp_path))
    speaking = stranger(3600)
    write(folder, speaking)
    later = lock._bytes_of(replace(speaking, beat=speaking.beat + 1))
    line = f"import time; time.sleep(0.3); open({str(tmp_path / LOCK)!r}, 'wb').write({later!r})"
    other = subprocess.Popen([sys.executable, "-c", line])
    with pytest.raises(RunInUseError, match="process 7 on far"), held(folder):
        pass
    other.wait()


def test_a_driver_that_lost_its_run_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_S", 0.05)
    fields = {"source": {"use": "digits", "limit": 200}, "keep": 0.5, "folds": 2, "executor": "local", "log_to": "none"}
    folder = Folder(str(tmp_path))

    def take(event: object) -> None:
        if holder_of(folder).get("pid") == os.getpid():
            write(folder, stranger(0))
            time.sleep(0.5)

    with pytest.raises(RunInUseError, match=r"lost .* another driver has taken over"):
        ur.prune(ur.PruneConfig(**fields, fit="tests.plugs:centroids", out=tmp_path), on_event=take)
    assert json.loads((tmp_path / "manifest.json").read_text())["stages"] == []
    assert holder_of(folder)["pid"] == 7  # it is the other one's to let go


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": "t"}', bytes(200)])
def test_a_damaged_lock_is_taken_over_when_nobody_has_mended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lock, "_BEAT_S", 0.1)
    monkeypatch.setattr(lock, "_SETTLE_S", 0.2)
    (tmp_path / LOCK).write_bytes(content)
    with held(Folder(str(tmp_path))):
        assert holder_of(Folder(str(tmp_path)))["pid"] == os.getpid()


def test_a_driver_mends_its_damaged_lock_and_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_S", 0.3)
    folder = Folder(str(tmp_path))
    with held(folder) as mine:
        (tmp_path / LOCK).write_bytes(b"")
        with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"), held(folder):
            pass
        mine.check()
        assert holder_of(folder)["pid"] == os.getpid()


def test_a_driver_that_storage_has_silenced_goes_on_if_the_run_is_still_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_SILENCE_S", 0.5), ("_BEAT_S", 0.2), ("_SETTLE_S", 0.1)):
        monkeypatch.setattr(lock, name, value)
    folder = Folder(str(tmp_path / "run"))
    with held(folder) as mine:
        os.rename(tmp_path / "run", tmp_path / "away")
        (tmp_path / "run").write_text("storage is not there")  # nothing can be written below a file
        time.sleep(1.0)
        (tmp_path / "run").unlink()
        os.rename(tmp_path / "away", tmp_path / "run")
        mine.check()
        end = time.monotonic() + 10
        with pytest.raises(RunInUseError, match="process 7 on far"):
            while time.monotonic() < end:
                if holder_of(folder)["pid"] != 7:  # a sign of life that was on its way has replaced it
                    write(folder, stranger(0))
                time.sleep(0.05)
                mine.check()


def no_memory(path: str) -> bytes:
    raise OSError(errno.ENOMEM, "Cannot allocate memory", path)


def test_a_driver_that_finds_no_memory_for_its_lock_fails_by_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ur.UnseenError, match="of its own"), held(Folder(str(tmp_path))):
        monkeypatch.setattr(filesystem, "_get", no_memory)
        raise ur.UnseenError("of its own")


def test_a_driver_that_finds_no_memory_for_a_renewal_renews_its_lock_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_BEAT_S", 0.05)
    with held(Folder(str(tmp_path))):
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "_get", no_memory)
            time.sleep(0.3)
        first = json.loads((tmp_path / LOCK).read_bytes())["beat"]
        time.sleep(0.3)
        assert json.loads((tmp_path / LOCK).read_bytes())["beat"] > first


ODD = [time.time() + 86_400, float("inf"), float("nan"), 1e300, -1e300, "x", None, [1], 10**400]


@pytest.mark.parametrize("beat", ODD, ids=map(str, range(len(ODD))))
def test_a_lock_of_any_content_is_taken_over_after_its_minute(
    beat: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SILENCE_S", "_BEAT_S", "_SETTLE_S"):
        monkeypatch.setattr(lock, name, 0.1)
    values = json.loads(lock._bytes_of(stranger(0)))
    (tmp_path / LOCK).write_text(json.dumps({**values, "beat": beat}))
    with held(Folder(str(tmp_path))) as own:
        own.check()


def test_a_driver_whose_clock_is_ahead_is_left_to_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_SILENCE_S", 1.0)
    folder = Folder(str(tmp_path))
    ahead = stranger(-86_400)
    write(folder, ahead)
    later = lock._bytes_of(replace(ahead, beat=ahead.beat + 1))
    line = f"import time; time.sleep(0.3); open({str(tmp_path / LOCK)!r}, 'wb').write({later!r})"
    with (
        subprocess.Popen([sys.executable, "-c", line]),
        pytest.raises(RunInUseError, match="process 7 on far"),
        held(folder),
    ):
        pass
