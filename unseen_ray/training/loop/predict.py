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
    """Yield the answers to the ids in their order, in batches of twice the recipe's size.

    Args:
        model: on the loader's device.
        loader: batches.
        ids_M: (M,) ids to answer for.
        recipe: with `precision` resolved.
        features: whether to give what enters the last linear layer, too.
        between_epochs: whether the model is trained on afterwards; what it keeps of a forward pass must then be of use in training.

    Raises:
        FitError: if the model answers with something that is no number.
    """
    model.eval()
    quiet = torch.no_grad if between_epochs else torch.inference_mode
    with _listening(model) as heard:
        for ids, inputs in loader.scoring(ids_M, 2 * recipe.batch_size):
            with quiet(), autocast(recipe, loader.pixels.device):
                logits = model(inputs).float()
                log_probs = torch.log_softmax(logits, dim=1)
                answers = Predictions(
                    ids_B=ids,
                    log_probs_BC=log_probs.cpu().numpy(),
                    max_logit_B=logits.amax(dim=1).cpu().numpy(),
                    **heard.answers(logits.shape[1], features=features),
                )
            if torch.isnan(log_probs).any():
                raise FitError(
                    f"the trained model answers with NaN in {recipe.precision}. Lower recipe.lr, or set recipe.precision: float32."
                )
            yield answers


@dataclass(slots=True, eq=False)
class _Heard:
    """What entered the last linear layer of a model."""

    head: nn.Linear | None
    inputs: Tensor | None = field(default=None)

    def hear(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inputs = args[0] if args and args[0].ndim == 2 else None

    def answers(self, num_classes: int, *, features: bool) -> dict[str, FloatArray]:
        if self.head is None or self.inputs is None or self.head.out_features != num_classes:
            return {}
        inputs = self.inputs.float()
        bias = 0.0 if self.head.bias is None else 1.0
        norms = torch.sqrt(inputs.square().sum(dim=1) + bias).cpu().numpy()
        return {
            "head_norm_B": norms,
            **({"features_BD": inputs.clamp(-_HALF, _HALF).half().cpu().numpy()} if features else {}),
        }


@contextlib.contextmanager
def _listening(model: nn.Module) -> Iterator[_Heard]:
    heard = _Heard(head_of(model)[1])
    hook = None if heard.head is None else heard.head.register_forward_pre_hook(heard.hear)
    try:
        yield heard
    finally:
        if hook is not None:
            hook.remove()
