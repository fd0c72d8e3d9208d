"""What a run that is refused leaves behind: its folder as it was."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.cli import main
from unseen_ray.errors import BadSampleError

FAST: dict[str, Any] = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}
DIGITS = {"source": {"use": "digits", "limit": 60}, **FAST}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(path: Path, *, bad: int | None = None, count: int = 40) -> Path:
    """A Parquet file of PNGs, one of which may be no image."""
    labels = np.arange(count) % 4
    encoded = [png_bytes(pixels) for pixels in class_pixels(labels, 8)]
    if bad is not None:
        encoded[bad] = b"no image"
    return write_parquet(path, labels.astype(np.int64), encoded)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    ur.prune(ur.PruneConfig(**DIGITS, out=tmp_path / "run"))
    return tmp_path / "run"


REFUSED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "mistyped source": lambda folder: {"source": str(folder / "missing.parquet")},
    "function that is not there": lambda folder: {"source": "no_such_module:source"},
    "more folds than samples": lambda folder: {"folds": 61},
    "mistyped test set": lambda folder: {"test": str(folder / "missing.parquet")},
    "policy that takes no such option": lambda folder: {"policy": {"use": "window", "no_such_option": 1}},
    "lender without a run": lambda folder: {"reuse": str(folder / "nothing")},
    "reuse of what is removed": lambda folder: {"reuse": str(folder / "run")},
    "bad image": lambda folder: {"source": str(images(folder / "bad.parquet", bad=17))},
    "logger that is not installed": lambda folder: {"log_to": "wandb"},
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_fresh_start_that_is_refused_leaves_the_run_that_is_there(
    tmp_path: Path, finished: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    before = contents(finished)
    with pytest.raises((ur.ConfigError, ur.DataError)):
        ur.prune(ur.PruneConfig(**{**DIGITS, **REFUSED[why](tmp_path), "out": finished}), fresh=True)
    assert contents(finished) == before
    assert len(ur.load(finished).coreset) == 30


@pytest.mark.parametrize("why", ["mistyped source", "more folds than samples"])
def test_a_fresh_start_on_ray_that_is_refused_leaves_it_too(tmp_path: Path, finished: Path, why: str) -> None:
    before = contents(finished)
    with pytest.raises((ur.ConfigError, ur.DataError)):
        ur.prune(ur.PruneConfig(**{**DIGITS, **REFUSED[why](tmp_path), "out": finished, "executor": "ray"}), fresh=True)
    assert contents(finished) == before


def test_a_fresh_start_whose_decoded_pixels_are_kept_in_files_uses_them(tmp_path: Path, finished: Path) -> None:
    source = str(images(tmp_path / "images.parquet"))
    fresh = ur.prune(ur.PruneConfig(**{**FAST, "source": source, "pixel_memory_gb": 0, "out": finished}), fresh=True)
    anew = ur.prune(ur.PruneConfig(**{**FAST, "source": source, "out": tmp_path / "anew"}))
    assert fresh.coreset.ids.tolist() == anew.coreset.ids.tolist()
    assert not (finished / "pixels").exists()


def test_a_removal_that_broke_off_is_done_again(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unseen_ray.storage.filesystem import Folder

    delete, calls = Folder.delete, []

    def dying(self: Folder, name: str, **more: bool) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        delete(self, name, **more)

    config = ur.PruneConfig(**{**DIGITS, "keep": 0.4, "out": finished})
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            ur.prune(config, fresh=True)
    assert len(ur.prune(config, fresh=True).coreset) == 24


def test_a_run_refused_for_a_bad_image_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    data = images(tmp_path / "data.parquet", bad=17)
    config = ur.PruneConfig(source=str(data), out=tmp_path / "run", **FAST)
    with pytest.raises(BadSampleError, match=r"data\.parquet:17"):
        ur.prune(config)
    assert not (tmp_path / "run").exists()
    images(data)
    assert len(ur.prune(config).coreset) == 20


def test_an_empty_folder_stays_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(BadSampleError):
        ur.prune(ur.PruneConfig(source=str(images(tmp_path / "data.parquet", bad=3)), out=tmp_path / "run", **FAST))
    assert list((tmp_path / "run").iterdir()) == []


def test_what_was_decoded_into_files_is_used_by_the_next_start(tmp_path: Path) -> None:
    config = ur.PruneConfig(
        source=str(images(tmp_path / "data.parquet", bad=3)), out=tmp_path / "run", pixel_memory_gb=0, **FAST
    )
    with pytest.raises(BadSampleError):
        ur.prune(config)
    decoded = contents(tmp_path / "run" / "pixels")
    assert decoded
    with pytest.raises(BadSampleError):
        ur.prune(config)
    assert contents(tmp_path / "run" / "pixels") == decoded
    assert len(ur.prune(config.changed(on_bad_sample="skip")).coreset) == 20


def test_an_interrupted_run_keeps_what_says_that_it_began(tmp_path: Path) -> None:
    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(ur.PruneConfig(**DIGITS, out=tmp_path / "run"), on_event=interrupt)
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_folder_that_was_not_named_is_not_the_one_that_one_stands_in(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    for use in (ur.load, ur.report, ur.torch_subset, lambda path: ur.export(path, "kept.npy")):
        with pytest.raises(ur.ConfigError, match="the run's folder='' is not allowed"):
            use("")
    with pytest.raises(ur.ConfigError, match="--to='' is not allowed"):
        ur.export(".", "")


def test_a_folder_to_reuse_whose_name_is_a_number(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.rename(tmp_path / "2024")
    monkeypatch.chdir(tmp_path)
    line = shlex.split(
        "prune --source digits --source.limit 60 --keep 0.4 --folds 2 --recipe.epochs 1 --recipe.min_steps 0"
    )
    main([*line, "--executor", "local", "--out", "again", "--reuse", "2024"])
    capsys.readouterr()
    assert all(task["reused"] for task in ur.load("again").manifest.stages[0]["tasks"])


def test_a_fresh_start_follows_no_link(tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("checkpoints", "wandb", "tensorboard"):
        behind = tmp_path / f"scratch-{name}"
        for file in ("thesis.tex", "other/events.out.tfevents.1"):
            (behind / file).parent.mkdir(parents=True, exist_ok=True)
            (behind / file).write_text("precious")
        shutil.rmtree(finished / name, ignore_errors=True)
        (finished / name).symlink_to(behind)
    ur.prune(ur.PruneConfig(**{**DIGITS, "out": finished, "log_to": "none"}), fresh=True)
    for name in ("checkpoints", "wandb", "tensorboard"):
        assert contents(tmp_path / f"scratch-{name}").keys() == {"thesis.tex", "other/events.out.tfevents.1"}
        assert (finished / name).is_symlink()
        assert f"{finished / name} is a link to {tmp_path / f'scratch-{name}'}; it stays" in caplog.text


def test_a_fresh_start_removes_folders_that_an_interrupted_fit_left_empty(tmp_path: Path, finished: Path) -> None:
    (finished / "checkpoints" / f"own-{'0' * 32}").mkdir(parents=True)
    assert len(ur.prune(ur.PruneConfig(**{**DIGITS, "out": finished}), fresh=True).coreset) == 30
    assert not (finished / "checkpoints").exists()
    alone = tmp_path / "alone" / "checkpoints" / f"own-{'0' * 32}"
    alone.mkdir(parents=True)
    assert len(ur.prune(ur.PruneConfig(**{**DIGITS, "out": tmp_path / "alone"})).coreset) == 30


@pytest.mark.parametrize("given", ["inf", "nan", "1e400", "-1", "x", "86401"])
def test_a_variable_of_ours_that_is_no_time_is_named(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSEEN_RAY_STORAGE_WAIT_S", given)
    with pytest.raises(ur.ConfigError, match=rf"^UNSEEN_RAY_STORAGE_WAIT_S='{given}' must be seconds, 0 to 86400"):
        ur.prune(ur.PruneConfig(**{**DIGITS, "out": tmp_path / "run"}))
    assert not (tmp_path / "run").exists()


def test_of_two_choices_into_one_new_folder_one_is_made(finished: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "unseen_ray", "select", str(finished), "--out", str(tmp_path / "chosen"), "--keep"]
    both = [subprocess.Popen([*line, keep], stderr=subprocess.PIPE, text=True) for keep in ("0.2", "0.6")]
    logs = [each.communicate(timeout=60)[1] for each in both]
    assert sorted(each.returncode == 0 for each in both) == [False, True], logs
    made = ur.load(tmp_path / "chosen")
    assert len(made.coreset) == round(60 * float(("0.2", "0.6")[[each.returncode for each in both].index(0)]))
