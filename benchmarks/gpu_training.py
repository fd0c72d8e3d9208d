"""What the checks of `gpu_checks.py` train: our fit for as long as asked, and a bare loop over one batch that lies on the device."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unseen_ray.config.named_recipes import RECIPES
from unseen_ray.config.recipe import Recipe
from unseen_ray.data.images.pixel_store import PixelStore
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.hardware import numerics, resolve_precision
from unseen_ray.training.loop.batches import BatchLoader, Pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.fit import FitPlan, fit
from unseen_ray.training.loop.trainer import autocast
from unseen_ray.training.model_task import build_model

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def images(count: int, size_px: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size_px, size_px, 3), np.uint8), rng.integers(0, classes, count)


def recipe(batch: int, named: str = "quick", **more: Any) -> Recipe:
    """A named recipe at a low rate, with so many epochs that no check comes to the end of them."""
    changes = {"epochs": 100_000, "min_steps": 0, "batch_size": batch, "lr": 0.01, "min_lr": 0.0}
    precision = resolve_precision("auto", DEVICE)
    return RECIPES[named][0].model_copy(update={**changes, "precision": precision, **more})


def model_of(name: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, classes).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Ours:
    """A training by `fit`, with checkpoints where it is given a folder."""

    def __init__(
        self, model: nn.Module, pixels: Pixels, labels: np.ndarray, recipe: Recipe, folder: Path | None = None
    ) -> None:
        ids = np.arange(len(labels))
        classes = int(labels.max()) + 1
        self.model, self.recipe = model, recipe
        self.loader = BatchLoader(pixels, measure(pixels.pixel_store, ids[:64]))
        plan = FitPlan(ids_M=ids, labels_M=labels, num_classes=classes, recipe=recipe, seed=0)
        self.steps = plan.sizes()[1]
        kept = None if folder is None else Checkpoints(Folder(str(folder)), "k" * 32, beside=GPU)
        self._epochs = fit(model, self.loader, plan, kept)

    def epoch(self) -> Any:
        """Train one; what is known of it."""
        return next(self._epochs)

    def rate(self, seconds: float) -> float:
        """Images a second: the median epoch of at least two, the first of all apart."""
        self.epoch()
        rates: list[float] = []
        ends = time.perf_counter() + seconds
        while len(rates) < 2 or time.perf_counter() < ends:
            rates.append(self.epoch().images_per_s)
        return statistics.median(rates)

    def waits(self) -> float | None:
        """How often the host waits for the device, a step of an epoch; None on a CPU."""
        if not GPU:
            return None
        with counted_waits() as count:
            self.epoch()
        return count() / self.steps


@contextlib.contextmanager
def counted_waits() -> Iterator[Callable[[], int]]:
    """Gives what says how often the host has waited for the device within."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("called a synchronizing" in str(each.message) for each in said)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def bare_rate(model: nn.Module, recipe: Recipe, size_px: int, classes: int, seconds: float) -> tuple[float, float]:
    """Images a second of nothing but steps over one batch, and the operations that an image takes."""
    batch = recipe.batch_size
    inputs = torch.randn(batch, 3, size_px, size_px, device=DEVICE).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(batch, device=DEVICE) % classes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    model.train()

    def step(count: int = batch) -> None:
        with autocast(recipe, DEVICE):
            loss = nn.functional.cross_entropy(model(inputs[:count]).float(), targets[:count])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        step(2)
    for _ in range(3):
        step()
    return batch * _times_a_second(step, seconds), counter.get_total_flops() / 2


def matrix_rate(seconds: float = 0.5) -> float:
    """Operations a second of a bf16 product of two square matrices."""
    size = 8192 if GPU else 512
    one, other = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ other
    return 2 * size**3 * _times_a_second(lambda: one @ other, seconds)


def _times_a_second(call: Callable[[], object], seconds: float) -> float:
    wait()
    began, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds or not done:
        for _ in range(10 if GPU else 1):
            call()
            done += 1
        wait()
    return done / taken


def with_numerics(deterministic: bool = False) -> contextlib.AbstractContextManager[None]:
    """The settings of a fit."""
    return numerics(1, deterministic, DEVICE)


def own_pixels(store: PixelStore) -> Pixels:
    """Pixels that stay where they are: batches are copied to the device."""
    return Pixels(store, DEVICE, None)
