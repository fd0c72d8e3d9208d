"""One image: encoded bytes, or pixels of any size, to (size, size, 3) uint8."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unseen_ray.sources import RawImage

__all__ = ["UndecodableError", "to_pixels"]


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
    if not isinstance(raw, bytes):
        return raw if raw.shape[:2] == (size_px, size_px) else _fit(Image.fromarray(raw), size_px)
    if not raw:
        raise UndecodableError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(raw))
            image.draft("RGB", (size_px, size_px))
            upright = ImageOps.exif_transpose(image)
            return _fit((upright or image).convert("RGB"), size_px)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, Image.DecompressionBombError) as error:
        raise UndecodableError(_reason(error)) from None


def _fit(image: Image.Image, size_px: int) -> NDArray[np.uint8]:
    if image.size != (size_px, size_px):
        image = ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "the bytes are no image that Pillow knows"
    return f"{type(error).__name__}: {error}".rstrip(".")
