"""Recipes: what their numbers make of a fit."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

import unseen_ray as ur
from tests.training.fitting import recipe, train
from unseen_ray.config.named_recipes import RECIPES
from unseen_ray.config.recipe import Recipe
from unseen_ray.errors import ConfigError
from unseen_ray.training.loop.trainer import learning_rate


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
        ("tdds-200", 5_000, 1, (128, 200 * 40)),
        ("tdds-200", 50_000, 1, (128, 78_200)),  # as the field counts them
        ("tdds-200", 35_000, 1, (128, 54_800)),
        ("tdds-200", 50_000, 2, (128, 200 * 390)),
        ("ccs-300k", 1_281_167, 1, (256, 300_000)),
        ("airbench-like", 50_000, 1, (1024, 480)),
        ("imagenet-90", 1_281_167, 1, (256, 90 * 5004)),
        ("imagenet-16", 1_281_167, 8, (1024, 16 * 1251)),
        ("quick", 50, 4, (48, 300)),
    ],
)
def test_a_recipe_is_planned_for_its_set(name: str, n: int, workers: int, plan: tuple[int, int]) -> None:
    assert RECIPES[name][0].plan(n, workers=workers) == plan


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("samples", [1, 100, 128, 1000])
def test_images_are_counted_as_they_pass(name: str, samples: int) -> None:
    given = RECIPES[name][0].model_copy(update={"epochs": 3, "steps": None})
    batch, steps = given.plan(samples)
    seen = [min(batch, samples - start) for start in range(0, samples, batch)]
    an_epoch = [size for size in seen if size == batch] if given.drop_last else seen
    assert given.image_passes(samples) == sum(an_epoch) * steps // len(an_epoch)


def test_published_recipes_pad_decay_and_end_their_epochs_as_their_code_does() -> None:
    for name, pad in (("ccs-40k", "reflect"), ("tdds-200", "zeros"), ("ccs-300k", "reflect")):
        given = RECIPES[name][0]
        assert (given.pad, given.decay_norms, given.drop_last) == (pad, True, False)
        assert (given.lr, given.momentum, given.warmup, given.decay) == (0.1, 0.9, 0.0, "cosine")


def test_a_rate_that_would_rise_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.min_lr=0.1, the final learning rate, is above recipe.lr=0.05"):
        ur.PruneConfig(source="digits", keep=0.5, recipe={"use": "airbench-like", "lr": 0.05})


def test_the_last_short_batch_is_trained_on_where_it_is_asked_for() -> None:
    whole, stats = train(None, recipe(2, batch_size=256, drop_last=False))
    short, fewer = train(None, recipe(2, batch_size=256))
    assert not whole[0].weight.equal(short[0].weight)
    assert stats[0].accuracy * 600 == pytest.approx(round(stats[0].accuracy * 600))
    assert fewer[0].accuracy * 512 == pytest.approx(round(fewer[0].accuracy * 512))


def test_every_epoch_and_every_seed_has_draws_of_its_own() -> None:
    still = recipe(2, batch_size=600, lr=1e-12, weight_decay=0, warmup=0, augment="none")
    _, twice = train(None, still)
    _, again = train(None, still)
    assert [s.loss for s in twice] == [s.loss for s in again]
    assert twice[0].loss != twice[1].loss  # dropout, by the epoch's seed
    small = recipe(2, batch_size=64, lr=1e-12, weight_decay=0, warmup=0, augment="none")
    _, parts = train(None, small)
    assert parts[0].loss != parts[1].loss


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    fields = {"source": "digits", "keep": 0.5, "executor": "local", "recipe": {"precision": "fp16"}}
    with pytest.raises(ConfigError, match=r"recipe.precision=fp16 is for GPUs"):
        ur.prune(ur.PruneConfig(**fields, out=str(tmp_path / "run")))


def test_every_recipe_names_itself_and_its_source() -> None:
    for name, (given, summary) in RECIPES.items():
        assert given.use == name
        assert "ours" in summary or re.search(r"\((\w+ )?20\d\d\)", summary), summary


@pytest.mark.parametrize(
    ("name", "value", "augments", "without"),
    [
        ("train_px", 176, ["resized_crop_flip", "auto"], ["none", "crop_flip"]),
        ("flip", "alternating", ["flip", "crop_flip", "resized_crop_flip", "auto"], ["none", "crop"]),
        ("shift", 0.25, ["crop", "crop_flip", "crop_flip_cutout", "auto"], ["none", "flip", "resized_crop_flip"]),
    ],
)
def test_what_the_augmentation_does_not_use_is_refused(
    name: str, value: object, augments: list[str], without: list[str]
) -> None:
    for augment in augments:
        ur.PruneConfig(source="digits", keep=0.5, recipe={"augment": augment, name: value})
    for augment in without:
        with pytest.raises(ConfigError, match=rf"recipe\.{name}={value} has no effect with augment: {augment}"):
            ur.PruneConfig(source="digits", keep=0.5, recipe={"augment": augment, name: value})


@pytest.mark.parametrize("decay_norms", [False, True])
def test_norms_and_biases_are_decayed_only_if_asked_for(decay_norms: bool) -> None:
    one_step = {"batch_size": 600, "lr": 0.1, "warmup": 0}
    model, _ = train(None, recipe(1, **one_step, weight_decay=0.1, decay_norms=decay_norms))
    untouched, _ = train(None, recipe(1, **one_step, weight_decay=0))
    assert not model[0].weight.equal(untouched[0].weight)
    for module, name in ((model[0], "0.bias"), (model[1], "1.weight"), (model[1], "1.bias"), (model[6], "6.bias")):
        same = dict(untouched.named_parameters())[name]
        begins_at_nothing = name == "1.bias"
        assert getattr(module, name[2:]).equal(same) == (begins_at_nothing or not decay_norms), name


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


@pytest.mark.parametrize(("name", "value"), [("train_px", 16), ("flip", "alternating")])
def test_what_has_no_effect_at_the_sources_size_is_refused(tmp_path: Path, name: str, value: object) -> None:
    config = ur.PruneConfig(
        source="digits", keep=0.5, recipe={name: value}, executor="local", out=str(tmp_path / "run")
    )
    with pytest.raises(
        ConfigError, match=rf"recipe.{name}={value} has no effect: images of 8 px are augmented by none"
    ):
        ur.prune(config)
    assert not (tmp_path / "run").exists()


def test_crops_larger_than_the_images_are_refused() -> None:
    large = {"augment": "resized_crop_flip", "train_px": 16}
    with pytest.raises(ConfigError, match=r"recipe.train_px=16 is larger than the images, which have 8 px"):
        ur.plan(ur.PruneConfig(source="digits", keep=0.5, recipe=large))
