"""Log-probabilities of a trained model, in evaluation mode, without augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from unseen_ray.core.arrays import FloatArray, IdArray
from unseen_ray.errors import FitError
from unseen_ray.recipe import Recipe
from unseen_ray.training.feed import Feed
from unseen_ray.training.learner import autocast

__all__ = ["predict"]


def predict(model: nn.Module, feed: Feed, ids_M: IdArray, recipe: Recipe) -> Iterator[tuple[IdArray, FloatArray]]:
    """Yield (ids, (B, C) float32 log-probabilities), the ids in their order, B being twice the recipe's batch size.

    Raises:
        FitError: if the model answers with something that is no number.
    """
    model.eval()
    for ids, inputs in feed.scoring(ids_M, 2 * recipe.batch_size):
        with torch.inference_mode(), autocast(recipe, feed.pixels.device):
            log_probs = torch.log_softmax(model(inputs).float(), dim=1)
        found = log_probs.cpu().numpy()
        if np.isnan(found).any():
            raise FitError(
                f"the trained model answers with NaN in {recipe.precision}. Lower recipe.lr, or set recipe.precision: float32."
            )
        yield ids, found
