"""Training crops that grow: which side each epoch has, and that nothing else depends on it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unseen_ray as ur
from tests.conftest import class_pixels
from tests.training.fitting import CPU
from unseen_ray.config.crops import CropSizes
from unseen_ray.config.named_recipes import RECIPES, recipe_name
from unseen_ray.config.recipe import Recipe
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.hardware import numerics
from unseen_ray.training.loop.batches import BatchLoader, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.fit import FitPlan, fit
from unseen_ray.training.models import small_cnn

GROWING = {"first": 8, "last": 24, "ramp": [0.25, 0.75], "step": 8}
SIDES = [8, 8, 16, 24]  # of four epochs


def recipe(**fields: Any) -> Recipe:
    base = {"epochs": 4, "min_steps": 0, "batch_size": 32, "precision": "float32", "augment": "resized_crop_flip"}
    return Recipe(**{**base, "train_px": GROWING, **fields})


class _EveryEpoch(Checkpoints):
    """Epochs of these tests are so short that they would share a checkpoint."""

    def due(self, trained_s: float) -> bool:
        return True


def train(
    given: Recipe, folder: Path | None = None, stop_after: int | None = None
) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
    """Weights, the side of every batch that went into the model, and the epochs told of."""
    labels = np.arange(128) % 4
    pixel_store = MemoryPixelStore(class_pixels(labels, 24))
    sides: list[int] = []
    with numerics(1, False, CPU):
        torch.manual_seed(3)
        model = small_cnn(4, width=8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
        plan = FitPlan(ids_M=np.arange(128), labels_M=labels, num_classes=4, recipe=given, seed=5)
        feed = BatchLoader(hold_pixels(pixel_store, CPU), measure(pixel_store, plan.ids_M))
        checkpoints = None if folder is None else _EveryEpoch(Folder(str(folder)), "b" * 64)
        told = [stats.epoch for stats in itertools.islice(fit(model, feed, plan, checkpoints), stop_after)]
    return model.state_dict(), sides, told


def test_sides_are_those_that_ffcv_trains_at() -> None:
    published = RECIPES["imagenet-16"][0]
    assert [published.crop_px(epoch, 16, 224) for epoch in range(16)] == [160] * 12 + [192] * 4
    assert published.largest_crop() == 192


@pytest.mark.parametrize(
    ("fields", "sides"),
    [
        ({"first": 64, "last": 128, "step": 16}, [64, 80, 80, 96, 112, 112]),  # 64, 74.7, 85.3, 96, 106.7, 117.3
        ({"first": 64, "last": 128, "ramp": [0.0, 0.5], "step": 64}, [64, 64, 128, 128, 128, 128]),
        ({"first": 64, "last": 96, "ramp": [0.5, 0.5]}, [64, 64, 64, 64, 96, 96]),
        ({"first": 64, "last": 96, "ramp": [1.0, 1.0]}, [64] * 6),
        ({"first": 64, "last": 96, "ramp": [0.0, 0.0]}, [64, 96, 96, 96, 96, 96]),
    ],
)
def test_sides_grow_by_whole_steps(fields: dict[str, Any], sides: list[int]) -> None:
    assert [CropSizes(**fields).at(epoch, 6) for epoch in range(6)] == sides


def test_every_epoch_trains_at_its_side() -> None:
    _, sides, _ = train(recipe())
    assert sides == [side for side in SIDES for _ in range(4)]
    _, sides, _ = train(recipe(train_px=16))
    assert set(sides) == {16}
    _, sides, _ = train(recipe(train_px=None))
    assert set(sides) == {24}


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_training_that_was_interrupted_goes_on_at_the_side_it_would_have_had(tmp_path: Path, stop_after: int) -> None:
    whole, _, _ = train(recipe())
    train(recipe(), tmp_path, stop_after)
    again, sides, told = train(recipe(), tmp_path)
    assert sides == [side for side in SIDES[stop_after:] for _ in range(4)]
    assert told == list(range(stop_after, 5))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_sides_that_do_not_change_give_the_bits_of_one_side() -> None:
    one, _, _ = train(recipe(train_px=16))
    same, _, _ = train(recipe(train_px={"first": 16, "last": 24, "ramp": [1.0, 1.0], "step": 8}))
    assert all(torch.equal(one[name], same[name]) for name in one)
    grown, _, _ = train(recipe())
    assert not torch.equal(one["0.0.weight"], grown["0.0.weight"])


@pytest.mark.slow
def test_a_compiled_model_meets_every_side() -> None:
    plain, _, _ = train(recipe())
    compiled, _, told = train(recipe(compile=True))
    assert told == [1, 2, 3, 4]
    assert all(torch.allclose(plain[name].float(), compiled[name].float(), atol=0.05) for name in plain)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": 192, "last": 160}, "first=192 must be below last=160"),
        ({"first": 160, "last": 190}, "first=160 and last=190 must be multiples of step=32"),
        ({"first": 160, "last": 192, "ramp": [0.9, 0.1]}, "must be two shares of the epochs"),
        ({"first": 160, "last": 192, "ramp": [11, 13]}, "must be two shares of the epochs"),
        ({"first": 0, "last": 192}, "first=0 is not allowed: it must be a whole number, 8 or more"),
        ({"first": 160, "last": 192, "until": 3}, "train_px.until is not a field. Allowed: first, last, ramp, step"),
        ({"first": 160}, "train_px.last is missing: pixels, at the end"),
        (7, r"recipe\.train_px=7 is not allowed\. Give pixels, 8 or more, or \{first: 160"),
        (True, r"recipe\.train_px=True is not allowed|must be a number, not true or false"),
        ("160 to 192", r"recipe\.train_px='160 to 192' is not allowed"),
    ],
)
def test_what_is_no_side_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ur.PruneConfig(source="digits", keep=0.5, recipe={"train_px": given})


def test_sides_without_effect_or_beyond_the_images_are_refused() -> None:
    growing = {"first": 8, "last": 16, "step": 8}
    for augment, message in (("crop_flip", "has no effect with augment"), ("resized_crop_flip", "=16 is larger than")):
        with pytest.raises(ConfigError, match=message):
            ur.plan(ur.PruneConfig(source="digits", keep=0.5, recipe={"augment": augment, "train_px": growing}))


def test_a_configuration_comes_back_from_json() -> None:
    given = ur.PruneConfig(source="digits", keep=0.5, recipe={"use": "imagenet-16", "epochs": 18})
    values = json.loads(json.dumps(given.to_json()))
    assert values["recipe"]["train_px"] == {"first": 160, "last": 192, "ramp": [0.6875, 0.8125], "step": 32}
    assert ur.PruneConfig.from_json(values) == given
    assert recipe_name(values["recipe"]) == "imagenet-16 (epochs 18)"
    assert recipe_name(recipe().model_dump()).endswith("train_px 8 to 24)")
