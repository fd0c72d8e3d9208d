"""Measures how fast this machine decodes a source, trains a configuration's model and scores with it, a few seconds each.

Shapes: M sampled images.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen_ray.core.seeds import rng_for, torch_seed_for
from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.errors import DataError
from unseen_ray.training.hardware import device_name, numerics, resolve_precision, seed_generators, synchronize
from unseen_ray.training.loop.batches import BatchLoader, WorkerShare, hold_pixels, measure
from unseen_ray.training.loop.predict import predict
from unseen_ray.training.loop.trainer import Trainer
from unseen_ray.training.model_task import build_model

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.data.sources.registry import RawImage, Source

__all__ = ["MeasuredRates", "measure_rates"]

_WINDOW_S, _WINDOWS, _ALL_S = 0.6, 5, 12.0
_WARM, _WARM_S = 3, 3.0
_RUN, _TRIED, _AT_ONCE = 64, 512, 16
_CPU_PIXELS = 64 * 224**2  # the most pixels of a batch on a CPU
_EPOCHS = 100  # for recipes that count steps
_RATE = 1e-6  # a learning rate at which the model hardly changes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRates:
    """Measured rates, in images per second.

    Attributes:
        device: the name of the GPU, or `cpu`.
        precision: number format of the training.
        batch_size: images per training step.
        decode: rate of one core.
        training, scoring: rates of one worker that does not wait for data; None if the user's own `fit` trains.
        checkpoint_bytes: bytes of the model's checkpoint; None likewise.
    """

    device: str
    precision: str
    batch_size: int
    decode: float
    training: float | None = None
    scoring: float | None = None
    checkpoint_bytes: int | None = None


def measure_rates(config: PruneConfig, source: Source) -> MeasuredRates:
    """Decode, train on and score some images of a source for a few seconds each; rates are medians after a warm-up.

    Args:
        config: the configuration with its model; `threads`, `recipe` and `gpus_per_fold` (0: no GPU) are used as for a fold.
        source: the source of the images and labels.

    Raises:
        DataError: if fewer than two of the sampled images can be decoded.
    """
    wanted = config.gpus_per_fold is None or config.gpus_per_fold > 0
    device = torch.device("cuda", 0) if wanted and torch.cuda.is_available() else torch.device("cpu")
    recipe = _tried(config.recipe, source.info.size_px, device)
    ids = _some(len(source.info), max(_TRIED, 2 * recipe.batch_size if config.fit is None else 0))
    pixels, labels, decode = _decoded(source, ids)
    batch = min(recipe.batch_size, len(labels))
    found = MeasuredRates(device=device_name(device), precision=recipe.precision, batch_size=batch, decode=decode)
    if config.fit is not None:
        return found
    places = np.arange(len(labels))
    with numerics(config.threads, recipe.deterministic, device):
        seed_generators(torch_seed_for(config.seed), device)
        model = build_model(config.model, source.info.num_classes)
        model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixel_store = MemoryPixelStore(pixels)
        loader = BatchLoader(hold_pixels(pixel_store, device), measure(pixel_store, places))
        _, steps = recipe.plan(len(source.info))
        trainer = Trainer(model, recipe, steps=steps, num_classes=source.info.num_classes, device=device, replicas=1)
        training = _training_rate(trainer, loader, labels, recipe)
        some = places[: 2 * batch]
        scoring = _rate(lambda: sum(len(answers.ids_B) for answers in predict(model, loader, some, recipe)), device)
        kept = sum(value.nbytes for value in trainer.tensors().values())
    return replace(found, training=training, scoring=scoring, checkpoint_bytes=kept)


def _tried(recipe: Recipe, size_px: int, device: torch.device) -> Recipe:
    """The recipe with its precision resolved and, on a CPU, a batch that fits in memory: its rate hardly depends on that."""
    changes: dict[str, object] = {"precision": resolve_precision(recipe.precision, device)}
    if device.type == "cpu":
        changes["batch_size"] = max(2, min(recipe.batch_size, _CPU_PIXELS // size_px**2))
    return recipe.model_copy(update=changes)


def _some(total: int, wanted: int) -> IdArray:
    """Ids in short runs from all parts of a source: sources are read in runs, and are often sorted by class."""
    if total <= wanted:
        return np.arange(total)
    starts = np.linspace(0, total - _RUN, -(-wanted // _RUN)).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(_RUN)).ravel())


def _decoded(source: Source, ids: IdArray) -> tuple[NDArray[np.uint8], IntArray, float]:
    """Pixels and labels of the decodable images, and the images per second that one core decodes."""
    size_px = source.info.size_px
    raws: list[RawImage] = []
    images: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    for number, raw in source.read(ids.tolist()):
        with contextlib.suppress(UndecodableError):
            images.append(to_pixels(raw, size_px))
            raws.append(raw)
            kept.append(number)
    if len(kept) < 2:
        raise DataError(
            f"only {len(kept)} of {len(ids)} sampled images of {source.info.name} can be decoded. Check the source."
        )
    turn = itertools.cycle(raws[:_TRIED])

    def decode() -> int:
        for raw in itertools.islice(turn, _AT_ONCE):
            to_pixels(raw, size_px)
        return _AT_ONCE

    return np.stack(images), source.info.labels_N[np.array(kept)].astype(np.int64), _rate(decode, torch.device("cpu"))


def _training_rate(trainer: Trainer, loader: BatchLoader, labels_M: IntArray, recipe: Recipe) -> float:
    """The mean rate over all epochs of the recipe, whose crops may have several sizes."""
    epochs = recipe.epochs or _EPOCHS
    first = {recipe.crop_px(epoch, epochs, 0): epoch for epoch in reversed(range(epochs))}
    counts = Counter(recipe.crop_px(epoch, epochs, 0) for epoch in range(epochs))
    seconds = [
        count / _rate(_stepping(trainer, loader, labels_M, recipe, (first[px], epochs)), loader.pixels.device)
        for px, count in counts.items()
    ]
    return epochs / sum(seconds)  # not the mean of the rates: time per image is what adds up


def _stepping(
    trainer: Trainer, loader: BatchLoader, labels_M: IntArray, recipe: Recipe, progress: tuple[int, int]
) -> Callable[[], int]:
    """A function that does one training step per call and returns its number of images."""
    places, shape = np.arange(len(labels_M)), recipe.epoch_plan(len(labels_M))
    batch, per_epoch = shape

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            yield from loader.epoch(
                places,
                labels_M,
                recipe,
                shape=(per_epoch, batch),
                rng=rng_for(0, epoch),
                shard=WorkerShare(),
                progress=progress,
            )

    turn = batches()

    def step() -> int:
        inputs, labels = next(turn)
        trainer.model.train()
        trainer.step(inputs, labels, _RATE)
        return len(labels)

    return step


def _rate(do: Callable[[], int], device: torch.device) -> float:
    """Images per second, the median over time windows after a warm-up; `do` processes some images and returns their number."""
    began = time.perf_counter()
    for _ in range(_WARM):
        do()
        synchronize(device)
        if time.perf_counter() - began > _WARM_S:
            break
    rates: list[float] = []
    start = time.perf_counter()
    while len(rates) < _WINDOWS and (not rates or time.perf_counter() - start < _ALL_S):
        count, opened = 0, time.perf_counter()
        while not count or time.perf_counter() - opened < _WINDOW_S:
            count += do()
        synchronize(device)
        rates.append(count / (time.perf_counter() - opened))
    return statistics.median(rates)
