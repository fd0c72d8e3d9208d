"""Sides of training crops: a constant, or sides that grow during the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unseen_ray.config.messages import check_names, field_messages

__all__ = ["CropSizes", "crops_of"]

_CROPS = "Give pixels, 8 or more, or {first: 160, last: 192, ramp: [0.6875, 0.8125], step: 32}."


class CropSizes(BaseModel):
    """Sides of training crops that grow during the training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(ge=8, description="pixels, at the start")
    last: int = Field(description="pixels, at the end")
    ramp: list[float] = Field([0.0, 1.0], description="shares of all epochs between which the sides grow")
    step: int = Field(default=32, ge=1, description="all sides are multiples of it")

    @model_validator(mode="after")
    def _grow(self) -> Self:
        if self.first >= self.last:
            raise ValueError(f"recipe.train_px.first={self.first} must be below last={self.last}: crops grow.")
        if self.first % self.step or self.last % self.step:
            raise ValueError(
                f"recipe.train_px.first={self.first} and last={self.last} must be multiples of step={self.step}."
            )
        if len(self.ramp) != 2 or not 0 <= self.ramp[0] <= self.ramp[1] <= 1:
            raise ValueError(f"recipe.train_px.ramp={self.ramp} must be two shares of the epochs, such as [0.5, 0.8].")
        return self

    def at(self, epoch: int, epochs: int) -> int:
        """The side in epoch `epoch` (from 0) of `epochs`: linear along the ramp, rounded to a multiple of `step`."""
        start, end = self.ramp
        share = epoch / epochs
        if share <= start:
            return self.first
        if share >= end:
            return self.last
        side = self.first + (self.last - self.first) * (share - start) / (end - start)
        return round(side / self.step) * self.step


def crops_of(value: Any) -> int | CropSizes | None:
    """The crops of a recipe: pixels, or a mapping of `CropSizes`.

    Raises:
        ValueError: if it is neither, or its sides do not grow in whole steps.
    """
    if isinstance(value, Mapping):
        check_names("recipe.train_px", value)
        try:
            return CropSizes(**value)
        except ValidationError as error:
            problems = field_messages(error.errors(), CropSizes, prefix="recipe.train_px.")
            raise ValueError(f"{' '.join(problems)} {_CROPS}") from None
    if value is None or isinstance(value, CropSizes) or (type(value) is int and value >= 8):
        return value
    raise ValueError(f"recipe.train_px={value!r} is not allowed. {_CROPS}")
