"""A driver that was paused and has lost its run changes nothing there any more, whenever it wakes up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from unseen_ray.errors import RunInUseError
from unseen_ray.runs.manifest import Manifest, read_manifest, write_manifest
from unseen_ray.runs.run import Run
from unseen_ray.storage.environment import STORAGE_WAIT_S
from unseen_ray.storage.fence import LOCK
from unseen_ray.storage.filesystem import Folder, sha256_of
from unseen_ray.storage.lock import held

FIT = json.dumps({"use": "tests.plugs:slow_centroids", "seconds": 0.3})


def start(out: Path, keep: float, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "unseen_ray", "prune", "--source", "digits", "--source.limit", "300", "--folds", "3"]
    line += ["--executor", "local", "--log_to", "none", "--fit", FIT, "--out", str(out), "--keep", str(keep), *more]
    quick = {**os.environ, STORAGE_WAIT_S: "1"}  # for how long a lock that is missing is looked for
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quick)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    assert what()


def token(out: Path) -> str:
    try:
        return str(json.loads((out / LOCK).read_text())["token"])
    except (FileNotFoundError, ValueError):
        return ""


def declare_dead(out: Path) -> None:
    """What another driver finds after the minute of the lock, at once: the process that it names has ended."""
    values = json.loads((out / LOCK).read_text())
    (out / LOCK).write_text(json.dumps({**values, "started": "0"}))


def content(out: Path) -> dict[str, tuple[int, str]]:
    """Of each file when it was written, and its digest."""
    found = {}
    for path in out.rglob("*"):
        with contextlib.suppress(
            FileNotFoundError, IsADirectoryError
        ):  # a driver that works may put it in place meanwhile
            found[str(path.relative_to(out))] = (path.stat().st_mtime_ns, sha256_of(path.read_bytes()))
    return found


@pytest.fixture(scope="module")
def coresets(tmp_path_factory: pytest.TempPathFactory) -> dict[float, bytes]:
    """The coresets of undisturbed runs, by what they keep."""
    made = {}
    for keep in (0.5, 0.3):
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        driver = start(out, keep)
        _, log = driver.communicate(timeout=60)
        assert driver.returncode == 0, log
        made[keep] = (out / "coreset.parquet").read_bytes()
    return made


POINTS: dict[str, Callable[[Path], bool]] = {
    "it has the lock": lambda out: True,
    "its first votes": lambda out: (out / "stage-00/votes/01.parquet").exists(),
    "its last votes": lambda out: (out / "stage-00/votes/02.parquet").exists(),
    "its scores": lambda out: (out / "stage-00/scores.parquet").exists(),
    "its coreset": lambda out: (out / "coreset.parquet").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("paused_s", [0.0, 0.31], ids=["writing votes", "fitting"])
@pytest.mark.parametrize("fresh", [False, True], ids=["resumed", "begun anew"])
@pytest.mark.parametrize("point", [*POINTS, "it has ended"])
def test_a_driver_that_wakes_up_changes_nothing(
    point: str, fresh: bool, paused_s: float, tmp_path: Path, coresets: dict[float, bytes]
) -> None:
    out, keep = tmp_path / "run", 0.3 if fresh else 0.5
    first = start(out, 0.5)
    wait_for(lambda: (out / "stage-00/votes/00.parquet").exists())
    time.sleep(paused_s)
    first.send_signal(signal.SIGSTOP)
    was = token(out)
    declare_dead(out)
    second = start(out, keep, *(["--fresh"] if fresh else []))
    wait_for(lambda: token(out) not in ("", was))
    if point == "it has ended":
        assert second.wait(60) == 0
    else:
        wait_for(lambda: POINTS[point](out) or second.poll() is not None)
    ended = second.poll() is not None
    before = content(out)
    first.send_signal(signal.SIGCONT)
    _, log = first.communicate(timeout=60)
    assert first.returncode == 4, log
    assert log.count("has lost") == 1 and "Traceback" not in log, log
    _, log = second.communicate(timeout=60)
    assert second.returncode == 0, log
    if ended:
        assert content(out) == before
    assert (out / "coreset.parquet").read_bytes() == coresets[keep]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["generation"] == 1 and manifest["config"]["keep"] == keep
    found = {name: digest for name, (_, digest) in content(out).items()}
    assert manifest["files"].items() <= found.items()
    assert found.keys() == {*manifest["files"], "manifest.json", "manifest.copy.json"}


def test_nothing_is_written_or_deleted_without_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_WAIT_S, "0")
    with held(Folder(str(tmp_path / "run"))) as lock:
        folder = lock.folder
        folder.write("votes/00", b"mine")
        mine = Folder(folder.root).read_whole(LOCK)
        for other in (mine.replace(b'"token": "', b'"token": "f'), None):
            if other is None:
                (tmp_path / "run" / LOCK).unlink()
            else:
                (tmp_path / "run" / LOCK).write_bytes(other)
            before = content(tmp_path / "run")
            for change in (
                lambda: folder.write("new/file", b""),
                lambda: folder.within("votes").write("00", b"late"),
                lambda: folder.delete("votes/00"),
                lambda: folder.delete_folder("votes"),
            ):
                with pytest.raises(RunInUseError, match=r"has lost .* and stops"):
                    change()
            assert content(tmp_path / "run") == before
            assert not (tmp_path / "run" / "new").exists()
        assert not (tmp_path / "run" / LOCK).exists()


def test_what_a_driver_was_writing_when_it_lost_its_run_never_comes_into_place(tmp_path: Path) -> None:
    aside = tmp_path / "stage-00" / "scores.parquet.0123abcd.tmp"
    aside.parent.mkdir()
    aside.write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"a user's")
    nested = tmp_path / "fitting" / "manifest.json.0123abcd.tmp"
    nested.parent.mkdir()
    nested.write_bytes(b"of a run with a driver of its own")
    (nested.parent / LOCK).write_bytes(b"{}")
    with held(Folder(str(tmp_path))):
        assert not aside.exists()
        assert nested.exists() and (tmp_path / "notes.tmp").exists()


def test_a_manifest_of_a_later_driver_is_not_replaced(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run = Run(
        folder,
        Manifest(
            created="",
            config={},
            asked={},
            source={"fingerprint": "", "num_samples": 1, "num_classes": 1, "class_names": []},
        ),
    )
    run = run.commit(environment={"node": "a"})
    write_manifest(folder, replace(run, manifest=run.manifest.changed(generation=1)).manifest)
    with pytest.raises(RunInUseError, match="another driver has written its manifest since"):
        run.commit(environment={"node": "b"})
    found = read_manifest(folder)
    assert found is not None and found.generation == 1
