"""Log-probabilities of a trained model, in evaluation mode, without augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from unseen_ray.core.arrays import FloatArray, IdArray
from unseen_ray.data.plane import Plane
from unseen_ray.recipe import Recipe
from unseen_ray.training.batches import Normalisation, scoring_batches, to_input
from unseen_ray.training.fit import autocast

__all__ = ["predict"]

_BATCH = 256


def predict(
    model: nn.Module, plane: Plane, ids_M: IdArray, recipe: Recipe, *, norm: Normalisation, device: torch.device
) -> Iterator[tuple[IdArray, FloatArray]]:
    """Yield (ids, (B, C) float32 log-probabilities), the ids in their order."""
    model.eval()
    for ids, images in scoring_batches(plane, ids_M, _BATCH):
        with torch.inference_mode(), autocast(recipe, device):
            logits = model(to_input(images.to(device, non_blocking=True), norm))
            log_probs = torch.log_softmax(logits.float(), dim=1).cpu().numpy()
        yield ids, np.ascontiguousarray(log_probs)
