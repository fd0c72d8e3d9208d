"""How a model is trained, as data: the fields of a recipe, and the recipes that have a name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["AUGMENTS", "RECIPES", "Augment", "Precision", "Recipe", "recipe_values", "refuse_boolean"]

Precision = Literal["auto", "bf16", "fp16", "float32"]
Augment = Literal["auto", "none", "flip", "crop", "crop_flip"]
AUGMENTS = ("auto", "none", "flip", "crop", "crop_flip")


def refuse_boolean(model: type[BaseModel], name: str | None, value: Any) -> Any:
    """Part of a validator: true and false are no numbers, though Python takes them for 1 and 0.

    Raises:
        PydanticCustomError: if a numeric field is given one.
    """
    field = model.model_fields[name or ""]
    if isinstance(value, bool) and re.match(r"<class '(int|float)'>|(int|float) \| None", str(field.annotation)):
        raise PydanticCustomError("boolean", "it must be a number, not true or false")
    return value


class Recipe(BaseModel):
    """A training recipe; the defaults are those of `quick`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    use: str = Field("quick", description="the named recipe that the other fields change")
    epochs: int | None = Field(15, ge=1, description="passes over the training ids; or set steps")
    steps: int | None = Field(None, ge=1, description="optimiser steps in place of epochs")
    min_steps: int = Field(300, ge=0, description="more epochs where a set is so small that it would get fewer steps")
    batch_size: int = Field(64, ge=2, description="samples a step; shrinks to a smaller set")
    lr: float = Field(0.1, gt=0, description="peak learning rate, as given: not scaled by the batch")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of weights; norms and biases are not decayed")
    warmup: float = Field(2.0, ge=0, description="epochs of linear warm-up before the cosine")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label spread over all classes")
    precision: Precision = Field("auto", description="auto takes bf16 where the hardware has it")
    augment: Augment = Field("auto", description="auto: crop_flip from 16 px up, none below")
    deterministic: bool = Field(False, description="the same bits on one model of GPU; a CPU always gives them")

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_boolean(cls, info.field_name, value)

    def plan(self, num_samples: int) -> tuple[int, int]:
        """(batch size, total steps) for a set of `num_samples`; the last short batch of an epoch is dropped."""
        batch = min(self.batch_size, num_samples)
        per_epoch = num_samples // batch
        if self.steps is not None:
            return batch, self.steps
        assert self.epochs is not None
        epochs = max(self.epochs, math.ceil(self.min_steps / per_epoch))
        return batch, epochs * per_epoch


RECIPES: dict[str, tuple[Recipe, str]] = {
    "quick": (Recipe(), "15 epochs at lr 0.1 with warm-up and cosine, at least 300 steps; ours, for small models"),
    "ccs-40k": (
        Recipe(
            use="ccs-40k",
            epochs=None,
            steps=40_000,
            min_steps=0,
            batch_size=256,
            min_lr=1e-4,
            warmup=0.0,
            augment="crop_flip",
        ),
        "40,000 steps of 256 whatever the set's size; Zheng et al., Coverage-centric Coreset Selection (ICLR 2023)",
    ),
    "tdds-200": (
        Recipe(use="tdds-200", epochs=200, min_steps=0, batch_size=128, warmup=0.0, augment="crop_flip"),
        "200 epochs over whatever is kept, batch 128; Zhang et al., TDDS (CVPR 2024)",
    ),
}


def recipe_values(value: str | Mapping[str, Any] | Recipe, *, base: Recipe | None = None) -> dict[str, Any]:
    """All fields of a recipe from what a configuration says: a name, or a mapping that changes a named one.

    Args:
        value: what is said.
        base: the recipe that a mapping without `use` changes; None for `quick`.

    Raises:
        ValueError: if it names no recipe, or sets both epochs and steps.
    """
    if isinstance(value, Recipe):
        return value.model_dump()
    changes: dict[str, Any] = {"use": value} if isinstance(value, str) else dict(value)
    name = changes.pop("use", "quick" if base is None else base.use)
    if not isinstance(name, str) or name not in RECIPES:
        from unseen_ray.resolve import did_you_mean

        raise ValueError(f"recipe {name!r} is none of {', '.join(RECIPES)}.{did_you_mean(str(name), RECIPES)}")
    if changes.get("epochs") is not None and changes.get("steps") is not None:
        raise ValueError(f"recipe sets epochs={changes['epochs']} and steps={changes['steps']}; set one of the two.")
    if "epochs" in changes and changes["epochs"] is None and changes.get("steps") is None:
        raise ValueError("recipe.epochs is blank; give a whole number, or steps in its place.")
    if "steps" in changes and changes["steps"] is None and "epochs" not in changes:
        raise ValueError("recipe.steps is blank; give a whole number, or epochs in its place.")
    if changes.get("steps") is not None:
        changes["epochs"] = None
    elif changes.get("epochs") is not None:
        changes["steps"] = None
    changed = RECIPES[name][0] if base is None else base
    return {**changed.model_dump(), **changes, "use": name}
