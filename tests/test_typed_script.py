"""A script of a user's, with every public name in it, under `mypy --strict`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import unseen_ray as ur

SCRIPT = """\
from pathlib import Path

import numpy as np
import unseen_ray as ur


def gini(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    probs = np.exp(log_probs_NC)
    return np.asarray(1 - (probs * probs).sum(axis=1))


images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 4
recipe: ur.Recipe = ur.Recipe(use="finetune", epochs=3, ema=0.9)
config: ur.PruneConfig = ur.PruneConfig(source="digits", keep=0.7, score=gini, recipe=recipe, out=Path("runs/typed"))
lines: tuple[object, ...] = ur.plan(config)
bill: object = ur.plan_values(source="digits", keep=0.5)["bill"]
folds: ur.FoldPlan = ur.plan_folds(40, 4, seed=0, labels=labels)
result: ur.PruneResult = ur.prune(config, folds=4, fresh=True, progress=False)
other: ur.PruneResult = ur.prune(source=(images, labels), keep=0.5, out="runs/arrays", policy={"use": "mix", "share": 0.5})
again: ur.PruneResult = ur.load("runs/typed")
half: ur.PruneResult = ur.select(result, keep=0.5, policy="ccs", out=Path("runs/half"))
coreset: ur.Coreset = half.coreset
ids: np.ndarray = coreset.ids
evaluation: ur.Evaluation = ur.evaluate(half, against=["random", "full"], seeds=3, executor="local")
lead: float = evaluation.arms[0].mean
page: str = ur.report(half, images=False)
numbers: dict[str, object] = ur.report_values(half)
kept: int = ur.export(half, Path("kept.csv"))
scored: dict[str, object] = ur.score(np.full((40, 4), 0.25), labels, out="runs/scored", score="margin")
copies: ur.Copies = ur.find_copies("digits", near=0.97)
packed: ur.Prepared = ur.prepare("photos", "packed", size=256)
swept: ur.SweepResult = ur.sweep(ur.SweepConfig(run={"source": "digits", "keep": 0.5}, space={"folds": [2, 4]}, out="runs/sweep"))
price: dict[str, object] = ur.sweep_plan_values("sweep.yaml")
subset: object = ur.torch_subset(half)
rows: ur.PruneResult = ur.prune_dataset(half.kept_dataset(encoded=True), keep=0.5, out="runs/rows")
margins: np.ndarray = ur.core.scores.margin(np.zeros((40, 4), np.float32), labels)
sampler: ur.KeptSampler = ur.KeptSampler(half, keep=0.7, fixed=0.25)
try:
    ur.load("nowhere")
except (ur.ConfigError, ur.DataError) as error:
    raise ur.UnseenError(str(error)) from None
"""


def test_the_script_uses_every_public_name() -> None:
    used = set(re.findall(r"\bur\.(\w+)", SCRIPT))
    assert {name for name in ur.__all__ if not name.startswith("_")} <= used


@pytest.mark.slow
def test_a_script_with_every_public_name_is_typed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    line = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--follow-imports=silent",
    ]
    done = subprocess.run([*line, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
