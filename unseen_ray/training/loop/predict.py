"""Predictions of a trained model, in evaluation mode, without augmentation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unseen_ray.core.predictions import Predictions
from unseen_ray.errors import FitError
from unseen_ray.training.loop.head import head_of
from unseen_ray.training.loop.trainer import autocast

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.core.arrays import FloatArray, IdArray
    from unseen_ray.training.loop.batches import BatchLoader

__all__ = ["predict"]

_HALF = torch.finfo(torch.float16).max


def predict(
    model: nn.Module,
    loader: BatchLoader,
    ids_M: IdArray,
    recipe: Recipe,
    *,
    features: bool = False,
    between_epochs: bool = False,
) -> Iterator[Predictions]:
    """Yield the predictions for the ids in their order, in batches of `recipe.scoring_batch`.

    Args:
        model, loader: the model, and the loader of batches on its device.
        ids_M: (M,) ids to predict.
        recipe: the recipe, with `precision` resolved.
        features: whether to return the inputs of the last linear layer.
        between_epochs: whether training continues afterwards.

    Raises:
        FitError: if the model predicts NaN.
    """
    model.eval()
    # tensors that a model caches in inference mode could not be used in training afterwards
    quiet = torch.no_grad if between_epochs else torch.inference_mode
    with _head_inputs(model) as head:
        for ids, inputs in loader.scoring(ids_M, recipe.scoring_batch):
            with quiet(), autocast(recipe, loader.pixels.device):
                logits = model(inputs).float()
                log_probs = torch.log_softmax(logits, dim=1)
                answers = Predictions(
                    ids_B=ids,
                    log_probs_BC=log_probs.cpu().numpy(),
                    max_logit_B=logits.amax(dim=1).cpu().numpy(),
                    **head.columns(logits.shape[1], features=features),
                )
            if torch.isnan(log_probs).any():
                raise FitError(
                    f"the trained model predicts NaN in {recipe.precision}. Lower recipe.lr, or set recipe.precision: float32."
                )
            yield answers


@dataclass(slots=True, eq=False)
class _HeadInputs:
    """The inputs of a model's last linear layer in the latest forward pass."""

    head: nn.Linear | None
    inputs: Tensor | None = field(default=None)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inputs = args[0] if args and args[0].ndim == 2 else None

    def columns(self, num_classes: int, *, features: bool) -> dict[str, FloatArray]:
        if self.head is None or self.inputs is None or self.head.out_features != num_classes:
            return {}
        inputs = self.inputs.float()
        bias = 0.0 if self.head.bias is None else 1.0
        # A bias acts as an input of 1.
        norms = torch.sqrt(inputs.square().sum(dim=1) + bias).cpu().numpy()
        # Clamped: features beyond the range of float16 would become infinite.
        return {
            "head_norm_B": norms,
            **({"features_BD": inputs.clamp(-_HALF, _HALF).half().cpu().numpy()} if features else {}),
        }


@contextlib.contextmanager
def _head_inputs(model: nn.Module) -> Iterator[_HeadInputs]:
    inputs = _HeadInputs(head_of(model)[1])
    handle = None if inputs.head is None else inputs.head.register_forward_pre_hook(inputs.hook)
    try:
        yield inputs
    finally:
        if handle is not None:
            handle.remove()
