"""Random changes of the training images: drawn for a whole epoch at once, applied to batches as tensors.

Shapes: M samples of an epoch, B samples of a batch, H height, W width, S side of a training crop.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.core.arrays import IntArray

__all__ = ["Draws", "cut_out", "draw", "outside", "pixel_index", "resize_crops"]

_CUT = 2  # a cutout is half as wide as the image: 16 px at 32
_AREA, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True, slots=True)
class Draws:
    """What an epoch drew for each of M samples; None where the augmentation does not use it.

    Attributes:
        flip_M: bool, whether to mirror.
        shift_M2: int64, pixels down and to the right.
        centre_M2: int64, row and column at the middle of the cutout.
        box_M4: float32, top, left, height and width of the part to resize, in pixels.
    """

    flip_M: Tensor | None = None
    shift_M2: Tensor | None = None
    centre_M2: Tensor | None = None
    box_M4: Tensor | None = None

    def to(self, device: torch.device) -> Draws:
        """The same on a device."""
        return Draws(*(drawn if drawn is None else drawn.to(device) for drawn in self._all()))

    def batch(self, start: int, stop: int, step: int = 1) -> Draws:
        """Those of the samples start, start + step, ... before stop."""
        return Draws(*(drawn if drawn is None else drawn[start:stop:step] for drawn in self._all()))

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.flip_M, self.shift_M2, self.centre_M2, self.box_M4


def draw(
    recipe: Recipe,
    size_px: int,
    order_M: IntArray,
    rng: np.random.Generator,
    mirrored_N: NDArray[np.bool_] | None = None,
) -> Draws:
    """Draw the changes of an epoch's samples.

    Args:
        recipe: how to augment.
        size_px: side of the images.
        order_M: places of the samples in `mirrored_N`.
        rng: where the draws come from, on the host: they are the same whatever the device.
        mirrored_N: which ones to mirror, where the augmentation does; None to draw them.
    """
    kind, count = recipe.augment_at(size_px), len(order_M)
    parts, resized = kind.split("_"), kind.startswith("resized")
    reach, random = int(size_px * recipe.shift), torch.from_numpy
    flip_M = None
    if "flip" in parts:
        flip_M = random(rng.random(count) < 0.5 if mirrored_N is None else mirrored_N[order_M])
    return Draws(
        flip_M=flip_M,
        shift_M2=random(rng.integers(-reach, reach + 1, (count, 2))) if "crop" in parts and not resized else None,
        centre_M2=random(rng.integers(0, size_px, (count, 2))) if "cutout" in parts else None,
        box_M4=random(_boxes(size_px, count, rng)) if resized else None,
    )


def pixel_index(draws: Draws, size_px: int, first_row_B: Tensor) -> Tensor:
    """Where each pixel of the shifted and mirrored images comes from; a shift reflects at the border.

    Args:
        draws: of the B samples.
        size_px: height and width, W.
        first_row_B: number of each image's first row in a stack of images, which is its place times the height.

    Returns:
        (B * H * W,) int64 numbers of pixels in the stack.
    """
    lines_2SL, shift_B2 = _reflected_lines(size_px, first_row_B.device), draws.shift_M2
    mirrored_B = 0 if draws.flip_M is None else draws.flip_M.long()
    rows_BH = lines_2SL[0, :1] if shift_B2 is None else lines_2SL[0, shift_B2[:, 0]]
    columns_BW = lines_2SL[mirrored_B, 0 if shift_B2 is None else shift_B2[:, 1]].view(-1, size_px)
    first_pixel_BH = (first_row_B[:, None] + rows_BH) * size_px
    return (first_pixel_BH[:, :, None] + columns_BW[:, None, :]).view(-1)


@functools.cache
def _reflected_lines(size_px: int, device: torch.device) -> Tensor:
    """(2, S, W) where the pixels of a line come from: as it is, or mirrored, under each shift; S is in the order 0, 1, ..., -2, -1.

    One look-up takes a GPU less than the dozen small steps that lead to its result.
    """
    reach, line = size_px // 2, torch.arange(size_px, device=device)
    shift_S = torch.arange(-reach, reach + 1, device=device).roll(-reach)
    return _reflect(torch.stack([line, line.flip(0)])[:, None, :] + shift_S[:, None], size_px)


def outside(draws: Draws, size_px: int) -> Tensor:
    """(B, H, W) whether a pixel of the shifted images lies beyond the border of its image."""
    assert draws.shift_M2 is not None
    beyond_BH, beyond_BW = ((n < 0) | (n >= size_px) for n in _lines(draws, size_px, draws.shift_M2.device))
    return beyond_BH[:, :, None] | beyond_BW[:, None, :]


def cut_out(images_BHWC: Tensor, centre_B2: Tensor, fill_C: Tensor) -> Tensor:
    """Paint a square half as wide as the image in one colour, as far as it lies within the image.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017).
    """
    size_px = images_BHWC.shape[1]
    line, half = torch.arange(size_px, device=images_BHWC.device), size_px // _CUT // 2
    near_B2L = (line >= centre_B2[..., None] - half) & (line < centre_B2[..., None] + half)
    return torch.where((near_B2L[:, 0, :, None] & near_B2L[:, 1, None, :])[..., None], fill_C, images_BHWC)


def resize_crops(images_BHWC: Tensor, draws: Draws, size_px: int) -> Tensor:
    """Cut a box out of each image and bring it to one size: bilinear, antialiased where it shrinks.

    Two matrix products an image, one a side: what Pillow's bilinear filter gives for the box, mirrored where it is drawn.

    Args:
        images_BHWC: (B, H, W, 3) uint8.
        draws: with boxes.
        size_px: S.

    Returns:
        (B, S, S, 3) float32, 0 to 255.
    """
    assert draws.box_M4 is not None
    _, height, width, channels = images_BHWC.shape
    top_B, left_B, tall_B, wide_B = draws.box_M4.unbind(1)
    down_BSH = _filter(top_B, tall_B, height, size_px)
    across_BSW = _filter(left_B, wide_B, width, size_px)
    if draws.flip_M is not None:
        across_BSW = torch.where(draws.flip_M[:, None, None], across_BSW.flip(1), across_BSW)
    with _tensor_cores():
        rows = torch.bmm(down_BSH, images_BHWC.to(torch.float32).flatten(2)).view(-1, size_px, width, channels)
        return torch.einsum("bsw,bhwc->bhsc", across_BSW, rows)


@contextlib.contextmanager
def _tensor_cores() -> Iterator[None]:
    """Within, GPUs multiply float32 matrices in TF32, whose 10 bits of mantissa are more than the 8 of a pixel."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _filter(start_B: Tensor, length_B: Tensor, size: int, size_px: int) -> Tensor:
    """(B, S, size) float32 weights of a triangle filter over the source pixels within [start, start + length)."""
    device = start_B.device
    scale_B11 = (length_B / size_px)[:, None, None]
    middle_BS1 = start_B[:, None, None] + (torch.arange(size_px, device=device)[:, None] + 0.5) * scale_B11
    place_W = torch.arange(size, device=device) + 0.5
    weight_BSW = (1 - (place_W - middle_BS1).abs() / scale_B11.clamp(min=1)).clamp(min=0)
    inside_B1W = (place_W > start_B[:, None]) & (place_W < (start_B + length_B)[:, None])
    weight_BSW = weight_BSW * inside_B1W[:, None, :]
    return weight_BSW / weight_BSW.sum(dim=2, keepdim=True)


def _boxes(size_px: int, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(M, 4) top, left, height and width: an area of 8 to 100 %, a ratio of 3/4 to 4/3, the whole after ten tries.

    Source: Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015).
    """
    sides = np.full((count, 2), size_px, np.int64)
    left = np.arange(count)
    for _ in range(_TRIES):
        area = rng.uniform(*_AREA, len(left)) * size_px**2
        ratio = np.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), len(left)))
        tried = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=1))).astype(np.int64)
        fits = (tried >= 1).all(axis=1) & (tried <= size_px).all(axis=1)
        sides[left[fits]] = tried[fits]
        left = left[~fits]
    corner = rng.integers(0, size_px - sides + 1)
    return np.concatenate([corner, sides], axis=1).astype(np.float32)


def _lines(draws: Draws, size_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns that the shifted and mirrored images come from, beyond the border where a shift leads there."""
    line = torch.arange(size_px, device=device)
    rows_BH, columns_BW = line[None, :], line[None, :]
    if draws.flip_M is not None:
        columns_BW = torch.where(draws.flip_M[:, None], line.flip(0), line)
    if draws.shift_M2 is not None:
        rows_BH, columns_BW = rows_BH + draws.shift_M2[:, :1], columns_BW + draws.shift_M2[:, 1:]
    return rows_BH, columns_BW


def _reflect(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
