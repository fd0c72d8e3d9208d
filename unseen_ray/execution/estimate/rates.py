"""How fast this machine decodes a source and trains and asks a configuration's model: a few seconds each, nothing written.

Shapes: M samples that are tried.
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
from unseen_ray.data.images.decode import UndecodableError, to_pixels
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.errors import DataError
from unseen_ray.training.hardware import device_name, numerics, resolve_precision, seed_generators
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
_CPU_PIXELS = 64 * 224**2  # of a batch
_EPOCHS = 100  # of a recipe that counts in steps
_RATE = 1e-6  # at which the model hardly learns


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRates:
    """What was measured, in images a second.

    Attributes:
        device: the model of the GPU, or `cpu`.
        precision: number format of the training.
        batch_size: images of a training step.
        decode: of one core.
        training, scoring: of one worker that is kept fed; None where the user's own `fit` trains.
        checkpoint_bytes: of the model; None likewise.
    """

    device: str
    precision: str
    batch_size: int
    decode: float
    training: float | None = None
    scoring: float | None = None
    checkpoint_bytes: int | None = None


def measure_rates(config: PruneConfig, source: Source) -> MeasuredRates:
    """Decode, train and score some of a source's images, each for a few seconds, the median of windows after a warm-up.

    Args:
        config: with the model named; `threads`, `recipe` and `gpus_per_fold` (0: not on a GPU) as a fold has them.
        source: what is tried: real images, real labels.

    Raises:
        DataError: if none of the images that were tried can be decoded.
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
        trainer = Trainer(model, recipe, num_classes=source.info.num_classes, device=device, replicas=1)
        training = _training_rate(trainer, loader, labels, recipe)
        some = places[: 2 * batch]
        scoring = _rate(lambda: sum(len(answers.ids_B) for answers in predict(model, loader, some, recipe)), device)
        kept = sum(value.nbytes for value in trainer.tensors().values())
    return replace(found, training=training, scoring=scoring, checkpoint_bytes=kept)


def _tried(recipe: Recipe, size_px: int, device: torch.device) -> Recipe:
    """The recipe with its precision resolved, on a CPU in batches that its memory holds: its rate hardly depends on them."""
    changes: dict[str, object] = {"precision": resolve_precision(recipe.precision, device)}
    if device.type == "cpu":
        changes["batch_size"] = max(2, min(recipe.batch_size, _CPU_PIXELS // size_px**2))
    return recipe.model_copy(update=changes)


def _some(total: int, wanted: int) -> IdArray:
    """Ids in runs from all over a source: it is read in runs of them, and classes often stand together."""
    if total <= wanted:
        return np.arange(total)
    starts = np.linspace(0, total - _RUN, -(-wanted // _RUN)).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(_RUN)).ravel())


def _decoded(source: Source, ids: IdArray) -> tuple[NDArray[np.uint8], IntArray, float]:
    """Pixels and labels of what can be decoded, and how many images one core decodes in a second."""
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
        raise DataError(f"of {len(ids)} images of {source.info.name} that were tried {len(kept)} can be decoded.")
    turn = itertools.cycle(raws[:_TRIED])

    def decode() -> int:
        for raw in itertools.islice(turn, _AT_ONCE):
            to_pixels(raw, size_px)
        return _AT_ONCE

    return np.stack(images), source.info.labels_N[np.array(kept)].astype(np.int64), _rate(decode, torch.device("cpu"))


def _training_rate(trainer: Trainer, loader: BatchLoader, labels_M: IntArray, recipe: Recipe) -> float:
    """Over all epochs of the recipe, whose crops may have several sizes."""
    epochs = recipe.epochs or _EPOCHS
    first = {recipe.crop_px(epoch, epochs, 0): epoch for epoch in reversed(range(epochs))}
    counts = Counter(recipe.crop_px(epoch, epochs, 0) for epoch in range(epochs))
    seconds = [
        count / _rate(_stepping(trainer, loader, labels_M, recipe, (first[px], epochs)), loader.pixels.device)
        for px, count in counts.items()
    ]
    return epochs / sum(seconds)


def _stepping(
    trainer: Trainer, loader: BatchLoader, labels_M: IntArray, recipe: Recipe, progress: tuple[int, int]
) -> Callable[[], int]:
    """Takes a step of training each time it is called, and says of how many images."""
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
    """Images a second: `do` treats some and says how many; the median of the windows after a warm-up that time allows."""
    began = time.perf_counter()
    for _ in range(_WARM):
        do()
        _wait_for(device)
        if time.perf_counter() - began > _WARM_S:
            break
    rates: list[float] = []
    start = time.perf_counter()
    while len(rates) < _WINDOWS and (not rates or time.perf_counter() - start < _ALL_S):
        count, opened = 0, time.perf_counter()
        while not count or time.perf_counter() - opened < _WINDOW_S:
            count += do()
        _wait_for(device)
        rates.append(count / (time.perf_counter() - opened))
    return statistics.median(rates)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
