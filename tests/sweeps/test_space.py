"""Spaces of knobs, the runs that they stand for, and what is refused before anything starts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.sweeps.space import corners, draws, fields_of, grid, knobs_of, plain_knobs
from unseen_ray.sweeps.trials import planned_trials

RUN = {"source": {"use": "digits", "limit": 300}, "keep": 0.6, "holdout": 0.2, "model": "small_cnn"}
INFO = open_source(source_ref(RUN["source"])).info


def sweep(**fields: Any) -> ur.SweepConfig:
    return ur.SweepConfig(**{"run": RUN, "space": {"folds": [2, 4]}, "out": "runs/sweep", **fields})


def test_a_grid_has_every_combination_once() -> None:
    found = grid({"folds": [2, 4, 8], "score": ["entropy", "margin"]})
    assert len(found) == 6
    assert found[0] == {"folds": 2, "score": "entropy"} and found[1] == {"folds": 2, "score": "margin"}


def test_more_draws_keep_the_first_ones_and_stay_in_their_ranges() -> None:
    space = {
        "folds": {"min": 2, "max": 10},
        "keep": {"min": 0.3, "max": 0.9},
        "recipe.lr": {"min": 0.001, "max": 1.0, "log": True},
        "score": ["entropy", "margin"],
    }
    few, many = draws(space, 5, 7), draws(space, 2000, 7)
    assert many[:5] == few and draws(space, 5, 8) != few
    folds = Counter(knobs["folds"] for knobs in many)
    assert sorted(folds) == list(range(2, 11)) and min(folds.values()) > 150
    assert all(isinstance(knobs["folds"], int) and 0.3 <= knobs["keep"] <= 0.9 for knobs in many)
    rates = np.log10([knobs["recipe.lr"] for knobs in many])
    assert abs(np.median(rates) + 1.5) < 0.1 and rates.min() >= -3 and rates.max() <= 0


def test_corners_have_each_value_once_at_least() -> None:
    found = corners({"folds": [2, 4, 8], "keep": {"min": 0.3, "max": 0.9}})
    assert found == [
        {"folds": 2, "keep": 0.3},
        {"folds": 4, "keep": 0.3},
        {"folds": 8, "keep": 0.3},
        {"folds": 2, "keep": 0.9},
    ]


@pytest.mark.parametrize(
    ("knobs", "changed"),
    [
        ({"folds": 8, "score": "margin"}, {"folds": 8, "score": "margin"}),
        ({"schedule.stages": 1, "schedule.first_share": 0.5}, {}),
        ({"schedule.stages": 3, "schedule.first_share": 0.5}, {"schedule": {"stages": 3, "first": 0.3}}),
        (
            {"schedule.stages": 3, "schedule.first": 0.2, "schedule.spacing": "geometric"},
            {"schedule": {"stages": 3, "first": 0.2, "spacing": "geometric"}},
        ),
        (
            {"schedule.stages": 2, "schedule.first_share": 0.5, "keep": 0.4},
            {"keep": 0.4, "schedule": {"stages": 2, "first": 0.2}},
        ),
        ({"recipe.epochs": 3}, {"recipe": {"epochs": 3}}),
        ({"recipe.epochs": 3, "recipe": "quick"}, {"recipe": {"use": "quick", "epochs": 3}}),
        (
            {"mode": "fitting", "folds": 8, "schedule.stages": 3, "schedule.first_share": 0.5},
            {"mode": "fitting", "policy": "top"},
        ),
    ],
)
def test_knobs_stand_for_fields(knobs: dict[str, Any], changed: dict[str, Any]) -> None:
    assert fields_of(RUN, knobs) == RUN | changed


def test_both_modes_of_a_guarded_run_train_equally_long() -> None:
    trials, _ = planned_trials(
        sweep(run={**RUN, "guard": "confident_learning"}, space={"mode": ["unseen", "fitting"]}), INFO
    )
    assert [(run.mode, run.scoring.share) for trial in trials for run in trial.runs] == [("unseen", 1), ("fitting", 1)]


def test_a_knob_of_a_recipe_changes_the_shared_one() -> None:
    run = {**RUN, "recipe": {"use": "quick", "epochs": 9}}
    assert fields_of(run, {"recipe.lr": 0.2})["recipe"] == {"use": "quick", "epochs": 9, "lr": 0.2}
    assert fields_of({**RUN, "recipe": "quick"}, {"recipe.lr": 0.2})["recipe"] == {"use": "quick", "lr": 0.2}


def test_mappings_go_through_tunes_files_and_back() -> None:
    space = {"policy": ["top", {"use": "beta", "c": 2}], "folds": [2, 4]}
    for knobs in grid(space):
        plain = plain_knobs(knobs)
        assert all(isinstance(value, (str, int)) for value in plain.values())
        assert knobs_of(space, plain) == knobs


def test_configurations_that_are_the_same_are_one_trial() -> None:
    trials, _ = planned_trials(sweep(space={"schedule.stages": [1, 2], "schedule.first_share": [0.3, 0.5, 0.7]}), INFO)
    assert len(trials) == 4
    fitting, _ = planned_trials(sweep(space={"mode": ["unseen", "fitting"], "folds": [2, 4, 8]}), INFO)
    assert len(fitting) == 4
    assert {run.policy for trial in fitting for run in trial.runs} == {"top"}  # the same in both modes


def test_names_depend_on_all_that_the_result_does() -> None:
    def names(**fields: Any) -> list[str]:
        return [trial.name for trial in planned_trials(sweep(**fields), INFO)[0]]

    base = names()
    assert names(max_failures=5, out="elsewhere", against=["full"], space={"folds": [4, 2]}) == base[::-1]
    assert not set(base) & set(names(proxy={"trainings": 2}))
    assert not set(base) & set(names(run={**RUN, "keep": 0.5}))
    assert not set(base) & set(names(seeds=2))
    assert set(base) < set(names(space={"folds": [2, 4, 8]}))


@pytest.mark.parametrize(
    ("space", "also", "probs"),
    [
        ({"score": ["entropy", "margin"]}, False, False),
        ({"combine": ["mean", "mean_prob"]}, False, True),
        ({"score": ["entropy", "tests.plugs:gini"]}, True, False),
        ({"score": ["entropy", {"use": "el2n", "epochs": 2}]}, True, False),
        ({"score": ["aum", {"use": "aum", "space": "prob"}]}, False, False),
    ],
)
def test_all_trials_store_what_the_others_need(space: dict[str, Any], also: bool, probs: bool) -> None:
    trials, keeping = planned_trials(sweep(space=space, run={**RUN, "recipe": {"epochs": 4}}), INFO)
    assert (keeping.also_score is not None, keeping.save_probs) == (also, probs)
    runs = [ResolvedRun(trial.runs[0]) for trial in trials]
    variants = "aum" in space.get("score", ())  # share a column, and cannot share a training
    assert len({(run.scores.named, run.scores.every) for run in runs}) == 1 + variants
    assert len({run.keeps_probs for run in runs}) == 1


def test_scores_over_epochs_are_stored_by_all_trials_if_one_asks_for_them() -> None:
    asked = sweep(space={"score": ["entropy", "forgetting"]}, run={**RUN, "recipe": {"epochs": 4}})
    trials, _ = planned_trials(asked, INFO)
    stored = [ResolvedRun(trial.runs[0]).scores for trial in trials]
    assert stored[0].key == stored[1].key and "forgetting" in stored[0].over_epochs


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"run": {**RUN, "holdout": 0}}, "there is nothing to measure trials on.*Set run.holdout: 0.1"),
        ({"run": {**RUN, "out": "x"}}, "run.out is not allowed in a sweep: set the sweep's own `out`"),
        ({"run": {**RUN, "seed": 3}}, "run.seed is not allowed in a sweep"),
        ({"run": {**RUN, "executor": "local"}}, "run.executor='local': a sweep runs on Ray Tune"),
        ({"run": {**RUN, "fit": "a:b"}}, "run.fit: your own training function cannot be measured in a sweep"),
        ({"run": {"holdout": 0.1}}, r"(?s)run.source is missing.*run.keep is missing"),
        ({"space": {}}, "space is empty"),
        ({"space": {"fold": [2]}}, "space.fold cannot be swept. Did you mean 'folds'"),
        ({"space": {"folds": 4}}, r"space.folds=4 must be a list of values, such as \[2, 4, 8\]"),
        ({"space": {"folds": [2, 2]}}, "names a value twice"),
        ({"space": {"folds": {"min": 2, "max": 8}}}, "is a range, which search: grid cannot enumerate"),
        ({"search": "random", "trials": 3, "space": {"folds": {"min": 8, "max": 2}}}, "min must be below max"),
        ({"search": "random", "trials": 3, "space": {"keep": {"min": 0, "max": 0.5, "log": True}}}, "must be above 0"),
        ({"search": "random", "trials": 3, "space": {"keep": {"low": 0, "max": 0.5}}}, "has no 'low'; a range is"),
        ({"search": "random"}, "search: random needs `trials`"),
        ({"trials": 4}, "trials=4 has no effect with search: grid"),
        ({"objective": "pareto"}, "objective=pareto has an effect only with search: optuna"),
        ({"scheduler": "asha", "seeds": 2}, "scheduler: asha compares single runs, but seeds=2"),
        ({"scheduler": {"use": "asha", "factor": 2}}, "scheduler.factor is not a field"),
        ({"scheduler": {"use": "asha", "reduction": 1}}, "scheduler.reduction=1 is not allowed"),
        (
            {"against": ["fulll"]},
            "against='fulll' is not a baseline of a sweep. Allowed: random, random_matched, full. Did you mean 'full'",
        ),
        ({"search": "bayes"}, "search='bayes' is not allowed"),
        ({"proxies": 3}, "proxies is not a field. Did you mean 'proxy'"),
        ({"seeds": True}, "seeds=True is not allowed: it must be a whole number, 1 or more"),
        ({"space": {"schedule.first": [0.2], "schedule.first_share": [0.3]}}, "which set the same value"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_at_once(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ur.ConfigError, match=said):
        sweep(**fields)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"folds": [2, 4000]}, r"trial folds=4000: folds=4000 is outside 2..240 \(the number of samples\)"),
        ({"score": ["entropy", "entropie"]}, "trial score=entropie: score='entropie' is not a score"),
        ({"schedule.stages": [1, 3]}, r"trial schedule.stages=3: schedule needs 'first'"),
        ({"keep": [0.5, 1.5]}, r"trial keep=1.5: keep=1.5 is outside \(0, 1\)"),
    ],
)
def test_a_trial_that_cannot_be_run_is_named_before_any_is_started(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ur.ConfigError, match=said):
        planned_trials(sweep(space=space), INFO)
