"""One image: encoded bytes, or pixels of any size, to (size, size, 3) uint8."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from unseen_ray.sources import RawImage

__all__ = ["UndecodableError", "open_image", "to_pixels"]


class UndecodableError(ValueError):
    """What a decoder said of an image that it could not read."""


def to_pixels(raw: RawImage, size_px: int) -> NDArray[np.uint8]:
    """Decode, turn upright, convert to RGB, scale the short side to `size_px` and cut out the centre.

    Args:
        raw: an encoded image (JPEG, PNG, whatever Pillow reads), or (H, W, 3) uint8.
        size_px: height and width of the result.

    Returns:
        (size_px, size_px, 3) uint8.

    Raises:
        UndecodableError: if the bytes are no whole image.
    """
    if not isinstance(raw, bytes) and raw.shape[:2] == (size_px, size_px):
        return raw
    image = open_image(raw, draft_px=size_px)
    if image.size != (size_px, size_px):
        image = ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def open_image(raw: RawImage, *, draft_px: int | None = None) -> Image.Image:
    """Decode, turn upright and convert to RGB.

    Args:
        raw: an encoded image, or (H, W, 3) uint8.
        draft_px: a JPEG may be decoded at a fraction of its size that is no smaller than this.

    Raises:
        UndecodableError: if the bytes are no whole image.
    """
    if not isinstance(raw, bytes):
        return Image.fromarray(raw)
    if not raw:
        raise UndecodableError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(raw))
            if draft_px is not None:
                image.draft("RGB", (draft_px, draft_px))
            upright = ImageOps.exif_transpose(image) or image
            return _eight_bit(upright).convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise UndecodableError(_reason(error)) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; Pillow itself would cut everything above 255 off."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    return Image.fromarray((levels >> 8).clip(0, 255).astype(np.uint8)) if levels.max(initial=0) > 255 else image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "the bytes are no image that Pillow knows"
    return f"{type(error).__name__}: {error}".rstrip(".")
