"""No leak: what a model scores it never saw, and a planted leak is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.errors import FitError, LeakError

QUICK = {"epochs": 40, "min_steps": 0, "batch_size": 32}


def run(out: Path, **fields: object) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{"source": "digits", "keep": 0.5, "out": str(out), "executor": "local", **fields}))


def test_noise_is_at_chance_unseen_and_far_above_it_when_fitted(tmp_path: Path) -> None:
    noise = {"use": "tests.plugs:noise", "count": 600, "classes": 4}
    unseen = run(tmp_path / "unseen", source=noise, folds=3, recipe=QUICK)
    fitted = run(tmp_path / "fitting", source=noise, mode="fitting", recipe=QUICK)
    accuracy = unseen.manifest.stages[0]["accuracy"]
    deviation = np.sqrt(0.25 * 0.75 / 600)
    assert abs(accuracy - 0.25) < 4 * deviation
    assert fitted.manifest.stages[0]["accuracy"] > 0.9


def test_every_vote_is_of_a_sample_outside_the_fold(tmp_path: Path) -> None:
    result = run(tmp_path, source={"use": "digits", "limit": 60}, folds=3, fit="tests.plugs:centroids", stratify=False)
    plan = ur.plan_folds(60, 3, 0)
    for fold in range(3):
        votes = result.run.folder.read_table(f"stage-00/votes/{fold:02d}.parquet")
        assert np.array_equal(votes.column("id").to_numpy(), plan.unseen_ids(fold))


@pytest.mark.parametrize(
    ("fit", "error", "message"),
    [
        ("leaking", LeakError, "trained on; the first is id"),
        ("forgetful", FitError, "gave no prediction for"),
        ("repeating", FitError, "predicted a sample twice"),
        ("logits", FitError, "sum to .*not 1. Apply log_softmax"),
        ("not_numbers", FitError, "log_probs with NaN"),
        ("narrow", FitError, r"expected \(B,\) integers and \(B, 10\)"),
        ("returns_none", FitError, "returned a NoneType; it must yield"),
    ],
)
def test_an_unusable_answer_of_a_fit_is_refused(tmp_path: Path, fit: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, source={"use": "digits", "limit": 100}, fit=f"tests.plugs:{fit}")


def test_a_score_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"score bad_score returned shape \(\) for"):
        run(
            tmp_path, source={"use": "digits", "limit": 100}, fit="tests.plugs:centroids", score="tests.plugs:bad_score"
        )


def test_a_policy_that_keeps_too_many_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="it must return 50 positions"):
        run(
            tmp_path,
            source={"use": "digits", "limit": 100},
            fit="tests.plugs:centroids",
            policy="tests.plugs:greedy_policy",
        )
