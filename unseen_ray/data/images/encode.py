"""From images as a source has them to images that decode fast: JPEG with a short side of one size, or squares of plain pixels."""

from __future__ import annotations

import io

from PIL import Image

from unseen_ray.data.images.decode import UndecodableError, open_image, orientation_of, to_pixels
from unseen_ray.data.images.pillow_warnings import quietly
from unseen_ray.data.sources.info import RawImage

__all__ = ["to_jpeg", "to_ppm"]

_MOST_PX = 65_500  # a side, of libjpeg


def to_ppm(raw: RawImage, size_px: int) -> bytes:
    """The pixels that `to_pixels` makes of an image, uncompressed, as a binary PPM.

    Args:
        raw: an encoded image, or (H, W, 3) uint8.
        size_px: height and width.

    Returns:
        A header of 15 bytes or so, and size_px * size_px * 3 bytes behind it.

    Raises:
        UndecodableError: if the bytes are no whole image.
    """
    return b"P6\n%d %d\n255\n" % (size_px, size_px) + to_pixels(raw, size_px).tobytes()


def to_jpeg(raw: RawImage, size_px: int, quality: int) -> bytes:
    """An image upright, in RGB, its short side scaled to `size_px` and never enlarged, as a baseline JPEG.

    An image that is all of that already keeps its bytes, whatever their quality.

    Args:
        raw: an encoded image, or (H, W, 3) uint8.
        size_px: pixels of the short side; the aspect stays.
        quality: 1 to 100, as Pillow takes it.

    Raises:
        UndecodableError: if the bytes are no whole image.
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
    pixels = Image.new("RGB", image.size)  # without EXIF, colour profile and comments, which Pillow would write
    pixels.paste(image)
    pixels.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def _is_plain(raw: bytes, decoded: Image.Image) -> bool:
    """Whether bytes that can be decoded are a baseline RGB JPEG of that very size, which nobody would turn."""
    with quietly(), Image.open(io.BytesIO(raw)) as image:
        return (
            image.format == "JPEG"
            and image.mode == "RGB"
            and image.size == decoded.size
            and not image.info.get("progressive")
            and orientation_of(image) == 1
        )
