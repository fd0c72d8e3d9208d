"""From ids to normalised batches: gathered, augmented and scaled as tensors, never image by image.

Shapes: B samples, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.plane import Plane, chunks_of
from unseen_ray.recipe import Augment

__all__ = ["Normalisation", "augment", "measure", "resolve_augment", "scoring_batches", "to_input"]

_AUGMENT_FROM_PX = 16
_MEASURED = 10_000


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel, in units of a uint8 pixel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def measure(plane: Plane, train_ids: IdArray) -> Normalisation:
    """Channel statistics of the training samples alone, so that not even these come from unseen ones.

    From all of up to 10,000 samples, else from 10,000 spread evenly over them. Exact integer sums.
    """
    ids = train_ids
    if len(ids) > _MEASURED:
        ids = ids[np.linspace(0, len(ids) - 1, _MEASURED).astype(np.int64)]
    histogram = np.zeros((3, 256), np.int64)
    for start, stop in chunks_of(len(ids)):
        images = plane.images(ids[start:stop])
        for channel in range(3):
            histogram[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    levels = np.arange(256)
    mean = (histogram @ levels) / histogram.sum(axis=1)
    variance = (histogram @ np.square(levels)) / histogram.sum(axis=1) - np.square(mean)
    std = np.sqrt(np.maximum(variance, 1.0))
    return Normalisation(mean=tuple(map(float, mean)), std=tuple(map(float, std)))  # type: ignore[arg-type]


def to_input(images_BHWC: Tensor, norm: Normalisation) -> Tensor:
    """Normalise uint8 images; the result is (B, 3, H, W) float32, channels_last in memory."""
    device = images_BHWC.device
    scaled = images_BHWC.to(torch.float32)
    scaled.sub_(torch.tensor(norm.mean, device=device)).div_(torch.tensor(norm.std, device=device))
    return scaled.permute(0, 3, 1, 2)


def resolve_augment(kind: Augment, size_px: int) -> Augment:
    """What `auto` means for images of this size."""
    if kind != "auto":
        return kind
    return "crop_flip" if size_px >= _AUGMENT_FROM_PX else "none"


def augment(images_BHWC: Tensor, kind: Augment, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side, reflecting at the border, and flip every second one.

    Args:
        images_BHWC: (B, H, W, 3) uint8.
        kind: `none`, `flip`, `crop` or `crop_flip`.
        rng: where the draws come from; the same draws are taken whatever the device.

    Returns:
        (B, H, W, 3) uint8.
    """
    if kind == "none":
        return images_BHWC
    size_b, height, width, _ = images_BHWC.shape
    reach = height // 8 if "crop" in kind else 0
    shift_y = rng.integers(-reach, reach + 1, size_b)
    shift_x = rng.integers(-reach, reach + 1, size_b)
    flipped = rng.random(size_b) < (0.5 if "flip" in kind else 0.0)
    columns = np.where(flipped[:, None], np.arange(width)[::-1], np.arange(width))
    rows_BH = _reflect(np.arange(height) + shift_y[:, None], height)
    columns_BW = _reflect(columns + shift_x[:, None], width)
    first_pixel_BH = (np.arange(size_b)[:, None] * height + rows_BH) * width
    pixels = torch.from_numpy((first_pixel_BH[:, :, None] + columns_BW[:, None, :]).ravel())
    flat = images_BHWC.reshape(-1, 3).index_select(0, pixels.to(images_BHWC.device))
    return flat.view(size_b, height, width, 3)


def scoring_batches(plane: Plane, ids_M: IdArray, batch_size: int) -> Iterator[tuple[IdArray, Tensor]]:
    """The samples in order, as they are."""
    for start, stop in chunks_of(len(ids_M), batch_size):
        yield ids_M[start:stop], torch.from_numpy(plane.images(ids_M[start:stop]))


def _reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    index = np.abs(index)
    return np.where(index >= length, 2 * (length - 1) - index, index)
