"""The configuration: every problem at once, each with its remedy, and nothing accepted that cannot run."""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from unseen_ray.config.named_recipes import RECIPES
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.run import PruneConfig, load_yaml
from unseen_ray.config.score_columns import StoredScores, stored_scores
from unseen_ray.core import scores, select
from unseen_ray.errors import ConfigError, UnseenError


def config(**fields: Any) -> PruneConfig:
    return PruneConfig(**{"source": "digits", "keep": 0.5, **fields})


def problems_of(**fields: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        config(**fields)
    return caught.value.problems


def only_problem(**fields: Any) -> str:
    (problem,) = problems_of(**fields)
    return problem


def a_function(*_: Any, **__: Any) -> None:
    """Stands for a user's score, policy, model, source or fit."""


def test_every_problem_is_reported_at_once() -> None:
    problems = problems_of(
        source="digitz", keep=1.5, folds=1, flods=3, score="entrop", recipe={"use": "quick", "epoch": 3}
    )
    assert len(problems) == 6
    for fragment in ("digitz", "keep=1.5", "folds=1", "flods", "entrop", "recipe.epoch"):
        assert any(fragment in problem for problem in problems), fragment


def test_the_message_of_many_problems_counts_and_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"^2 problems:\n  - .*folds=1.*\n  - .*keep=2"):
        config(keep=2, folds=1)


def test_checks_of_one_field_do_not_hide_those_of_another() -> None:
    problems = problems_of(
        policy="topp", model="resnet81", schedule="abc", also_score="some", address=None, test="nope"
    )
    assert len(problems) == 5


@pytest.mark.parametrize(
    ("fields", "suggestion"),
    [
        ({"flods": 3}, "folds"),
        ({"keeps": 0.5}, "keep"),
        ({"recipe": {"epoch": 3}}, "epochs"),
        ({"recipe": {"batchsize": 3}}, "batch_size"),
        ({"recipe": "quik"}, "quick"),
        ({"recipe": {"use": "ccs-40"}}, "ccs-40k"),
        ({"score": "entrop"}, "entropy"),
        ({"score": {"use": "margn"}}, "margin"),
        ({"also_score": ["margin", "el2"]}, "el2n"),
        ({"policy": "class_balance"}, "class_balanced"),
        ({"model": "resnet81"}, "resnet18"),
        ({"source": "digit"}, "digits"),
        ({"source": "cifar1O"}, "cifar10"),
        ({"source": {"use": "parket", "path": "x.parquet"}}, "parquet"),
        ({"source": {"use": "parquet", "path": "x.parquet", "lable": "y"}}, "label"),
        ({"test": "cifar_10"}, "cifar10"),
        ({"schedule": {"first": 0.2, "stages": 2, "spacng": "even"}}, "spacing"),
        ({"schedule": {"first": 0.2, "stages": 2, "spacing": "evn"}}, "even"),
        ({"random_state": 1}, "seed"),
        ({"n_splits": 5}, "folds"),
        ({"epochs": 5}, "recipe.epochs"),
    ],
    ids=str,
)
def test_a_typo_is_answered_with_the_nearest_name(fields: dict[str, Any], suggestion: str) -> None:
    assert f"Did you mean '{suggestion}'?" in only_problem(**fields)


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert len(scores.__all__) > 2 and len(select.__all__) > 1
    assert all(name in only_problem(score="zzz") for name in scores.__all__)
    assert all(name in only_problem(policy="zzz") for name in select.__all__)
    assert all(name in only_problem(recipe="zzz") for name in RECIPES)
    assert all(name in only_problem(source="zzz") for name in ("digits", "cifar10", "imagenet", "parquet", "folder"))


@pytest.mark.parametrize("keep", [0, 1, 0.0, 1.0, -0.1, 1.0001, 70, math.nan, math.inf, -math.inf], ids=str)
def test_keep_lies_strictly_between_0_and_1(keep: float) -> None:
    assert only_problem(keep=keep).startswith(f"keep={keep} is outside (0, 1)")


@pytest.mark.parametrize("keep", ["half", "0.5x", "", None, True, False, [0.5], {"use": 0.5}], ids=str)
def test_keep_is_a_number(keep: Any) -> None:
    assert f"keep={keep!r} is not allowed: it must be a number (fraction of the samples" in only_problem(keep=keep)


@pytest.mark.parametrize("keep", ["0.5", "1.5"])
def test_keep_as_quoted_text_is_a_number_or_an_error_never_a_crash(keep: str) -> None:
    try:
        assert config(keep=keep).keep == 0.5
    except ConfigError as error:
        assert "keep" in str(error)


@pytest.mark.parametrize("field", ["source", "keep"])
def test_what_must_be_given_is_named_when_it_is_missing(field: str) -> None:
    fields = {"source": "digits", "keep": 0.5}
    del fields[field]
    with pytest.raises(ConfigError, match=f"^{field} is missing: "):
        PruneConfig(**fields)


def test_a_source_left_blank_is_missing() -> None:
    assert "source" in only_problem(source=None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("folds", 1), ("folds", 0), ("folds", -4), ("folds", 2.5), ("folds", "four"), ("folds", None),
        ("folds", math.inf),
        ("repeats", 0), ("seed", -1), ("seed", 0.5), ("threads", 0), ("max_retries", -1), ("wait_s", -1),
        ("holdout", 1), ("holdout", -0.1), ("holdout", math.nan), ("cpus_per_fold", 0), ("gpus_per_fold", -1),
        ("gpus_per_fit", 0), ("mode", "unseeen"), ("train_on", "folds"), ("combine", "median"), ("executor", "dask"),
        ("on_bad_sample", "ignore"), ("stratify", "perhaps"), ("save_probs", 2), ("out", 7),
        ("address", 7),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    problem = only_problem(**{field: value})
    assert problem.startswith(f"{field}={value!r} is not allowed: ")


PATHS = ["out", "reuse", "pixel_folder", "address", "source", "test", "recipe.init"]
NO_PATHS = st.one_of(
    st.sampled_from(["", " ", "\t", "a\0b", b"runs"]),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.dictionaries(st.integers(), st.integers(), min_size=1),
    st.sets(st.integers(), min_size=1),
    st.lists(st.one_of(st.just(""), st.integers(), st.none(), st.lists(st.text())), min_size=1),
)


@pytest.mark.parametrize("field", PATHS)
@settings(max_examples=60, deadline=None)
@given(value=NO_PATHS)
def test_what_is_no_path_is_refused_by_its_field(field: str, value: Any) -> None:
    fields = {"recipe": {"init": value, "init_saw": "none"}} if field == "recipe.init" else {field: value}
    assert only_problem(**fields).startswith(field)


@pytest.mark.parametrize("field", PATHS)
def test_a_path_whose_name_is_a_number_is_written_as_one(field: str) -> None:
    fields = {"recipe": {"init": 2024, "init_saw": "none"}} if field == "recipe.init" else {field: 2024}
    problem = only_problem(**fields)
    assert problem.startswith(f"{field}=2024 is not allowed: it must be ")
    assert problem.endswith("as non-empty text. Write './2024' for one whose name is a number.")


@pytest.mark.parametrize("field", [field for field in PATHS if field not in ("address", "recipe.init")])
def test_a_path_is_text_or_a_pathlib_path(tmp_path: Path, field: str) -> None:
    (tmp_path / "2024").mkdir()
    for value in (tmp_path / "2024", str(tmp_path / "2024")):
        made = config(**{field: value})
        json.dumps(made.to_json())
        assert getattr(made, field) == ([str(value)] if field == "reuse" else str(value))


def test_folders_to_reuse_are_one_or_several_or_none(tmp_path: Path) -> None:
    assert [config(reuse=value).reuse for value in (None, [], "a", ["a", Path("b")], ("a",))] == [
        None, None, ["a"], ["a", "b"], ["a"],
    ]  # fmt: skip
    assert only_problem(reuse=["a", {"b": 1}]) == (
        "reuse={'b': 1} is not allowed: it must be a folder, or a list of folders, as non-empty text."
    )


def test_paths_in_options_of_a_source_are_text(tmp_path: Path) -> None:
    assert config(source={"path": tmp_path / "a.parquet"}).to_json()["source"] == {"path": str(tmp_path / "a.parquet")}


def test_the_largest_seed_is_one_that_every_generator_takes() -> None:
    import torch

    largest = config(seed=2**63 - 1).seed
    np.random.default_rng(largest)
    torch.Generator().manual_seed(largest)
    assert np.array(largest).dtype == np.int64
    for seed in (2**63, 2**70):
        assert only_problem(seed=seed).startswith(
            f"seed={seed} is not allowed: it must be a whole number, 0 or more and at most 9223372036854775807"
        )


def test_a_recipe_object_is_refused_as_its_mapping_is() -> None:
    message = "recipe.lr='x' is not allowed: it must be a number, above 0 (peak learning rate"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe(lr="x")
    assert message in only_problem(recipe={"lr": "x"})
    assert f"scoring.{message}" in only_problem(scoring={"recipe": {"lr": "x"}})
    assert only_problem(recipe={3: 4}).startswith("recipe.3 is not a field")


def test_a_recipe_object_has_the_fields_of_the_recipe_that_it_names() -> None:
    asked = config(recipe=Recipe(use="finetune", epochs=3)).recipe
    assert asked == config(recipe={"use": "finetune", "epochs": 3}).recipe
    assert asked.optimizer == "adamw"
    assert config(recipe=Recipe(steps=7)).recipe == config(recipe={"steps": 7}).recipe


@pytest.mark.parametrize("field", ["folds", "repeats", "seed", "threads", "max_retries", "gpus_per_fit"])
@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_whole_numbers(field: str, value: bool) -> None:
    assert field in only_problem(**{field: value})


@pytest.mark.parametrize("field", ["holdout", "cpus_per_fold", "gpus_per_fold", "wait_s"])
def test_true_is_no_number(field: str) -> None:
    assert field in only_problem(**{field: True})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"epochs": 0}, r"recipe\.epochs=0"),
        ({"steps": 0}, r"recipe\.steps=0"),
        ({"epochs": "ten"}, r"recipe\.epochs='ten'"),
        ({"epochs": True}, r"recipe\.epochs"),
        ({"batch_size": 1}, r"recipe\.batch_size=1"),
        ({"lr": 0}, r"recipe\.lr=0"),
        ({"lr": math.nan}, r"recipe\.lr=nan"),
        ({"lr": math.inf}, r"recipe\.lr=inf"),
        ({"warmup": math.inf}, r"recipe\.warmup=inf"),
        ({"weight_decay": math.inf}, r"recipe\.weight_decay=inf"),
        ({"momentum": 1}, r"recipe\.momentum=1"),
        ({"label_smoothing": -0.1}, r"recipe\.label_smoothing=-0\.1"),
        ({"precision": "bf8"}, r"recipe\.precision='bf8'"),
        ({"augment": "cutout"}, r"recipe\.augment='cutout'"),
        ({"epochs": 3, "steps": 9}, r"epochs=3 and steps=9; set one of the two"),
        ({"epochs": None}, r"epochs"),
        ({"epochs": None, "steps": None}, r"epochs"),
        ({"use": ["quick"]}, r"recipe"),
        ({"use": None}, r"recipe"),
        ({"use": 3}, r"recipe"),
        (None, r"recipe=None must be a name or a mapping"),
        (["quick"], r"recipe=\['quick'\] must be a name or a mapping"),
        (3, r"recipe=3 must be a name or a mapping"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_run_is_refused(recipe: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(recipe=recipe)


def test_later_scores_are_stored_only_where_they_are_named() -> None:
    for fields, with_eva in (({"score": "aum"}, False), ({"score": "eva"}, True), ({"also_score": ["eva"]}, True)):
        stored = stored_scores(PruneConfig(source="digits", keep=0.5, **fields), None, of_models=True)
        assert ("eva" in stored.over_epochs) == with_eva
        assert ("tdds" in stored.over_epochs) == ("also_score" not in fields)


def test_votes_of_the_former_dyn_unc_are_not_taken_for_todays() -> None:
    def stored(exact: bool = True, **fields: Any) -> StoredScores:
        return stored_scores(PruneConfig(source="digits", keep=0.5, **fields), None, of_models=True, exact=exact)

    def result(scores: StoredScores) -> float:
        reducer = scores.over_epochs["dyn_unc"].reduce(1, range(1, 13))
        for index in range(12):
            reducer.add(slice(0, 1), np.full(1, index**2 / 144), index)
        return float(reducer.result()[0])

    now, before = stored(score="dyn_unc"), stored(score="dyn_unc", exact=False)
    assert now.key["scores"] != before.key["scores"] and '"dyn_unc"' in before.key["scores"]
    explicit = stored(score={"use": "dyn_unc", "last_window": True})
    assert result(now) < result(before) == result(explicit)
    assert stored(score="aum").key == stored(score="aum", exact=False).key


def test_a_recipe_goes_by_name_or_changes_a_named_one() -> None:
    assert config().recipe == Recipe() == config(recipe="quick").recipe == config(recipe={}).recipe
    assert config(recipe="tdds-200").recipe == RECIPES["tdds-200"][0]
    changed = config(recipe={"use": "tdds-200", "batch_size": 32}).recipe
    assert changed == RECIPES["tdds-200"][0].model_copy(update={"batch_size": 32})
    assert config(recipe={"epochs": 30}).recipe == Recipe(epochs=30)
    assert config(recipe=Recipe(epochs=30)).recipe == Recipe(epochs=30)


def test_steps_replace_the_epochs_of_a_named_recipe_and_epochs_the_steps() -> None:
    by_steps = config(recipe={"use": "quick", "steps": 100}).recipe
    assert (by_steps.epochs, by_steps.steps) == (None, 100)
    by_epochs = config(recipe={"use": "ccs-40k", "epochs": 7}).recipe
    assert (by_epochs.epochs, by_epochs.steps) == (7, None)
    assert by_epochs.batch_size == RECIPES["ccs-40k"][0].batch_size


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([0.4, 0.3, 0.5], r"must increase strictly"),
        ([0.4, 0.4, 0.5], r"must increase strictly"),
        ([0, 0.5], r"must increase strictly from above 0"),
        ([-0.1, 0.5], r"must increase strictly from above 0"),
        ([0.2, 0.4], r"ends in 0\.4 but keep is 0\.5"),
        ([0.2, 0.6], r"ends in 0\.6 but keep is 0\.5"),
        ([], r"must be a list of fractions"),
        ("0.4,0.5", r"must be a list of fractions"),
        (0.5, r"must be a list of fractions"),
        ([0.2, "0.5"], r"must be a list of fractions"),
        ([0.2, None, 0.5], r"must be a list of fractions"),
        ([True, 0.5], r"must be a list of fractions"),
        ([math.nan, 0.5], r"must be a list of fractions"),
        ([[0.2], [0.5]], r"must be a list of fractions"),
        ({}, r"needs 'first'[\s\S]*needs 'stages'"),
        ({"first": 0.2}, r"needs 'stages'"),
        ({"stages": 3}, r"needs 'first'"),
        ({"first": 0.2, "stages": 3, "step": 1}, r"no field 'step'; it takes first, stages, spacing"),
        ({"first": 0.2, "stages": 3, 7: 1}, r"no field 7"),
        ({"first": 0.5, "stages": 3}, r"schedule\.first=0\.5 must be above 0 and below keep \(0\.5\)"),
        ({"first": 0, "stages": 3}, r"schedule\.first=0 must be above 0"),
        ({"first": "low", "stages": 3}, r"schedule\.first='low' must be above 0"),
        ({"first": math.nan, "stages": 3}, r"schedule\.first=nan must be above 0"),
        ({"first": 0.2, "stages": 0}, r"schedule\.stages=0 must be a whole number"),
        ({"first": 0.2, "stages": 2.5}, r"schedule\.stages=2\.5 must be a whole number"),
        ({"first": 0.2, "stages": True}, r"schedule\.stages=True must be a whole number"),
        ({"first": 0.2, "stages": None}, r"schedule\.stages=None must be a whole number"),
        ({"first": 0.2, "stages": 1}, r"schedule\.first=0\.2 has no effect with one stage"),
        ({"first": 0.2, "stages": 3, "spacing": "log"}, r"schedule\.spacing='log' is neither even nor geometric"),
        ({"first": 0.2, "stages": 3, "spacing": None}, r"schedule\.spacing=None is neither even nor geometric"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_run_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(schedule=schedule)


def test_a_schedule_that_falls_and_misses_keep_is_told_both() -> None:
    assert len(problems_of(schedule=[0.4, 0.3])) == 2


def test_fractions_are_the_targets_as_shares_of_n() -> None:
    assert config(keep=0.7).fractions() == [0.7]
    assert config(keep=0.7, schedule=[0.5, 0.6, 0.7]).fractions() == [0.5, 0.6, 0.7]
    assert config(keep=0.7, schedule=(0.5, 0.7)).fractions() == [0.5, 0.7]
    assert config(keep=0.75, schedule={"first": 0.25, "stages": 3}).fractions() == [0.25, 0.5, 0.75]
    assert config(keep=0.5, schedule={"first": 0.5, "stages": 1}).fractions() == [0.5]


@pytest.mark.parametrize(
    "fields",
    [
        {"folds": 4},
        {"train_on": "complement"},
        {"stratify": False},
        {"stratify": True},
        {"schedule": [0.2, 0.5]},
    ],
    ids=str,
)
def test_fields_of_the_folds_are_refused_in_fitting(fields: dict[str, Any]) -> None:
    (field,) = fields
    assert only_problem(mode="fitting", **fields).startswith(
        f"{field}={fields[field]!r} has no effect in mode: fitting"
    )


@pytest.mark.parametrize("fields", [{"model": "small_cnn"}, {"recipe": "quick"}, {"recipe": {"epochs": 3}}], ids=str)
def test_model_and_recipe_are_refused_beside_fit(fields: dict[str, Any]) -> None:
    (field,) = fields
    assert only_problem(fit="my_lab:fit", **fields).startswith(f"{field} has no effect with fit")


def test_an_address_is_refused_with_the_local_executor() -> None:
    assert "has no effect with executor: local" in only_problem(executor="local", address="ray://head:10001")
    assert config(executor="local", address=None).address is None


@pytest.mark.parametrize(
    "value", ["nosuch", 3, ["entropy"], None, {"option": 1}, {"use": 3}, {"use": "entropy", 3: 4}], ids=str
)
@pytest.mark.parametrize("field", ["score", "policy"])
def test_a_plug_is_a_name_a_target_a_function_or_a_mapping_of_these(field: str, value: Any) -> None:
    assert field in only_problem(**{field: value})


@pytest.mark.parametrize("value", ["some", 3, {"use": "margin"}, [3], [["margin"]], ["nosuch"]], ids=str)
def test_also_score_is_all_none_or_a_list(value: Any) -> None:
    assert "also_score" in only_problem(also_score=value)


def test_an_unknown_fit_says_what_to_write() -> None:
    problem = only_problem(fit="quick")
    assert "package.module:function" in problem
    assert "Allowed: ," not in problem


def test_functions_are_accepted_wherever_a_name_is() -> None:
    made = config(source=a_function, score=a_function, policy=a_function, model=a_function, test=a_function)
    assert made.score is a_function and made.source is a_function
    assert config(fit=a_function).fit is a_function
    assert config(score={"use": a_function, "power": 2}).score == {"use": a_function, "power": 2}
    named = made.to_json()
    assert {named[name] for name in ("source", "score", "policy", "model", "test")} == {f"{__name__}:a_function"}


def test_targets_are_accepted_without_being_imported() -> None:
    target = "nosuch_package.module:function"
    made = config(source=target, score=target, policy=target, model=target, also_score=[target])
    assert made.score == target
    assert config(fit=target).fit == target


def test_numpy_scalars_are_numbers() -> None:
    made = config(
        keep=np.float64(0.7), folds=np.int64(5), seed=np.uint32(3), holdout=np.float32(0.25), stratify=np.bool_(False)
    )
    assert (made.keep, made.folds, made.seed, made.holdout, made.stratify) == (0.7, 5, 3, 0.25, False)
    assert type(made.folds) is int and type(made.keep) is float
    json.dumps(made.to_json())


def test_numpy_numbers_within_a_schedule_are_numbers() -> None:
    made = config(keep=0.5, schedule=list(np.array([0.25, 0.5])))
    assert made.fractions() == [0.25, 0.5]
    json.dumps(made.to_json())


def test_out_may_be_a_path(tmp_path: Path) -> None:
    assert config(out=tmp_path).out == str(tmp_path)
    assert config(out=str(tmp_path)).out == str(tmp_path)


def test_sources_may_be_paths(tmp_path: Path) -> None:
    made = config(source=str(tmp_path / "train.parquet"), test=str(tmp_path / "test.parquet"))
    assert made.source.endswith("train.parquet")


@pytest.mark.parametrize("field", ["self", "cls", "values", "model_config", "__class__", "recipe.epochs", ""])
def test_no_word_is_a_field_by_accident(field: str) -> None:
    assert "is not a field" in only_problem(**{field: 1})


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError, match=r"keep of a configuration cannot be set\. .*config\.changed\(keep=0\.3\)"):
        config().keep = 0.3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config().recipe.epochs = 9  # type: ignore[misc]


def test_a_change_makes_a_new_one_that_is_checked_again() -> None:
    made = config(folds=6)
    assert made.changed(keep=0.25).keep == 0.25
    assert made.changed(keep=0.25).folds == 6 and made.keep == 0.5
    with pytest.raises(ConfigError, match=r"keep=3 is outside"):
        made.changed(keep=3)
    with pytest.raises(ConfigError, match=r"folds=6 has no effect in mode: fitting"):
        made.changed(mode="fitting")


_FIELDS = st.fixed_dictionaries(
    {"source": st.sampled_from(["digits", {"use": "digits", "limit": 90}, "data/x.parquet", "lab:source"])},
    optional={
        "out": st.sampled_from(["runs/a", "s3://bucket/run"]),
        "folds": st.integers(2, 9),
        "train_on": st.sampled_from(["fold", "complement"]),
        "stratify": st.booleans(),
        "combine": st.sampled_from(["mean", "rank_mean", "mean_prob"]),
        "repeats": st.integers(1, 3),
        "seed": st.integers(0, 2**32),
        "schedule": st.sampled_from([None, [0.2, 0.5], {"first": 0.2, "stages": 2, "spacing": "geometric"}]),
        "holdout": st.sampled_from([0.0, 0.2]),
        "score": st.sampled_from(["entropy", "margin", "lab:score", {"use": "lab:score", "power": 2}]),
        "also_score": st.sampled_from(["all", "none", ["margin"]]),
        "policy": st.sampled_from(["top", "class_balanced"]),
        "model": st.sampled_from(["resnet9", {"use": "small_cnn", "width": 8}]),
        "recipe": st.sampled_from(["quick", "ccs-40k", {"epochs": 3}, {"steps": 8, "precision": "float32"}]),
        "threads": st.integers(1, 4),
        "gpus_per_fold": st.sampled_from([0, 0.5, 1]),
        "save_probs": st.booleans(),
        "executor": st.sampled_from(["ray", "local"]),
    },
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(fields=_FIELDS)
def test_a_configuration_survives_json(fields: dict[str, Any]) -> None:
    made = PruneConfig(**fields, keep=0.5)
    through = json.loads(json.dumps(made.to_json()))
    again = PruneConfig.from_json(through)
    assert again.to_json() == made.to_json() == through
    assert again.fractions() == made.fractions()


def test_a_fitting_configuration_survives_json() -> None:
    made = config(mode="fitting", score="margin", repeats=2)
    assert PruneConfig.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("changes", [{"layer_decay": 1.0}, {"optimizer": "sgd", "lr": 0.1}])
def test_a_named_recipe_set_back_to_defaults_survives_json(changes: dict[str, Any]) -> None:
    recipe = {"use": "finetune", **changes}
    made = config(recipe=recipe, scoring={"recipe": {**recipe, "epochs": 3}})
    assert PruneConfig.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_configuration_with_a_fit_survives_json() -> None:
    made = config(fit="lab:fit", folds=3)
    assert PruneConfig.from_json(json.loads(json.dumps(made.to_json()))).to_json() == made.to_json()


def test_from_json_refuses_a_field_that_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="warp is not a field"):
        PruneConfig.from_json({**config().to_json(), "warp": 9})


def test_a_configuration_pickles() -> None:
    made = config(schedule=[0.2, 0.5], recipe={"epochs": 3}, score=a_function)
    assert pickle.loads(pickle.dumps(made)) == made


def test_its_error_is_a_value_error_that_pickles_with_its_problems() -> None:
    with pytest.raises(ValueError) as caught:
        config(keep=2, folds=1)
    error = caught.value
    assert isinstance(error, ConfigError) and isinstance(error, UnseenError) and error.exit_code == 2
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ConfigError and again.problems == error.problems and str(again) == str(error)


def test_every_field_is_described() -> None:
    assert len(PruneConfig.model_fields) > 20 and len(Recipe.model_fields) > 10
    for name, field in [*PruneConfig.model_fields.items(), *Recipe.model_fields.items()]:
        assert field.description, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- keep: 0.5\n", "holds a list"),
        (b"keep\n", "holds text"),
        (b"keep: [0.5\n", "is not valid YAML"),
        (b"keep: 0.5\nsource: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"source: caf\xe9\n", "cannot be read"),
        (b"1: 2\n", "holds a dict"),
        (b"keep: \x00\n", "is not valid YAML"),
        (b"out: 2024-13-45\n", "is not valid YAML"),
    ],
)
def test_a_yaml_file_that_holds_no_fields_is_refused_by_name(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"run\.yaml {message}"):
        load_yaml(path)


def test_a_yaml_file_gives_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("source: digits\nkeep: 0.5\nrecipe: {use: quick, epochs: 3}\n")
    assert PruneConfig(**load_yaml(path)) == config(recipe={"epochs": 3})
    path.write_text("")
    assert load_yaml(path) == {}
    with pytest.raises(ConfigError, match=r"nosuch\.yaml does not exist"):
        load_yaml(tmp_path / "nosuch.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path)
