"""What training changes: a model, its optimiser and its loss scale; one step of it, and its state for a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unseen_ray.config.crops import CropSizes
from unseen_ray.errors import FitError

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe

__all__ = ["Trainer", "autocast", "learning_rate"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MODEL, _MOMENTUM = "model.", "momentum."


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
    """A model in training by SGD with momentum.

    Args:
        model: on its device, channels_last.
        recipe: with `precision` resolved.
        num_classes: C, the width of the model's logits.
        device: the model's.
        replicas: among how many workers each batch is divided; more than one are averaged by torch.distributed.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, num_classes: int, device: torch.device, replicas: int
    ) -> None:
        self.model, self._recipe, self._num_classes, self._device = model, recipe, num_classes, device
        self._optimizer = _optimizer(model, recipe)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16" and device.type == "cuda")
        if recipe.momentum:
            # Allocated now, momentum does not fragment the memory between the activations of the first step.
            for weight in model.parameters():
                self._optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        self._criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self._forward: Callable[[Tensor], Any] = _forward(model, recipe, device, replicas)

    def step(self, inputs: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step; the batch's mean loss and how many it had right, left on the device.

        Raises:
            FitError: if the model's logits have another shape than (B, C).
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with autocast(self._recipe, self._device):
            logits = self._forward(inputs)
            _check_logits(logits, len(labels), self._num_classes)
            loss = self._criterion(logits.float(), labels)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)  # no gradients beside the activations of the next step
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics and momentum by name, as they are."""
        states = self._optimizer.state
        momentum = {
            _MOMENTUM + name: states[weight]["momentum_buffer"]
            for name, weight in self.model.named_parameters()
            if states.get(weight, {}).get("momentum_buffer") is not None
        }
        return {**{_MODEL + name: value for name, value in self._tensor_state().items()}, **momentum}

    def scale(self) -> dict[str, Any]:
        """The state of the loss scale; empty where there is none."""
        return self._scaler.state_dict()

    def restore(self, tensors: Mapping[str, Tensor], scale: Mapping[str, Any]) -> None:
        """Take over the state that `tensors` and `scale` returned.

        Raises:
            ValueError: if they are of another model; the state is unchanged then.
        """
        weights = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
        momentum = {
            name.removeprefix(_MOMENTUM): value for name, value in tensors.items() if name.startswith(_MOMENTUM)
        }
        own = _shapes(dict(self.model.named_parameters()))
        if _shapes(weights) != _shapes(self._tensor_state()) or not _shapes(momentum).items() <= own.items():
            raise ValueError("it holds the weights of another model")
        self.model.load_state_dict(weights, strict=False)
        for name, weight in self.model.named_parameters():
            saved = momentum.get(name)
            if saved is not None:
                self._optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(saved)
        if scale:
            self._scaler.load_state_dict(dict(scale))

    def _tensor_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _forward(model: nn.Module, recipe: Recipe, device: torch.device, replicas: int) -> Callable[[Tensor], Any]:
    called: Callable[[Tensor], Any] = model
    if replicas > 1:
        called = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    if recipe.compile:
        sized = isinstance(recipe.train_px, CropSizes)  # then a program for each size is faster than one for any
        mode = "reduce-overhead" if device.type == "cuda" else None
        called = torch.compile(called, mode=mode, dynamic=False if sized else None)
    return called


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    # Norms and biases have one dimension; decaying them costs accuracy (He et al., Bag of Tricks, CVPR 2019).
    weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    decay = recipe.weight_decay if recipe.decay_norms else 0.0
    return torch.optim.SGD(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": decay}],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,
    )


def _check_logits(logits: object, size: int, num_classes: int) -> None:
    if isinstance(logits, Tensor) and logits.shape == (size, num_classes):
        return
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise FitError(f"the model returned {shape}; it must return logits of shape ({size}, {num_classes}).")
