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
import sys
from pathlib import Path
import unseen_ray as ur

for home in {homes!r}:
    sys.path.insert(0, home)
    run = home + "/run"
    ur.evaluate(run, seeds=1, against=("random",))
    ur.report(run)
    assert ur.export(run, home + "/kept.txt")
    assert len(ur.torch_subset(ur.load(run))) == len(ur.load(run).coreset)
    assert not Path(home, "imported").exists(), home
    sys.path.remove(home)
"""
USE_OF_SOURCE = """
sys.path.insert(0, {home!r})
run = {home!r} + "/run"
ur.report(run)
assert ur.export(run, {home!r} + "/kept.txt")
for use in (ur.torch_subset, lambda run: ur.export(run, {home!r} + "/kept"), lambda run: ur.evaluate(run, seeds=1)):
    try:
        use(ur.load(run))
        raise SystemExit("the function was called")
    except ur.ConfigError as error:
        assert "a user-defined function" in str(error), error
assert "evil" not in sys.modules
assert len(ur.torch_subset(ur.load(run), source="evil:source")) == 50
"""
DIGITS = {"use": "digits", "limit": 100}
FIELDS = {
    "score": {"source": DIGITS, "holdout": 0.2, "score": "evil:gini"},
    "also_score": {"source": DIGITS, "holdout": 0.2, "also_score": ["evil:gini"]},
    "guard": {"source": DIGITS, "holdout": 0.2, "guard": "evil:guard"},
    "source": {"source": "evil:source"},
}


def test_what_is_done_with_a_run_imports_and_calls_nothing_that_only_its_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process for all of them, since most of its time goes into importing torch."""
    homes = {name: prune_with_evil(tmp_path / name, monkeypatch, **fields) for name, fields in FIELDS.items()}
    source = str(homes.pop("source"))
    code = USE.format(homes=[str(home) for home in homes.values()]) + USE_OF_SOURCE.format(home=source)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def prune_with_evil(home: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> Path:
    """The folder of a run that imported `evil` in this process; another import makes the file `imported` there."""
    home.mkdir()
    (home / "evil.py").write_text(EVIL)
    recipe = {"epochs": 1, "min_steps": 0}
    with monkeypatch.context() as here:
        here.setattr(sys, "path", [str(home), *sys.path])
        ur.prune(ur.PruneConfig(keep=0.5, folds=2, recipe=recipe, executor="local", out=home / "run", **fields))
    (home / "imported").unlink()
    sys.modules.pop("evil")
    return home
