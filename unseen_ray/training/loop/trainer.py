"""What training changes: a model, its optimiser and its loss scale; one step of it, and its state for a checkpoint."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unseen_ray.config.crops import CropSizes
from unseen_ray.errors import FitError
from unseen_ray.training.graphs import GraphedPasses, Passes, can_be_graphed
from unseen_ray.training.loop.averages import average_of
from unseen_ray.training.loop.mixing import mix_of
from unseen_ray.training.loop.optimizer import make_optimizer, optimizer_tensors, restore_optimizer, set_rate

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe

__all__ = ["Trainer", "autocast", "learning_rate"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MODEL = "model."


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The number format of the forward pass."""
    dtype = _DTYPES.get(recipe.precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def learning_rate(step: int, total: int, per_epoch: int, recipe: Recipe) -> float:
    """Linear warm-up over `warmup` epochs, at most a fifth of the training, then half a cosine or a line to `min_lr`.

    Args:
        step: 0 to total - 1.
        total: optimiser steps of the fit.
        per_epoch: steps of an epoch.
        recipe: `lr`, `min_lr`, `warmup`, `decay`.
    """
    warmup = min(recipe.warmup * per_epoch, total / 5)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(total - warmup, 1)
    left = 1 - share if recipe.decay == "linear" else (1 + math.cos(math.pi * share)) / 2
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * left


class Trainer:
    """A model in training, by the optimiser of its recipe.

    Args:
        model: on its device, channels_last.
        recipe: with `precision` resolved.
        steps: how many it makes in all.
        num_classes: C, the width of the model's logits.
        device: the model's.
        replicas: among how many workers each batch is divided; more than one are averaged by torch.distributed.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, steps: int, num_classes: int, device: torch.device, replicas: int
    ) -> None:
        self.model = model
        self._optimizer = make_optimizer(model, recipe)
        self._average = average_of(model, recipe, steps)
        self._mix = mix_of(recipe, num_classes)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16" and device.type == "cuda")
        self._passes = _passes(model, recipe, self._scaler, num_classes=num_classes, device=device, replicas=replicas)

    def step(self, inputs: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step; the batch's mean loss and how many it had right, left on the device.

        Of a mixed image, the class with the larger share is right.

        Raises:
            FitError: if the model's logits have another shape than (B, C).
        """
        set_rate(self._optimizer, rate)
        targets = labels
        if self._mix is not None:
            inputs, targets = self._mix(inputs, labels)
            labels = targets.argmax(1)
        loss, logits = self._passes(inputs, targets)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)  # no gradients beside the activations of the next step
        if self._average is not None:
            self._average.update()
        return loss, (logits.argmax(1) == labels).sum()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model with the weights that predict: their average, where the recipe has one."""
        return contextlib.nullcontext() if self._average is None else self._average.in_place()

    def finish(self) -> None:
        """Leave the model with the weights that predict, after its last step."""
        if self._average is not None:
            self._average.put_in_place()

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics, the optimiser's state and the average by name, as they are."""
        average = {} if self._average is None else self._average.tensors()
        return {**self._model_tensors(), **optimizer_tensors(self.model, self._optimizer), **average}

    def scale(self) -> dict[str, Any]:
        """The state of the loss scale; empty where there is none."""
        return self._scaler.state_dict()

    def restore(self, tensors: Mapping[str, Tensor], scale: Mapping[str, Any]) -> None:
        """Take over the state that `tensors` and `scale` returned.

        Raises:
            ValueError: if they are of another model; the state is unchanged then.
        """
        given, own = _shapes(tensors), _shapes(self.tensors())
        of_model = {name for name in given if name.startswith(_MODEL)} == self._model_tensors().keys()
        if not of_model or any(given.get(name) != shape for name, shape in own.items()):
            raise ValueError("it holds the weights of another model")
        weights = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
        self.model.load_state_dict(weights, strict=False)
        restore_optimizer(self.model, self._optimizer, tensors)
        if self._average is not None:
            self._average.restore(tensors)
        if scale:
            self._scaler.load_state_dict(dict(scale))

    def _model_tensors(self) -> dict[str, Tensor]:
        return {_MODEL + name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _passes(
    model: nn.Module,
    recipe: Recipe,
    scaler: torch.amp.GradScaler,
    *,
    num_classes: int,
    device: torch.device,
    replicas: int,
) -> Passes:
    """Forward and backward pass by a recipe, from a CUDA graph where that pays."""
    forward = _forward(model, recipe, device, replicas)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def run(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(recipe, device):
            logits = forward(inputs)
            _check_logits(logits, len(targets), num_classes)
            loss = criterion(logits.float(), targets)
        scaler.scale(loss).backward()
        return loss.detach(), logits.detach()

    alone = device.type == "cuda" and replicas == 1 and not recipe.compile
    return GraphedPasses(model, run) if alone and recipe.cuda_graphs and can_be_graphed(model) else run


def _forward(model: nn.Module, recipe: Recipe, device: torch.device, replicas: int) -> Callable[[Tensor], Any]:
    called: Callable[[Tensor], Any] = model
    if replicas > 1:
        called = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    if recipe.compile:
        sized = isinstance(recipe.train_px, CropSizes)  # then a program for each size is faster than one for any
        mode = "reduce-overhead" if device.type == "cuda" else None
        called = torch.compile(called, mode=mode, dynamic=False if sized else None)
    return called


def _check_logits(logits: object, size: int, num_classes: int) -> None:
    if isinstance(logits, Tensor) and logits.shape == (size, num_classes):
        return
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise FitError(f"the model returned {shape}; it must return logits of shape ({size}, {num_classes}).")
