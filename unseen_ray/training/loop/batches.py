"""From ids to normalised batches on a device: gathered, augmented and scaled as tensors, never image by image.

Shapes: N rows of a pixel store, M samples of an epoch, B samples of a batch, H height, W width.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen_ray.data.images.pixel_files import FilePixelStore
from unseen_ray.data.images.pixel_store import MemoryPixelStore, PixelStore, chunks_of
from unseen_ray.data.images.prefetch import fetched_ahead
from unseen_ray.training.loop.augment import Draws, cut_out, draw, outside, pixel_index, resize_crops

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.core.arrays import IdArray, IntArray

__all__ = ["BatchLoader", "Normalisation", "Pixels", "WorkerShare", "hold_pixels", "measure"]

logger = logging.getLogger(__name__)

_MEASURED = 10_000  # training images that channel statistics are taken from
_LOOKED_AT = 5_000  # of them, that a model may be fitted to before its training
_GPU_SHARE = 0.5  # of the GPU memory that a process may use


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel, in units of a uint8 pixel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """Which part of every batch a worker takes: samples rank, rank + workers, ... of it."""

    rank: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """The pixels of a store as one device sees them.

    Attributes:
        pixel_store: where they come from.
        device: where batches are made.
        all_NHWC: (N, H, W, 3) uint8 on the device where the pixel store fits there, without a copy on a CPU; else None.
    """

    pixel_store: PixelStore
    device: torch.device
    all_NHWC: Tensor | None

    def places(self, ids_M: IdArray) -> Tensor | None:
        """The ids on the device, copied there at once; None where pixels are fetched by id."""
        return None if self.all_NHWC is None else torch.from_numpy(ids_M).to(self.device)

    def stacks(self, ids_M: IdArray, parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each part of the ids: a (S, H, W, 3) stack of images, valid until the next one, and the places of the part's images in it."""
        places_M = self.places(ids_M)
        if self.all_NHWC is not None and places_M is not None:
            for part in parts:
                yield self.all_NHWC, places_M[part]
            return
        batches = [ids_M[part] for part in parts]
        if self.device.type == "cpu":
            for images in fetched_ahead(self.pixel_store, batches):
                yield torch.from_numpy(images), torch.arange(len(images))
            return
        aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        for images in fetched_ahead(self.pixel_store, batches, _page_locked):
            yield _copied(images, self.device, aside), torch.arange(len(images), device=self.device)
            aside.synchronize()  # the next images come into the same memory


def _page_locked(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory that a GPU copies from while the host goes on."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def _copied(images: NDArray[np.uint8], device: torch.device, aside: torch.cuda.Stream) -> Tensor:
    """Images on a GPU, copied by a stream of their own while it still computes; what comes next on the current one waits for them."""
    with torch.cuda.stream(aside):
        copy = torch.from_numpy(images).to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(aside)
    copy.record_stream(current)
    return copy


def hold_pixels(pixel_store: PixelStore, device: torch.device, *, gpu_share: float = 1.0) -> Pixels:
    """Bring the pixels of a store to a device, once for everything that is trained there; a GPU takes those in files too.

    Args:
        pixel_store: pixels in memory or in files; those that are decoded at every read stay where they are.
        device: a CPU uses pixels in memory without a copy.
        gpu_share: the part of the GPU that this process may use, 0 to 1.
    """
    if device.type == "cuda" and isinstance(pixel_store, (MemoryPixelStore, FilePixelStore)):
        return Pixels(pixel_store, device, _on_gpu(pixel_store, device, gpu_share))
    if not isinstance(pixel_store, MemoryPixelStore):
        return Pixels(pixel_store, device, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are read-only in the object store, and only read
        return Pixels(pixel_store, device, torch.from_numpy(pixel_store.pixels_NHWC))


def _on_gpu(pixel_store: MemoryPixelStore | FilePixelStore, device: torch.device, gpu_share: float) -> Tensor | None:
    """All pixels on a GPU; None if they take more than a part of its memory: the rest is for models and their activations."""
    shape = len(pixel_store), pixel_store.size_px, pixel_store.size_px, 3
    room, needed = _room_on(device, gpu_share), math.prod(shape)
    if needed > room:
        logger.info(
            "%.1f GiB of pixels stay in the host's memory or files, batches are copied to the GPU: it has %.1f GiB for pixels",
            needed / 2**30,
            room / 2**30,
        )
        return None
    all_NHWC = torch.empty(shape, dtype=torch.uint8, device=device)
    ranges = chunks_of(len(pixel_store))
    for (start, stop), images in zip(ranges, fetched_ahead(pixel_store, [np.arange(*r) for r in ranges]), strict=True):
        all_NHWC[start:stop].copy_(torch.from_numpy(images))
    return all_NHWC


def _room_on(device: torch.device, gpu_share: float) -> float:
    """Bytes of a GPU that pixels may take: of what is free, torch's cache included, and of this process's share."""
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    return _GPU_SHARE * min(free + torch.cuda.memory_reserved(device) - used, gpu_share * total - used)


def measure(pixel_store: PixelStore, train_ids: IdArray) -> Normalisation:
    """Channel statistics of the training samples alone, so that not even these come from unseen ones.

    From all of up to 10,000 samples, else from 10,000 spread evenly over them. Exact integer sums.
    """
    ids = _spread(train_ids, _MEASURED)
    total_3, squares_3 = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for images in fetched_ahead(pixel_store, [ids[start:stop] for start, stop in chunks_of(len(ids))]):
        flat = images.reshape(len(images), -1)
        # the squares of a byte fit in 16 bits, the sums over a chunk in 32
        total_3 += flat.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.int64)
        squares = np.square(flat, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        squares_3 += squares.reshape(-1, 3).sum(axis=0, dtype=np.int64)
    count = len(ids) * pixel_store.size_px**2
    mean = total_3 / count
    variance = squares_3 / count - np.square(mean)
    std = np.sqrt(np.maximum(variance, 1.0))
    return Normalisation(mean=tuple(map(float, mean)), std=tuple(map(float, std)))  # type: ignore[arg-type]


def _spread(ids: IdArray, most: int) -> IdArray:
    """At most so many of the ids, evenly over them."""
    return ids if len(ids) <= most else ids[np.linspace(0, len(ids) - 1, most).astype(np.int64)]


class BatchLoader:
    """Batches of a pixel store for one fit.

    Args:
        pixels: where images come from.
        norm: channel statistics of the training samples.
    """

    def __init__(self, pixels: Pixels, norm: Normalisation) -> None:
        self.pixels, self.norm = pixels, norm
        self._mean_C = torch.tensor(norm.mean, device=pixels.device)
        self._std_C = torch.tensor(norm.std, device=pixels.device)
        self._fill_C = self._mean_C.round().to(torch.uint8)
        self._lines: dict[int, tuple[Tensor, Tensor]] = {}

    def epoch(
        self,
        ids_M: IdArray,
        labels_M: IntArray,
        recipe: Recipe,
        *,
        shape: tuple[int, int],
        rng: np.random.Generator,
        shard: WorkerShare,
        progress: tuple[int, int] = (0, 1),
        first: int = 0,
        mirrored_M: NDArray[np.bool_] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches of one epoch in an order drawn from `rng`, which every worker of a fit draws alike.

        Args:
            ids_M, labels_M: the training ids and their classes.
            recipe: how to augment.
            shape: (steps, batch size).
            rng: for this epoch alone.
            shard: which part of each batch to give.
            progress: which epoch it is, from 0, of how many: crops may grow.
            first: the step to begin with, where those before it were done.
            mirrored_M: (M,) which images to mirror, where the recipe does; None to draw them.

        Yields:
            (B, 3, H, W) float32 inputs, channels_last in memory, and (B,) int64 labels.
        """
        device, size_px = self.pixels.device, self.pixels.pixel_store.size_px
        steps, size = shape
        crop_px = recipe.crop_px(*progress, size_px)
        # All draws of the epoch come at once and on the host: neither the device nor the step to resume from changes them.
        order = rng.permutation(len(ids_M))[: steps * size]
        draws = draw(recipe, size_px, order, rng, mirrored_M).to(device)
        labels = torch.from_numpy(labels_M[order]).to(device)
        starts = range(first * size + shard.rank, len(order), size)
        parts = [slice(start, start - shard.rank + size, shard.workers) for start in starts]
        for part, stack in zip(parts, self.pixels.stacks(ids_M[order], parts), strict=True):
            images = self._augmented(*stack, draws.batch(part.start, part.stop, part.step), recipe, crop_px)
            yield self._normalised(images), labels[part]

    def scoring(self, ids_M: IdArray, batch_size: int) -> Iterator[tuple[IdArray, Tensor]]:
        """The samples in order, as they are: ids and (B, 3, H, W) float32 inputs."""
        parts = [slice(start, stop) for start, stop in chunks_of(len(ids_M), batch_size)]
        for part, (stack, places) in zip(parts, self.pixels.stacks(ids_M, parts), strict=True):
            yield ids_M[part], self._normalised(stack.index_select(0, places))

    def first_look(self, train_ids: IdArray, batch_size: int) -> Iterator[Tensor]:
        """Inputs for `fit_to_images`: all, or 5,000 spread evenly over the training samples, in batches as those of `scoring`."""
        for _, inputs in self.scoring(_spread(train_ids, _LOOKED_AT), batch_size):
            yield inputs

    def _augmented(self, stack: Tensor, places: Tensor, draws: Draws, recipe: Recipe, crop_px: int) -> Tensor:
        """(B, S, S, 3), uint8 or float32."""
        size_px = stack.shape[1]
        if draws.box_M4 is not None:
            return resize_crops(stack.index_select(0, places), draws, crop_px)
        index = pixel_index(draws, size_px, places * size_px)
        images = stack.view(-1, 3).index_select(0, index).view(-1, size_px, size_px, 3)
        if draws.shift_M2 is not None and recipe.pad == "zeros":
            images.masked_fill_(outside(draws, size_px)[..., None], 0)
        return images if draws.centre_M2 is None else cut_out(images, draws.centre_M2, self._fill_C)

    def _normalised(self, images_BHWC: Tensor) -> Tensor:
        """(B, 3, H, W) float32, channels_last in memory."""
        width = images_BHWC.shape[2]
        if width not in self._lines:  # whole lines, because three channels alone are no vector
            self._lines[width] = self._mean_C.repeat(width), self._std_C.repeat(width)
        mean_L, std_L = self._lines[width]
        lines_BHL = images_BHWC.flatten(2).to(torch.float32).sub_(mean_L).div_(std_L)
        return lines_BHL.view(images_BHWC.shape).permute(0, 3, 1, 2)
