"""A fit that other processes can start and kill."""

from __future__ import annotations

import itertools
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from unseen_ray.config.recipe import Recipe
from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.hardware import numerics
from unseen_ray.training.loop.batches import BatchLoader, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.fit import FitPlan, finished_fit, fit

CPU = torch.device("cpu")
TUNED: dict[str, Any] = {"optimizer": "adamw", "lr": 0.003, "layer_decay": 0.7, "ema": 0.9, "mixup": 0.4, "cutmix": 1.0}
DRAW = EpochDraw(fixed_ids=np.arange(100) * 3, size=600, seed=9)


def net() -> nn.Module:
    """Convolution, statistics and dropout: all that a checkpoint, or the seed of an epoch, has to bring back."""
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*body, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))


def prepare(
    folder: Path | None, recipe: Recipe, device: torch.device, *, samples: int = 600, draw: EpochDraw | None = None
) -> tuple[nn.Module, BatchLoader, FitPlan, Checkpoints | None]:
    """A fresh model of the first digits, with checkpoints in `folder` if there is one."""
    source = open_source(source_ref("digits"))
    pixel_store, _ = load_pixel_store(source, 8)
    ids = np.arange(samples)
    plan = FitPlan(ids_M=ids, labels_M=source.info.labels_N[ids], num_classes=10, recipe=recipe, seed=5, draw=draw)
    torch.manual_seed(5)
    model = net().to(device).to(memory_format=torch.channels_last)
    checkpoints = None if folder is None else Checkpoints(Folder(str(folder)), "a" * 64, beside=device.type == "cuda")
    return model, BatchLoader(hold_pixels(pixel_store, device), measure(pixel_store, ids)), plan, checkpoints


def train(
    folder: Path | None,
    recipe: Recipe,
    *,
    device: torch.device = CPU,
    stop_after: int | None = None,
    draws: bool = False,
) -> tuple[nn.Module, list[EpochStats]]:
    """Train, for `stop_after` epochs if it is given; on 600 digits, or on those that `DRAW` takes of 1200."""
    with numerics(1, recipe.deterministic, device):
        drawn: dict[str, Any] = {"samples": 1200, "draw": DRAW} if draws else {}
        model, feed, plan, checkpoints = prepare(folder, recipe, device, **drawn)
        stats = list(itertools.islice(fit(model, feed, plan, checkpoints), stop_after))
    if checkpoints is not None:
        checkpoints.flush()
    return model, stats


def fetch(folder: Path, recipe: Recipe) -> tuple[nn.Module, EpochStats]:
    """What `train` left."""
    model, feed, plan, checkpoints = prepare(folder, recipe, CPU)
    assert checkpoints is not None
    return model, finished_fit(model, feed, plan, checkpoints)


def train_and_save(folder: str, epochs: int, out: str, begun: Connection) -> None:
    """Train, having said so, and put the weights into `out` at the end."""
    train(None, recipe(1))  # what is slow once a process comes before
    begun.send(None)
    model, _ = train(Path(folder), recipe(epochs))
    aside = Path(f"{out}.tmp")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, aside)
    aside.rename(out)


def recipe(epochs: int, **fields: object) -> Recipe:
    """A short recipe with every kind of randomness."""
    return Recipe(**{"epochs": epochs, "min_steps": 0, "precision": "float32", "augment": "crop_flip", **fields})
