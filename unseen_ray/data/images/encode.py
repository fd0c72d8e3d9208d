"""Encodes images so that they decode fast: as a JPEG with a small short side, or as a square of raw pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unseen_ray.data.images.decode import open_image, orientation_of, to_pixels
from unseen_ray.data.images.opening import UndecodableError, opened, quietly
from unseen_ray.data.sources.info import RawImage

__all__ = ["to_jpeg", "to_png", "to_ppm"]

_MOST_PX = 65_500  # libjpeg's limit per side


def to_ppm(raw: RawImage, size_px: int) -> bytes:
    """The pixels that `to_pixels` returns for an image, as an uncompressed binary PPM.

    Args:
        raw: an encoded image, or (H, W, 3) uint8.
        size_px: height and width.

    Returns:
        A header of about 15 bytes, followed by size_px * size_px * 3 bytes.

    Raises:
        UndecodableError: if the bytes are not a complete image.
    """
    return b"P6\n%d %d\n255\n" % (size_px, size_px) + to_pixels(raw, size_px).tobytes()


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) pixels as a PNG, which keeps them as they are."""
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, "PNG")
    return encoded.getvalue()


def to_jpeg(raw: RawImage, size_px: int, quality: int) -> bytes:
    """Turn an image upright, convert it to RGB, shrink its short side to `size_px` and encode it as a baseline JPEG.

    An image that is all of this already keeps its bytes, whatever their quality.

    Args:
        raw: an encoded image, or (H, W, 3) uint8.
        size_px: the short side in pixels; the aspect ratio is kept, and smaller images are not enlarged.
        quality: 1 to 100, as in Pillow.

    Raises:
        UndecodableError: if the bytes are not a complete image, or the long side is too long for a JPEG.
    """
    image = open_image(raw, draft_px=size_px)
    if isinstance(raw, bytes) and min(image.size) <= size_px and _is_plain(raw, image):
        return raw
    short = min(image.size)
    if short > size_px:
        width, height = (max(1, round(side * size_px / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if max(image.size) > _MOST_PX:
        raise UndecodableError(f"it is {image.width} x {image.height} pixels, and a JPEG has at most {_MOST_PX} a side")
    encoded = io.BytesIO()
    pixels = Image.new("RGB", image.size)  # drops EXIF, colour profile and comments, which Pillow would write
    pixels.paste(image)
    pixels.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def _is_plain(raw: bytes, decoded: Image.Image) -> bool:
    """Whether decodable bytes are an upright baseline RGB JPEG of exactly the decoded size."""
    with quietly(), opened(raw) as image:
        return (
            image.format == "JPEG"
            and image.mode == "RGB"
            and image.size == decoded.size
            and not image.info.get("progressive")
            and orientation_of(image) == 1
        )
