"""`scoring`: what the scoring models have of their own, and what the choice costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.scoring import Scoring, with_scoring_model
from unseen_ray.core.samples.population import make_population
from unseen_ray.errors import ConfigError
from unseen_ray.pruning.plan import plan_run
from unseen_ray.pruning.validate import check_functions

DIGITS = {"use": "digits", "limit": 300}
FIELDS: dict[str, Any] = {
    "source": DIGITS,
    "keep": 0.6,
    "recipe": {"epochs": 4, "min_steps": 0},
    "executor": "local",
    "folds": 5,
}


def prune(out: Path, **fields: Any) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{**FIELDS, **fields}, out=out))


def scoring_of(**fields: Any) -> ur.PruneConfig:
    """The configuration of the scoring models."""
    return with_scoring_model(ur.PruneConfig(source="digits", keep=0.5, **fields))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    return prune(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("recipe", "share", "expected"),
    [
        ({"epochs": 12, "min_steps": 300}, 0.25, {"epochs": 3, "min_steps": 75}),
        ({"epochs": 2, "min_steps": 1}, 0.1, {"epochs": 1, "min_steps": 1}),
        ({"steps": 1000, "min_steps": 0}, 0.1, {"steps": 100, "min_steps": 0}),
        ({"epochs": 12, "min_steps": 300}, 1.0, {"epochs": 12, "min_steps": 300}),
    ],
)
def test_a_share_shortens_the_recipe_and_nothing_else(
    recipe: dict[str, Any], share: float, expected: dict[str, int]
) -> None:
    config = scoring_of(recipe=recipe, scoring={"share": share})
    asked = ur.PruneConfig(source="digits", keep=0.5, recipe=recipe).recipe.model_dump()
    assert config.recipe.model_dump() == {**asked, **expected}


def test_a_recipe_for_scoring_changes_the_runs_recipe_or_replaces_it() -> None:
    recipe = {"use": "airbench-like", "lr": 0.7}
    changed = scoring_of(recipe=recipe, scoring={"recipe": {"epochs": 3}}).recipe
    assert (changed.use, changed.lr, changed.epochs, changed.batch_size) == ("airbench-like", 0.7, 3, 1024)
    replaced = scoring_of(recipe=recipe, scoring={"recipe": "quick"}).recipe
    assert replaced.model_dump() == ur.Recipe().model_dump()


def test_a_model_for_scoring_starts_from_random_weights_and_its_recipe_from_its_own(tmp_path: Path) -> None:
    init = tmp_path / "weights.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, str(init))
    recipe = {"init": str(init), "init_saw": "none"}
    assert scoring_of(recipe=recipe, model="resnet9", scoring={"model": "small_cnn"}).recipe.init is None
    assert scoring_of(recipe=recipe, scoring={"share": 0.5}).recipe.init == str(init)
    # The target may start from weights that saw the data: they score nothing.
    assert scoring_of(recipe={"init": str(init)}, model="resnet9", scoring={"model": "small_cnn"}).recipe.init is None
    with pytest.raises(ConfigError, match=r"scoring\.recipe\.init=.*init_saw: none"):
        scoring_of(scoring={"recipe": {"init": str(init)}})
    config = ur.PruneConfig(source="digits", keep=0.5, scoring={"recipe": recipe})
    pinned = ResolvedRun.of(config, 8)
    assert pinned.for_scoring().config.recipe.init_sha256 is not None
    save_file({"weight": np.ones(3, np.float32)}, str(init))
    with pytest.raises(ConfigError, match="was expected: it is not the file that the run began with"):
        ResolvedRun.of(config, 8).as_begun(pinned.config.to_json(), exact=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring": {"share": 0}}, r"scoring\.share=0 is not allowed: .* above 0"),
        ({"scoring": {"share": 1.5}}, r"scoring\.share=1\.5 is not allowed: .* at most 1"),
        ({"scoring": {"shares": 0.5}}, r"scoring\.shares is not a field\. Did you mean 'share'"),
        ({"scoring": 0.25}, r"scoring=0\.25 must be a mapping, such as"),
        ({"scoring": {"votes": 4}}, r"scoring\.votes=4 is above 3, which folds=4 allows"),
        ({"scoring": {"models": 5}}, r"scoring\.models=5 is above 4, which folds=4 allows"),
        ({"scoring": {"models": 1}}, r"scoring\.models=1 is not allowed: .* 2 or more"),
        ({"scoring": {"votes": True}}, r"scoring\.votes=True is not allowed"),
        ({"scoring": {"votes": 2, "models": 3}}, r"both lower the votes of a sample; set one"),
        ({"scoring": {"votes": 2}, "mode": "fitting"}, r"scoring\.votes=2 has no effect with mode: fitting"),
        ({"scoring": {"models": 2}, "train_on": "complement"}, r"scoring\.models=2 has no effect with train_on: compl"),
        ({"scoring": {"share": 0.5, "recipe": {"epochs": 3}}}, r"scoring\.recipe replaces it\. Remove one"),
        ({"scoring": {"recipe": {"epoch": 3}}}, r"scoring\.recipe\.epoch is not a field\. Did you mean 'epochs'"),
        ({"scoring": {"recipe": {"epochs": 0}}}, r"scoring\.recipe\.epochs=0 is not allowed: .* 1 or more"),
        (
            {"scoring": {"recipe": {"batch_size": 65}}, "gpus_per_fit": 2},
            r"scoring\.recipe\.batch_size=65 is not divisible",
        ),
        ({"scoring": {"recipe": 3}}, r"scoring\.recipe=3 must be a name or a mapping"),
        ({"scoring": {"recipe": {"precision": "fp16"}}}, r"a run has one precision\. Set recipe\.precision"),
        ({"scoring": {"model": "resnet10"}}, r"scoring\.model='resnet10'.*resnet18|resnet10.*Did you mean"),
        ({"scoring": {"share": 0.5}, "fit": "tests.plugs:centroids"}, r"scoring\.share has no effect with fit"),
    ],
)
def test_what_scoring_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ur.PruneConfig(source="digits", keep=0.5, **fields)


def test_the_runs_scoring_may_be_given_again_in_any_form() -> None:
    from unseen_ray.evaluation.evaluate import _asked_again

    config = ur.PruneConfig(source="digits", keep=0.5, scoring={"recipe": {"epochs": 5}, "model": "small_cnn"})
    stored = config.to_json()["scoring"]
    for again in (stored, {"model": "small_cnn"}, {"recipe": {"epochs": 5}}, {"share": 1.0}, config.scoring):
        assert _asked_again(config, "scoring", again) == stored
    assert _asked_again(config, "scoring", {"votes": 2}) != stored
    assert _asked_again(ur.PruneConfig(source="digits", keep=0.5), "scoring", {}) == {"share": 0.25}
    whole = ur.PruneConfig(source="digits", keep=0.5, scoring={"share": 1})
    assert _asked_again(whole, "scoring", {}) is _asked_again(whole, "scoring", {"share": 1}) is None


def test_a_scoring_recipe_takes_over_neither_precision_nor_the_weights_of_another_model(tmp_path: Path) -> None:
    recipe = {"precision": "float32", "init": str(tmp_path / "w.safetensors"), "init_saw": "none"}
    config = ur.PruneConfig(source="digits", keep=0.5, recipe=recipe, scoring={"recipe": {"epochs": 5}})
    assert (config.scoring.recipe.precision, config.scoring.recipe.init) == ("auto", recipe["init"])
    assert config.changed(recipe={"precision": "bf16"}).recipe.precision == "bf16"
    other = ur.PruneConfig(
        source="digits",
        keep=0.5,
        recipe=recipe,
        model="resnet9",
        scoring={"model": "small_cnn", "recipe": {"epochs": 5}},
    )
    assert (other.scoring.recipe.init, with_scoring_model(other).recipe.precision) == (None, "float32")


def test_an_invalid_recipe_beside_a_scoring_recipe_is_one_message() -> None:
    scoring = ur.PruneConfig(source="digits", keep=0.5, scoring={"recipe": {"epochs": 5}}).scoring
    with pytest.raises(ConfigError, match=r"recipe\.lr=-1"):
        ur.PruneConfig(source="digits", keep=0.5, scoring=scoring, recipe={"lr": -1})


def test_a_finished_run_is_evaluated_without_the_weights_of_its_scoring_models(tmp_path: Path) -> None:
    import torch

    from unseen_ray.training.model_task import build_model

    init = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file({name: value.numpy() for name, value in build_model("small_cnn", 10).state_dict().items()}, str(init))
    own = {"epochs": 2, "init": str(init), "init_saw": "none"}
    prune(tmp_path / "run", holdout=0.2, scoring={"recipe": own})
    assert ur.report_values(tmp_path / "run")["init"]["file"] == str(init)
    init.unlink()
    table = ur.evaluate(tmp_path / "run", seeds=1, against=("random",), executor="local")
    assert table.recipe.get("init") is None


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({}, 0.25),
        ({"mode": "fitting"}, 0.25),
        ({"guard": "none"}, 0.25),
        ({"scoring": {"model": "small_cnn"}}, 0.25),
        ({"scoring": {"share": 0.5}, "guard": "confident_learning"}, 0.5),
        ({"scoring": {"votes": 2}, "guard": "confident_learning"}, 1),
        ({"guard": {"use": "label_margin", "share": 0.1}}, 1),
        ({"score": "forgetting"}, 1),
        ({"score": {"use": "el2n", "epochs": 4}}, 1),
        ({"also_score": ["margin", "forgetting"]}, 1),
        ({"also_score": [{"use": "el2n", "epochs": 4}]}, 1),
        ({"also_score": "all"}, 0.25),
        ({"score_every": 2}, 1),
        ({"scoring": {"recipe": {"epochs": 3}}}, 1),
        ({"fit": "tests.plugs:centroids"}, 1),
        ({"fit": "tests.plugs:centroids", "scoring": Scoring(votes=2)}, 1),
        ({"guard": "confident_learning", "scoring": Scoring(votes=2)}, 1),
        ({"guard": "confident_learning", "scoring": Scoring(share=0.25)}, 0.25),
    ],
)
def test_scoring_models_train_as_long_as_what_reads_them_asks_for(fields: dict[str, Any], share: float) -> None:
    config = ur.PruneConfig(source="digits", keep=0.5, **fields)
    assert config.scoring.share == share
    assert ur.PruneConfig.from_json(config.to_json()).scoring == config.scoring


def test_the_share_follows_a_guard_unless_it_was_given() -> None:
    config = ur.PruneConfig(source="digits", keep=0.5, guard="confident_learning")
    assert (config.scoring.share, config.changed(guard="none").scoring.share) == (1, 0.25)
    asked = ur.PruneConfig(source="digits", keep=0.5, guard="confident_learning", scoring={"share": 0.5})
    assert asked.changed(guard="none").scoring.share == 0.5
    fewer = ur.PruneConfig(source="digits", keep=0.5, scoring={"votes": 2})
    guarded = fewer.changed(guard="confident_learning")
    assert guarded.scoring == Scoring(share=1, votes=2)
    assert guarded.changed(guard="none").scoring == fewer.scoring == Scoring(votes=2)


def test_a_run_that_is_older_than_scoring_trained_to_the_end() -> None:
    config = ur.PruneConfig(source="digits", keep=0.5, scoring={"share": 1})
    assert "scoring" not in config.to_json()
    assert ur.PruneConfig.from_json(config.to_json()).scoring.share == 1
    own = ur.PruneConfig(source="digits", keep=0.5, scoring={"share": 0.25, "recipe": None, "votes": 2})
    assert own.to_json()["scoring"] == {"share": 0.25, "votes": 2}
    other = ur.PruneConfig(source="digits", keep=0.5, scoring={"recipe": {"epochs": 3}, "model": "resnet9"})
    for each in (config, own, other):
        assert ur.PruneConfig.from_json(each.to_json()).to_json() == each.to_json()


def test_scores_are_those_of_a_run_with_the_scoring_models_recipe(tmp_path: Path) -> None:
    cheap = prune(tmp_path / "cheap", scoring={"share": 0.5})
    alike = prune(tmp_path / "alike", recipe={"epochs": 2, "min_steps": 0}, scoring={"share": 1})
    assert cheap.scores == alike.scores
    assert cheap.coreset.ids.tolist() == alike.coreset.ids.tolist()
    assert cheap.manifest.config["recipe"]["epochs"] == 4
    assert cheap.manifest.cost.bill == pytest.approx(alike.manifest.cost.bill / 2, rel=1e-3)
    # The same trainings have the same names, whichever fields asked for them.
    again = ur.prune(
        ur.PruneConfig(**{**FIELDS, "scoring": {"share": 0.5}}, out=tmp_path / "again", reuse=str(tmp_path / "alike"))
    )
    assert all(task.reused for task in again.manifest.stages[0].tasks)


def test_a_run_with_another_scoring_is_another_run(tmp_path: Path, plain: ur.PruneResult) -> None:
    with pytest.raises(ConfigError, match=r"differs in scoring\.share: 0\.25 there, 0\.5 here"):
        prune(Path(plain.path), scoring={"share": 0.5})
    again = prune(Path(plain.path))
    assert again.coreset.ids.tolist() == plain.coreset.ids.tolist()


@pytest.mark.parametrize("combine", ["mean", "rank_mean", "mean_prob"])
@pytest.mark.parametrize("scoring", [{"votes": 2}, {"models": 3}], ids=["votes", "models"])
def test_fewer_votes_are_those_of_the_models_that_gave_them(
    tmp_path: Path, plain: ur.PruneResult, scoring: dict[str, int], combine: str
) -> None:
    result = prune(tmp_path / "run", scoring=scoring, combine=combine, schedule=[0.4, 0.6], save_features=True)
    assert set(result.scores.column("votes").to_pylist()) == {2}
    assert len(result.coreset) == 180
    chosen = ur.select(result, keep=0.3, out=tmp_path / "choice", combine="rank_mean")
    assert len(chosen.coreset) == 90
    alike = ur.select(result, keep=0.4, out=tmp_path / "same")
    first = result.coreset.ids[result.coreset.stages == 0]
    assert alike.coreset.ids.tolist() == first.tolist()


def test_fewer_votes_are_the_same_when_merged_by_ranges(tmp_path: Path) -> None:
    from unseen_ray.config.limits import Limits

    small = Limits(rows_in_memory=64, rows_of_a_part=64, rows_of_a_chunk=64)
    for name, scoring in {"votes": {"votes": 2}, "models": {"models": 3}}.items():
        config = {**FIELDS, "scoring": scoring}
        short = ur.prune(ur.PruneConfig(**config, out=tmp_path / f"{name}-short"))
        long = ur.prune(ur.PruneConfig(**config, out=tmp_path / f"{name}-long"), limits=small)
        assert long.coreset.ids.tolist() == short.coreset.ids.tolist()
        assert long.scores.column("votes").to_pylist() == short.scores.column("votes").to_pylist()


def bill(**fields: Any) -> float | None:
    config = ur.PruneConfig(source="digits", keep=0.5, **fields)
    labels = np.arange(12_000) % 10
    return plan_run(ResolvedRun.of(config, 32), make_population(labels, 10)).bill()


def test_the_bill_is_the_images_of_the_choice_over_those_of_a_full_training() -> None:
    recipe, whole = {"epochs": 12, "min_steps": 0, "batch_size": 50}, {"share": 1}
    # K folds of N / K: one training's images in all, and each sample scored K - 1 times at a third of the cost.
    assert bill(recipe=recipe, scoring=whole) == pytest.approx(1 + 3 / 3 / 12)
    assert bill(recipe=recipe) == pytest.approx(0.25 + 3 / 3 / 12)
    assert bill(recipe=recipe, scoring={"share": 0.25, "votes": 1}) == pytest.approx(0.25 + 1 / 3 / 12)
    assert bill(recipe=recipe, folds=10, scoring={"models": 3, **whole}) == pytest.approx(0.3 + 2 / 3 / 12)
    assert bill(recipe=recipe, mode="fitting", scoring={"share": 0.5}) == pytest.approx(0.5 + 1 / 3 / 12)
    small = bill(recipe=recipe, model="resnet9", scoring={"model": "small_cnn", **whole})
    assert small == pytest.approx((1 + 3 / 3 / 12) * 10_080 / 370_368)
    assert bill(recipe=recipe, model="tests.plugs:tiny_model", scoring={"model": "small_cnn"}) is None
    stages = bill(recipe=recipe, schedule=[0.25, 0.5], scoring=whole)
    assert stages == pytest.approx(1 + 3 / 3 / 12 + 0.25 + 0.75 / 3 / 12)


def test_the_costs_of_named_models_are_those_of_their_convolutions() -> None:
    import torch
    from torch import nn

    from unseen_ray.config.models import MODELS
    from unseen_ray.training.model_task import build_model

    for name, entry in MODELS.items():
        model, counted = build_model(name, 10).eval(), []

        def count(layer: nn.Conv2d, _: Any, out: torch.Tensor, counted: list[int] = counted) -> None:
            counted.append(out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])

        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        with torch.inference_mode():
            model(torch.zeros(1, 3, 32, 32))
        assert round(sum(counted) / 32**2) == entry.macs, name


def test_an_evaluation_trains_the_runs_own_model_and_the_fitting_baseline_has_no_votes_to_cap(tmp_path: Path) -> None:
    scoring = {"share": 0.5, "votes": 2, "model": "tests.plugs:tiny_model"}
    result = prune(tmp_path / "run", holdout=0.2, scoring=scoring)
    table = ur.evaluate(result, seeds=1, against=("fitting", "full"))
    assert table.model == "small_cnn"
    assert table.recipe["epochs"] == 4
    fitting = ur.load(tmp_path / "run/fitting").manifest
    assert fitting.config["scoring"] == {"share": 0.5, "model": "tests.plugs:tiny_model"}
    assert fitting.stages[0].tasks[0].image_passes == 2 * (240 // 64 * 64)


def test_the_fitting_baseline_of_a_guarded_run_trains_as_long_as_the_run(tmp_path: Path) -> None:
    result = prune(tmp_path / "run", holdout=0.2, folds=2, guard="confident_learning")
    for again in (result, result.path):  # in hand, and as the folder says it
        ur.evaluate(again, seeds=1, against=("fitting",), executor="local")
    assert ur.load(tmp_path / "run/fitting").config.scoring.share == 1


def test_a_scoring_model_that_only_a_folder_names_is_not_imported(tmp_path: Path) -> None:
    prune(tmp_path / "run", test=DIGITS, scoring={"model": "tests.plugs:tiny_model", "share": 0.5})
    again: dict[str, Any] = {"seeds": 1, "against": ("random",), "selections": 2, "executor": "local"}
    with pytest.raises(ConfigError, match=r"--scoring\.model tests\.plugs:tiny_model"):
        ur.evaluate(tmp_path / "run", **again)
    with pytest.raises(ConfigError, match=r"--scoring\.model tests\.plugs:tiny_model"):
        ur.evaluate(tmp_path / "run", scoring={"share": 0.5}, **again)  # other fields of it name no function
    with pytest.raises(ConfigError, match=r"differs from the run's"):
        ur.evaluate(tmp_path / "run", scoring={"model": "small_cnn"}, **again)
    table = ur.evaluate(tmp_path / "run", scoring={"model": "tests.plugs:tiny_model"}, **again)
    assert len(table.arms[0].accuracies) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": 3, "scoring": {"models": 3}}, None),
        ({"folds": 4, "scoring": {"models": 3}}, None),
        ({"folds": 4, "scoring": {"models": 2}}, r"scoring\.models=2.*Set folds: 3 or more, scoring\.votes: 2"),
        ({"folds": 4, "scoring": {"votes": 1}}, r"scoring\.votes=1.*Set folds: 3 or more, scoring\.votes: 2"),
        ({"mode": "fitting"}, r"with mode: fitting, repeats=1\. Set repeats: 2\."),
    ],
)
def test_a_score_of_several_votes_wants_two_of_every_sample(fields: dict[str, Any], message: str | None) -> None:
    resolved = ResolvedRun(ur.PruneConfig(source="digits", keep=0.5, score="disagreement", **fields))
    if message is None:
        check_functions(resolved)
    else:
        with pytest.raises(ConfigError, match=message):
            check_functions(resolved)
