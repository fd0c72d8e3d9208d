"""Mixup and CutMix: batches in which each image is partly another one, and its label too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe

__all__ = ["Mix", "mix_of"]

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From (B, 3, H, W) images and (B,) classes to mixed images and (B, C) shares of classes, drawn by torch's generator."""


def mix_of(recipe: Recipe, num_classes: int) -> Mix | None:
    """How a recipe mixes its batches; one of the two at random where it has both. None where it has neither.

    Source: Zhang et al., "mixup" (ICLR 2018); Yun et al., "CutMix" (ICCV 2019).
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    from torchvision.transforms import v2

    kinds = [v2.MixUp(alpha=recipe.mixup, num_classes=num_classes)] if recipe.mixup else []
    kinds += [v2.CutMix(alpha=recipe.cutmix, num_classes=num_classes)] if recipe.cutmix else []
    transform = v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0]

    def mix(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed, targets = transform(inputs, labels)
        return mixed.contiguous(memory_format=torch.channels_last), targets

    return mix
