"""`~` is the home folder wherever a path is given: no folder of that name appears beside the script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import unseen_ray as ur


def test_a_tilde_is_the_home_folder_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    fields: dict[str, Any] = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "policy": "top"}
    (home / "run.yaml").write_text("source: {use: digits, limit: 300}\nout: ~/run\n")
    done = ur.prune("~/run.yaml", executor="local", pixel_folder="~/pixels", **fields)
    assert done.path == done.config.out == str(home / "run")
    assert ur.PruneConfig(source="digits", keep=0.5, reuse=["~/other"]).reuse == [str(home / "other")]
    ur.select(ur.load("~/run"), keep=0.3, out="~/chosen")
    ur.export("~/run", "~/kept.npy")
    ur.export("~/run", "~/pruned/")
    ur.report("~/run")
    assert len(ur.prune(source="~/pruned", executor="local", out="~/again", log_to="none", **fields).coreset) == 75
    assert list(here.iterdir()) == []
    assert {path.name for path in home.iterdir()} >= {"run", "chosen", "kept.npy", "pruned", "again"}
    assert (home / "run" / "tensorboard").is_dir()
