"""Sweeps on a simulated cluster of four GPUs: who holds which, and what can never fit."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

import unseen_ray as ur
from tests.distributed.test_sweep import config

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_trials_side_by_side_hold_each_gpu_once(four_gpus: Path, tmp_path: Path) -> None:
    """K = 2, 4, 8 on four pretended GPUs, each training told of when and where it ran."""
    space = {"folds": [2, 4, 8], "model": [{"use": "tests.sweep_plugs:noted_cnn", "log": str(four_gpus), "seconds": 3}]}
    result = ur.sweep(config(tmp_path, space=space, max_concurrent_trials=3))
    assert [record.status for record in result.records] == ["finished"] * 3
    notes = [json.loads(path.read_text()) for path in four_gpus.glob("*.json")]
    assert len({(note["node"], note["gpu"]) for note in notes}) == 4
    for one, other in combinations(notes, 2):
        apart = one["ended"] <= other["began"] or other["ended"] <= one["began"]
        assert apart or one["pid"] == other["pid"] or (one["node"], one["gpu"]) != (other["node"], other["gpu"])


@pytest.mark.slow
def test_a_trial_that_can_never_fit_is_refused_before_the_first_starts(four_gpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=r"trial cpus_per_fold=64: a fold asks for 64 CPU and 1 GPU on one node"):
        ur.sweep(config(tmp_path, space={"cpus_per_fold": [1, 64]}))
    assert not (tmp_path / "trials").exists()
