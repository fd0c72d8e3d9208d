"""What hyperparameters explain: against an analysis of variance by hand, and under noise alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unseen_ray.sweeps import importance
from unseen_ray.sweeps.importance import groups_of, importances


def design(*knobs: tuple[str, list[object]]) -> list[dict[str, object]]:
    return [
        dict(zip([name for name, _ in knobs], values, strict=True))
        for values in itertools.product(*(v for _, v in knobs))
    ]


def grouped(rows: list[dict[str, object]]) -> dict[str, tuple[list[str], np.ndarray]]:
    return {name: groups_of([row[name] for row in rows]) for name in rows[0]}


def test_a_balanced_design_agrees_with_omega_squared_by_hand() -> None:
    rows = design(("folds", [2, 4, 8]), ("score", ["entropy", "margin"]), ("again", ["a", "b"]))
    rng = np.random.default_rng(3)
    worth = {2: 0.0, 4: 0.02, 8: 0.05, "entropy": 0.01, "margin": 0.0, "a": 0, "b": 0}
    y = np.array([sum(worth[value] for value in row.values()) for row in rows]) + rng.normal(0, 0.005, len(rows))
    found = {each.knob: each for each in importances(grouped(rows), y)}
    total = ((y - y.mean()) ** 2).sum()
    between = {}
    for name in rows[0]:
        groups = [y[[row[name] == value for row in rows]] for value in {row[name] for row in rows}]
        between[name] = sum(len(group) * (group.mean() - y.mean()) ** 2 for group in groups), len(groups) - 1
    left = total - sum(squares for squares, _ in between.values())
    noise = left / (len(y) - 1 - sum(free for _, free in between.values()))
    for name, (squares, free) in between.items():
        assert found[name].share == pytest.approx((squares - free * noise) / (total + noise), abs=1e-9)
    assert next(iter(found)) == "folds" and found["folds"].share > 0.8
    for effect in found["folds"].effects:
        assert effect.mean == pytest.approx(y[[str(row["folds"]) == effect.value for row in rows]].mean())
        assert effect.low <= effect.mean <= effect.high and effect.trials == 4


def test_an_unbalanced_design_takes_the_other_knobs_into_account() -> None:
    """Accuracy depends on the score alone, and most trials with 8 folds have the worse score."""
    rows = [{"folds": 2, "score": "good"}] * 8 + [{"folds": 2, "score": "bad"}] * 2
    rows += [{"folds": 8, "score": "good"}] * 2 + [{"folds": 8, "score": "bad"}] * 8
    y = np.array([0.8 if row["score"] == "good" else 0.7 for row in rows]) + np.random.default_rng(0).normal(
        0, 1e-3, 20
    )
    found = {each.knob: each for each in importances(grouped(rows), y)}
    assert found["score"].share > 0.5 and abs(found["folds"].share) < 0.01
    two, eight = found["folds"].effects
    assert abs(two.mean - eight.mean) < 0.005


def test_noise_explains_nothing_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_RESAMPLES", 2)  # intervals are not asked for
    rows = design(("folds", [2, 4, 8]), ("score", ["entropy", "margin"]), ("stages", [1, 2, 3]))
    shares = [importances(grouped(rows), np.random.default_rng(seed).normal(size=18))[0:3] for seed in range(40)]
    means = [np.mean([each.share for each in found]) for found in shares]
    assert abs(np.mean(means)) < 0.02


def test_too_few_trials_say_nothing() -> None:
    rows = design(("folds", [2, 4, 8]))
    assert importances(grouped(rows), np.array([0.1, 0.2, 0.3])) == []
    assert importances(grouped([{"folds": 2}] * 9), np.arange(9.0)) == []
    assert importances(grouped(rows * 3), np.full(9, 0.5)) == []


def test_many_numbers_are_quartered() -> None:
    names, codes_T = groups_of([float(value) for value in range(40)])
    assert names == ["0 to 9", "10 to 19", "20 to 29", "30 to 39"]
    assert np.bincount(codes_T).tolist() == [10, 10, 10, 10]
    assert groups_of([8, 2, 4, 2])[0] == ["2", "4", "8"]
    assert groups_of(["b", None, "a"])[0] == ["a", "b", "none"]
