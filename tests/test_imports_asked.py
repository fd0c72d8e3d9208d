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
"""
USE = """
import sys, unseen_ray as ur
sys.path.insert(0, {home!r})
ur.evaluate({run!r}, seeds=1, against=("random",))
ur.report({run!r})
ur.export({run!r}, {out!r})
"""


@pytest.mark.parametrize(
    "fields",
    [{"score": "evil:gini"}, {"also_score": ["evil:gini"]}, {"guard": "evil:guard"}],
    ids=["score", "also_score", "guard"],
)
def test_evaluate_report_and_export_import_nothing_of_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = tmp_path / "run"
    recipe = {"epochs": 1, "min_steps": 0}
    ur.prune(
        ur.PruneConfig(
            source={"use": "digits", "limit": 100},
            keep=0.5,
            folds=2,
            holdout=0.2,
            recipe=recipe,
            executor="local",
            out=run,
            **fields,
        )
    )
    marker = tmp_path / "imported"
    assert marker.exists()
    marker.unlink()
    sys.modules.pop("evil")
    code = USE.format(home=str(tmp_path), run=str(run), out=str(tmp_path / "kept.txt"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").exists()
    assert not marker.exists()
