"""`watch` tells from a run's folder alone how the run stands: while it trains, after its driver was killed, and in the end."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow.fs import copy_files

from tests.s3 import BUCKET, s3_server
from unseen_ray.cli import main
from unseen_ray.runs.manifest import Manifest, write_manifest
from unseen_ray.storage.filesystem import Folder

LINE = [sys.executable, "-m", "unseen_ray"]
SOURCE = ["--source", "digits", "--source.limit", "300", "--keep", "0.6", "--schedule", "[0.4,0.6]", "--folds", "3"]
RECIPE = ["--recipe.epochs", "60", "--recipe.min_steps", "0", "--scoring.share", "1", "--executor", "local"]


def answer(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    main(["watch", *args])
    return capsys.readouterr().out


def start(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen([*LINE, *line], stdout=stream, stderr=subprocess.STDOUT)


def shown_in_training(run: subprocess.Popen[bytes], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Halt a run while `watch` shows a model in training after another one is done; what it shows then."""
    text, end = "", time.monotonic() + 120
    while run.poll() is None and time.monotonic() < end:
        if (out / "stage-00/votes/00.parquet").exists():
            run.send_signal(signal.SIGSTOP)
            text = answer(capsys, str(out), "--once")
            if re.search(r"stage 0 fold [12]\t.*/60\t", text):
                return text
            run.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    run.kill()
    run.wait()
    pytest.fail(f"no second model was seen in training; last shown:\n{text}")


def test_a_run_is_watched_while_it_trains_is_killed_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, log = tmp_path / "run", tmp_path / "run.log"
    run = start(["prune", *SOURCE, *RECIPE, "--out", str(out)], log)
    text = shown_in_training(run, out, capsys)
    assert re.search(r"digits, 300 samples; stage 0 \(1 of 2\), [12] of 3 tasks done, kept 0 so far", text), text
    assert f"held by process {run.pid} on " in text
    assert re.search(r"stage 0 fold 0\t.*\tdone\t0\.\d{3} unseen", text), text
    assert re.search(r"stage 0 fold [12]\t\t\d+/60\t0\.\d{3}\t\d+\t\d+\.\d\t\d+ s ago", text), text
    assert re.search(r"tasks done, kept 0 so far; [\d,]+ images/s", " ".join(text.split())), text
    run.kill()
    run.wait()
    assert "is gone or silent" in answer(capsys, str(out), "--once")

    watch = start(["watch", str(out)], tmp_path / "watch.log")
    run = start(["prune", *SOURCE, *RECIPE, "--out", str(out)], log)
    assert run.wait(180) == 0, log.read_text()
    assert watch.wait(30) == 0
    lines = (tmp_path / "watch.log").read_text().splitlines()
    assert [line.partition(" (")[0] for line in lines if ": done, " in line] == [
        *(f"stage 0 fold {fold}" for fold in range(3)),
        "stage 1",
    ]
    assert any(re.match(r"stage 0 fold \d: epoch \d+/60, training accuracy", line) for line in lines), lines
    assert any(line.startswith(f"held by process {run.pid} on ") for line in lines), lines
    # The cost comes first where it was known before the run had finished, and is not said again.
    last, cost = lines[-2:] if lines[-1].startswith("cost") else reversed(lines[-2:])
    assert last.endswith("finished, kept 180")
    assert re.fullmatch(r"cost so far: \d+\.\d worker-seconds, 0\.0 GPU-seconds", cost)
    assert len(lines) == len(set(lines))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one stage."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    line = ["--source", "digits", "--source.limit", "200", "--keep", "0.5", "--folds", "2", "--executor", "local"]
    main(["prune", *line, "--recipe.epochs", "2", "--recipe.min_steps", "0", "--out", str(out)])
    return out


def test_a_finished_run_on_s3_is_shown(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch):
        copy_files(str(finished), f"s3://{BUCKET}/digits")
        text = answer(capsys, f"s3://{BUCKET}/digits")
    assert f"s3://{BUCKET}/digits: digits, 200 samples; finished, kept 100" in text
    assert "stage 0 fold 1" in text


def test_a_terminal_gets_a_table(finished: Path) -> None:
    ours, theirs = pty.openpty()
    run = subprocess.Popen([*LINE, "watch", str(finished)], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert run.wait(30) == 0, said
    assert b"epoch" in said and b"stage 0 fold 1" in said
    assert b"finished, kept" in b" ".join(said.split())  # a long path wraps the line


def test_where_no_run_is_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path / "none"), "--once"])
    assert ended.value.code == 2
    assert "holds no manifest.json: no run has begun there. Give the `out`" in capsys.readouterr().err


def test_it_waits_for_a_run_that_has_not_begun(finished: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    with subprocess.Popen(
        [*LINE, "watch", str(late)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None and run.stdout is not None
        assert run.stderr.readline() == f"no run has started in {late} yet; waiting for one (Ctrl-C to stop)\n"
        assert run.poll() is None
        finished.rename(late)
        try:
            said = run.stdout.read()
        finally:
            late.rename(finished)
    assert run.returncode == 0
    assert f"{late}: digits, 200 samples; finished, kept 100" in said


def test_a_sweep_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"fingerprint": "", "num_samples": 1, "num_classes": 1, "class_names": []}
    write_manifest(Folder(str(tmp_path)), Manifest(created="", kind="sweep", config={}, asked={}, source=source))
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path)])
    assert ended.value.code == 2
    assert "holds a sweep; give one of its runs, such as" in capsys.readouterr().err
