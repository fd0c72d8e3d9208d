"""Nothing is imported because a run's folder names it, seen from a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import unseen_ray as ur

EVIL = """
from pathlib import Path
import numpy as np
Path(__file__).with_name("imported").touch()

def gini(log_probs_NC, labels_N):
    return 1.0 - np.square(np.exp(log_probs_NC)).sum(axis=1)

def guard(*, pred_M, labels_M):
    return pred_M != labels_M

class Samples:
    labels = np.arange(100) % 4
    keys = [f"drawn/{number}" for number in range(100)]

    def __len__(self):
        return 100

    def __getitem__(self, number):
        return np.full((8, 8, 3), number, np.uint8)

def source():
    return Samples()
"""
USE = """
import sys, unseen_ray as ur
sys.path.insert(0, {home!r})
ur.evaluate({run!r}, seeds=1, against=("random",))
ur.report({run!r})
ur.export({run!r}, {out!r})
assert len(ur.torch_subset(ur.load({run!r}))) == len(ur.load({run!r}).coreset)
"""
USE_OF_SOURCE = """
import sys, unseen_ray as ur
sys.path.insert(0, {home!r})
ur.report({run!r})
ur.export({run!r}, {out!r})
for use in (ur.torch_subset, lambda run: ur.export(run, {folder!r}), lambda run: ur.evaluate(run, seeds=1)):
    try:
        use(ur.load({run!r}))
        raise SystemExit("the function was called")
    except ur.ConfigError as error:
        assert "a user-defined function" in str(error), error
assert "evil" not in sys.modules
assert len(ur.torch_subset(ur.load({run!r}), source="evil:source")) == 50
"""


@pytest.mark.parametrize(
    "fields",
    [{"score": "evil:gini"}, {"also_score": ["evil:gini"]}, {"guard": "evil:guard"}],
    ids=["score", "also_score", "guard"],
)
def test_evaluate_report_and_export_import_nothing_of_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
) -> None:
    marker = prune_with_evil(tmp_path, monkeypatch, source={"use": "digits", "limit": 100}, holdout=0.2, **fields)
    use_in_a_fresh_process(tmp_path, USE)
    assert not marker.exists()


def test_nothing_calls_a_source_that_only_the_folder_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune_with_evil(tmp_path, monkeypatch, source="evil:source")
    use_in_a_fresh_process(tmp_path, USE_OF_SOURCE)


def prune_with_evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> Path:
    """A run that imported `evil` in this process, and the file that another import of it makes."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    recipe = {"epochs": 1, "min_steps": 0}
    ur.prune(ur.PruneConfig(keep=0.5, folds=2, recipe=recipe, executor="local", out=tmp_path / "run", **fields))
    marker = tmp_path / "imported"
    assert marker.exists()
    marker.unlink()
    sys.modules.pop("evil")
    return marker


def use_in_a_fresh_process(tmp_path: Path, code: str) -> None:
    places = {"home": tmp_path, "run": tmp_path / "run", "out": tmp_path / "kept.txt", "folder": tmp_path / "kept"}
    code = code.format(**{name: str(path) for name, path in places.items()})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").exists()
