"""Recipes: what their numbers make of a fit."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

import unseen_ray as ur
from tests.training.fitting import recipe, train
from unseen_ray.errors import ConfigError
from unseen_ray.recipe import RECIPES, Recipe
from unseen_ray.training.learner import learning_rate


def rates(recipe: Recipe, per_epoch: int, epochs: int) -> list[float]:
    total = per_epoch * epochs
    return [learning_rate(step, total, per_epoch, recipe) for step in range(total)]


def test_cosine_warms_up_peaks_and_ends_low() -> None:
    given = rates(Recipe(lr=0.4, min_lr=0.01, warmup=2), per_epoch=50, epochs=20)
    assert given[:100] == sorted(given[:100])
    assert max(given) == given[100] == pytest.approx(0.4)
    assert given[100:] == sorted(given[100:], reverse=True)
    middle = 100 + 450
    assert given[middle] == pytest.approx(0.01 + 0.39 * (1 + math.cos(math.pi / 2)) / 2)
    assert given[-1] == pytest.approx(0.01, abs=1e-4)


def test_linear_decay_makes_a_triangle() -> None:
    given = rates(Recipe(lr=1.0, warmup=2, decay="linear"), per_epoch=50, epochs=10)
    falls = [a - b for a, b in itertools.pairwise(given[100:])]
    assert max(falls) == pytest.approx(min(falls))
    assert given[-1] == pytest.approx(1 / 400)


def test_warm_up_takes_a_fifth_at_most() -> None:
    given = rates(Recipe(lr=1.0, warmup=5), per_epoch=10, epochs=10)
    assert given.index(max(given)) == 20


@pytest.mark.parametrize(
    ("name", "n", "workers", "plan"),
    [
        ("quick", 12_500, 1, (64, 15 * 195)),
        ("quick", 450, 1, (64, 43 * 7)),
        ("ccs-40k", 35_000, 1, (256, 40_000)),
        ("tdds-200", 5_000, 1, (128, 200 * 39)),
        ("airbench-like", 50_000, 1, (1024, 480)),
        ("imagenet-90", 1_281_167, 1, (256, 90 * 5004)),
        ("imagenet-16", 1_281_167, 8, (1024, 16 * 1251)),
        ("quick", 50, 4, (48, 300)),
    ],
)
def test_a_recipe_is_planned_for_its_set(name: str, n: int, workers: int, plan: tuple[int, int]) -> None:
    assert RECIPES[name][0].plan(n, workers=workers) == plan


def test_every_recipe_names_itself_and_its_source() -> None:
    for name, (given, summary) in RECIPES.items():
        assert given.use == name
        assert "ours" in summary or re.search(r"\((\w+ )?20\d\d\)", summary), summary


def test_a_size_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.train_px=176 has no effect with augment: crop_flip"):
        ur.PruneConfig(source="digits", keep=0.5, recipe={"augment": "crop_flip", "train_px": 176})


def test_norms_and_biases_are_not_decayed() -> None:
    one_step = {"batch_size": 600, "lr": 0.1, "warmup": 0}
    model, _ = train(None, recipe(1, **one_step, weight_decay=0.1))
    untouched, _ = train(None, recipe(1, **one_step, weight_decay=0))
    assert not model[0].weight.equal(untouched[0].weight)
    for module, name in ((model[0], "0.bias"), (model[1], "1.weight"), (model[1], "1.bias"), (model[6], "6.bias")):
        same = dict(untouched.named_parameters())[name]
        assert getattr(module, name[2:]).equal(same), name


@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.1}, {"decay": "linear"}, {"precision": "bf16"}])
def test_every_variant_learns(fields: dict[str, object]) -> None:
    _, stats = train(None, recipe(12, batch_size=32, augment="none", **fields))
    assert stats[-1].loss < 0.8 * stats[0].loss
    assert stats[-1].accuracy > 0.6


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, recipe(3, compile=True, batch_size=32), stop_after=1)
    _, stats = train(tmp_path, recipe(3, compile=True, batch_size=32))
    assert [s.epoch for s in stats] == [1, 2, 3]
    assert stats[0].earlier_s > 0
    _, plain = train(None, recipe(3, batch_size=32))
    assert stats[-1].loss == pytest.approx(plain[-1].loss, rel=2e-2)


def test_a_size_of_crops_without_effect_at_the_sources_size_is_refused(tmp_path: Path) -> None:
    config = ur.PruneConfig(
        source="digits", keep=0.5, recipe={"train_px": 16}, executor="local", out=str(tmp_path / "run")
    )
    with pytest.raises(ConfigError, match=r"recipe.train_px=16 has no effect: images of 8 px are augmented by none"):
        ur.prune(config)
    assert not (tmp_path / "run").exists()
