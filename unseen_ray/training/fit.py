"""Train one model: SGD with Nesterov momentum, warm-up and cosine, over ids of a plane."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.core.seeds import rng_for, torch_seed_for
from unseen_ray.data.plane import Plane
from unseen_ray.errors import FitError
from unseen_ray.recipe import Augment, Recipe
from unseen_ray.training.batches import Normalisation, augment, resolve_augment, to_input

__all__ = ["EpochStats", "autocast", "fit", "learning_rate"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStats:
    """One pass over the training ids.

    Attributes:
        epoch: from 1.
        epochs: how many there will be.
        loss: mean training loss.
        accuracy: share of the training samples that were right, as they were trained.
        images_per_s: training speed.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    images_per_s: float


def fit(
    model: nn.Module,
    plane: Plane,
    train_ids: IdArray,
    train_labels: IntArray,
    recipe: Recipe,
    *,
    num_classes: int,
    norm: Normalisation,
    seed: int,
    device: torch.device,
) -> Iterator[EpochStats]:
    """Train `model` in place, an epoch at a time.

    Every draw of an epoch comes from (seed, epoch): what is computed does not depend on what ran before.

    Args:
        model: on `device`, channels_last.
        plane: the pixels.
        train_ids: (M,) int64 ids.
        train_labels: (M,) their classes.
        recipe: with `precision` resolved.
        num_classes: C, which the model's answers must have.
        norm: channel statistics.
        seed: `core.seeds.fit_seed`'s.
        device: where to train.

    Raises:
        FitError: if the loss is no longer finite, or the model's answers have another shape than (B, C).
    """
    batch_size, total = recipe.plan(len(train_ids))
    per_epoch = len(train_ids) // batch_size
    optimizer = _optimizer(model, recipe, device)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16" and device.type == "cuda")
    kind = resolve_augment(recipe.augment, plane.size_px)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    epochs = math.ceil(total / per_epoch)
    model.train()
    for epoch in range(epochs):
        started = time.perf_counter()
        torch.manual_seed(torch_seed_for(seed, epoch))
        steps = min(per_epoch, total - epoch * per_epoch)
        loss_sum = torch.zeros((), device=device)
        right = torch.zeros((), device=device)
        batches = _epoch_batches(
            plane, train_ids, train_labels, (steps, batch_size), kind, rng_for(seed, epoch), device
        )
        for step, (images, labels) in enumerate(batches):
            inputs = to_input(images, norm)
            _set_rate(optimizer, learning_rate(epoch * per_epoch + step, total, per_epoch, recipe))
            with autocast(recipe, device):
                logits = model(inputs)
                if step == 0:
                    _check_logits(logits, num_classes)
                loss = criterion(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss_sum += loss.detach()
            right += (logits.detach().argmax(1) == labels).sum()
        mean_loss = float(loss_sum) / steps
        if not math.isfinite(mean_loss):
            raise FitError(
                f"the training loss became {mean_loss} in epoch {epoch + 1}: it diverged. Lower recipe.lr (it is {recipe.lr})."
            )
        seconds = time.perf_counter() - started
        yield EpochStats(
            epoch=epoch + 1,
            epochs=epochs,
            loss=mean_loss,
            accuracy=float(right) / (steps * batch_size),
            images_per_s=steps * batch_size / seconds,
        )


def _epoch_batches(
    plane: Plane,
    ids: IdArray,
    labels: IntArray,
    shape: tuple[int, int],
    kind: Augment,
    rng: np.random.Generator,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented uint8 images and labels of one epoch, `shape` = (steps, batch size), in an order drawn from `rng`."""
    order = rng.permutation(len(ids))
    steps, size = shape
    for step in range(steps):
        picked = order[step * size : (step + 1) * size]
        images = torch.from_numpy(plane.images(ids[picked])).to(device, non_blocking=True)
        yield augment(images, kind, rng), torch.from_numpy(labels[picked]).to(device, non_blocking=True)


def learning_rate(step: int, total: int, per_epoch: int, recipe: Recipe) -> float:
    """Linear warm-up over `warmup` epochs, at most a fifth of the training, then half a cosine to `min_lr`.

    Args:
        step: 0 to total - 1.
        total: optimiser steps of the fit.
        per_epoch: steps of an epoch.
        recipe: `lr`, `min_lr`, `warmup`.
    """
    warmup = min(recipe.warmup * per_epoch, total / 5)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(total - warmup, 1)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * share)) / 2


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The number format of the forward pass."""
    dtype = _DTYPES.get(recipe.precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,
    )


def _check_logits(logits: object, num_classes: int) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
        raise FitError(
            f"the model answered with {shape}; it must return logits of shape (B, {num_classes}), one a class."
        )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
