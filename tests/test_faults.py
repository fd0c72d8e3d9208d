"""Faults at bad moments: nothing finished is lost, and the same line goes on."""

from __future__ import annotations

import errno
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import unseen_ray as ur
from unseen_ray.errors import FoldFailedError, StorageError
from unseen_ray.execution.local import _fold_errors
from unseen_ray.runs.layout import CORESET
from unseen_ray.storage.filesystem import Folder

FIELDS = {
    "source": {"use": "digits", "limit": 200},
    "keep": 0.5,
    "folds": 2,
    "schedule": [0.3, 0.5],
    "executor": "local",
    "log_to": "none",
}
DIGITS = ["--source", "digits", "--source.limit", "600", "--keep", "0.5", "--executor", "local"]


def run(out: Path, **fields: object) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{**FIELDS, "fit": "tests.plugs:centroids", "out": out, **fields}))


def files_of(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [CORESET, "keys.parquet", "manifest.json"])
def test_a_failure_of_the_last_writes_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    undisturbed = run(tmp_path / "undisturbed")
    write, calls = Folder.write, []

    def failing(self: Folder, written: str, data: bytes, **more: bool) -> str:
        calls.append(written)
        if written == name and "stage-01/scores.parquet" in calls and (name != "manifest.json" or CORESET in calls):
            raise StorageError("the disk is full")
        return write(self, written, data, **more)

    monkeypatch.setattr(Folder, "write", failing)
    with pytest.raises(StorageError, match="the disk is full"):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert run(tmp_path / "run").coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    assert files_of(tmp_path / "run") == files_of(tmp_path / "undisturbed")


def test_a_manifest_without_a_copy_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Folder.write

    def failing(self: Folder, written: str, data: bytes, **more: bool) -> str:
        if written == "manifest.copy.json":
            raise StorageError("the disk is full")
        return write(self, written, data, **more)

    monkeypatch.setattr(Folder, "write", failing)
    assert len(run(tmp_path).coreset) == 100
    assert "the manifest has no copy: the disk is full" in caplog.text
    assert not (tmp_path / "stage-00" / "coreset.parquet").exists()


def test_a_run_refused_before_it_trained_does_not_hold_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=r"tests\.plugs has no 'centroid'"):
        run(tmp_path, fit="tests.plugs:centroid")
    with pytest.raises(ur.UnseenError):
        run(tmp_path, fit="tests.plugs:not_numbers")
    assert len(run(tmp_path).coreset) == 100


def test_evaluating_takes_what_says_how_and_nothing_of_what_was_pruned(tmp_path: Path) -> None:
    result = run(tmp_path, holdout=0.2)
    with pytest.raises(ur.ConfigError, match=r"evaluate takes no 'keep'; it takes model, recipe"):
        ur.evaluate(result, keep=0.3)
    with pytest.raises(ur.ConfigError, match="this run used your own `fit`"):
        ur.evaluate(result)
    quick = {"use": "quick", "epochs": 1, "min_steps": 0}
    table = ur.evaluate(result, model="small_cnn", recipe=quick, seeds=1, against=("random",))
    assert [arm.samples for arm in table.arms] == [len(result.coreset)] * 2


def test_a_changed_recipe_starts_from_the_runs_own(tmp_path: Path) -> None:
    recipe = {"use": "tdds-200", "epochs": 1, "batch_size": 16}
    result = run(tmp_path, fit=None, recipe=recipe, holdout=0.2, schedule=None)
    table = ur.evaluate(result, recipe={"epochs": 2}, seeds=1, against=())
    assert (table.recipe["use"], table.recipe["epochs"], table.recipe["batch_size"]) == ("tdds-200", 2, 16)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            {"use": "tests.plugs:needy_score"},
            "cannot be called as a score is: missing a required (keyword-only )?argument: 'weight'",
        ),
        ("tests.plugs:label", "a score called 'label' would replace another column"),
        ("tests.plugs:entropy", "two scores are called 'entropy'|is the name of their column"),
    ],
)
def test_a_score_that_cannot_be_stored_or_called_is_refused_at_once(
    tmp_path: Path, score: object, message: str
) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        run(tmp_path, score=score)
    assert not files_of(tmp_path)


def test_mean_prob_of_a_users_own_score_is_refused_when_choosing_again(tmp_path: Path) -> None:
    result = run(tmp_path / "run", score="tests.plugs:gini", save_probs=True)
    assert len(ur.select(result, keep=0.4, score="entropy", combine="mean_prob", out=tmp_path / "again").coreset) == 80
    with pytest.raises(ur.ConfigError, match="score='gini' is not stored"):
        ur.select(result, keep=0.4, combine="mean_prob", out=tmp_path / "refused")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_130_and_the_line_resumes(tmp_path: Path, sent: signal.Signals) -> None:
    line = [sys.executable, "-m", "unseen_ray", "prune", *DIGITS]
    line += shlex.split(f"--scoring.share 1 --recipe.epochs 30 --recipe.min_steps 0 --folds 3 --out {tmp_path}")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "stage-00" / "votes" / "00.parquet").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted; run the same line again to resume" in stderr
    assert "Traceback" not in stderr
    again = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0
    assert "stage 0 fold 0 was finished before" in again.stderr


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "unseen_ray", "prune", *DIGITS]
    line += ["--recipe.epochs", "5", "--recipe.min_steps", "0", "--folds", "2", "--out", str(tmp_path)]
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **ignoring)
    while not (tmp_path / "manifest.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


def test_a_signal_that_python_drops_ends_the_run_nevertheless(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "unseen_ray", "prune", *DIGITS]
    line += shlex.split("--recipe.epochs 1 --recipe.min_steps 0 --folds 2 --score tests.plugs:terminating --out")
    ended = subprocess.run([*line, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted; run the same line again to resume" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_training_that_may_open_no_more_files_says_so_without_a_traceback() -> None:
    said = r"may open no more files: .* Raise the limit of open files"
    with pytest.raises(FoldFailedError, match=said) as failed, _fold_errors("stage 0 fold 0"):
        raise OSError(errno.EMFILE, "Too many open files")
    assert "Traceback" not in str(failed.value)
