"""Converts one image, encoded or as pixels of any size, to (size, size, 3) uint8."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from unseen_ray.data.images.jpeg import pixels_of_jpeg, scaled
from unseen_ray.data.images.opening import BROKEN, FORMATS, UndecodableError, opened, quietly
from unseen_ray.data.sources.info import RawImage

__all__ = ["in_rgb", "open_image", "orientation_of", "pixels_of_ppm", "to_pixels"]

_PPM_HEAD = re.compile(rb"P6\n([1-9]\d{0,5}) ([1-9]\d{0,5})\n255\n")
_PNG = b"\x89PNG\r\n\x1a\n"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT_AS_I = ("PNG", "PPM")  # which Pillow scales to 0..65535 where it opens them in its 32-bit mode
_HOLD_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def to_pixels(raw: RawImage, size_px: int) -> NDArray[np.uint8]:
    """Decode, turn upright, convert to RGB, scale the short side to `size_px` and crop the centre.

    Args:
        raw: an encoded image (any of `opening.FORMATS`), or (H, W, 3) uint8.
        size_px: height and width of the result.

    Returns:
        (size_px, size_px, 3) uint8.

    Raises:
        UndecodableError: if the bytes are not a complete image.
    """
    pixels = _plain_pixels(raw, size_px)
    if pixels is None:
        return np.asarray(_square(open_image(raw, draft_px=size_px), size_px), np.uint8)
    height, width = pixels.shape[:2]
    if width == height == size_px:
        return pixels
    corner = _corner(width, height, size_px)
    if corner is not None:
        left, top = corner
        return np.ascontiguousarray(pixels[top : top + size_px, left : left + size_px])
    image = Image.frombytes("RGB", (width, height), np.ascontiguousarray(pixels))
    return np.asarray(_square(image, size_px), np.uint8)


def _plain_pixels(raw: RawImage, size_px: int) -> NDArray[np.uint8] | None:
    """The pixels of arrays, plain PPMs and bare JPEGs, which are upright and need no Pillow; None for anything else."""
    if not isinstance(raw, bytes):
        return raw
    pixels = pixels_of_ppm(raw)
    return pixels_of_jpeg(raw, size_px) if pixels is None else pixels


def _corner(width: int, height: int, size_px: int) -> tuple[int, int] | None:
    """The left and top of the centre square if the image need not be scaled; None otherwise."""
    # where the square starts on whole pixels, ImageOps.fit would give the same pixels, more slowly
    left, top = width - size_px, height - size_px  # twice the margins
    return (left // 2, top // 2) if min(left, top) == 0 and left % 2 == top % 2 == 0 else None


def _square(image: Image.Image, size_px: int) -> Image.Image:
    corner = _corner(*image.size, size_px)
    if corner is None:
        return ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR)
    left, top = corner
    return image.crop((left, top, left + size_px, top + size_px))


def open_image(raw: RawImage, *, draft_px: int | None = None) -> Image.Image:
    """Decode, turn upright and convert to RGB.

    Args:
        raw: an encoded image, or (H, W, 3) uint8.
        draft_px: a JPEG may be decoded at a reduced scale, with no side below this.

    Raises:
        UndecodableError: if the bytes are not a complete image.
    """
    if not isinstance(raw, bytes):
        return Image.fromarray(raw)
    if not raw:
        raise UndecodableError("it is empty")
    try:
        with quietly():
            try:
                image = _decoded(raw, draft_px)
            except ValueError:
                # Pillow refuses a PNG with more than 1 MiB of zipped text or colour profile, such as the history of an editor.
                if not raw.startswith(_PNG):
                    raise
                image = _decoded(_without_text(raw), draft_px)
            return in_rgb(image)
    except UndecodableError:
        raise
    except BROKEN as error:
        raise UndecodableError(_reason(error)) from None


def _decoded(raw: bytes, draft_px: int | None) -> Image.Image:
    image = opened(raw)
    kind = image.format
    if draft_px is not None:
        image.draft("RGB", (draft_px, draft_px))
    image = _upright(_loaded(image, raw))
    image.format = kind
    return image


def _without_text(raw: bytes) -> bytes:
    """A PNG without its chunks of text and colour profile; what follows a chunk that is cut off is left out."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(raw):
        size, name = int.from_bytes(raw[at : at + 4], "big"), raw[at + 4 : at + 8]
        if name not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(raw[at : at + 12 + size])
        at += 12 + size
    return b"".join(kept)


def _loaded(image: Image.Image, raw: bytes) -> Image.Image:
    """An opened image with its pixels loaded; a baseline JPEG goes through the faster decoder."""
    if image.format == "JPEG" and image.mode in ("RGB", "L") and not image.info.get("progressive"):
        pixels = scaled(raw, *image.size)
        if pixels is not None:
            loaded = Image.frombytes("RGB", image.size, pixels)
            loaded.info = image.info
            return loaded
    image.load()
    return image


def pixels_of_ppm(raw: bytes) -> NDArray[np.uint8] | None:
    """The (H, W, 3) uint8 pixels of an uncompressed image, a view of its bytes; None for any other bytes.

    Only a PPM with the header that Pillow and `unseen-ray prepare` write and exactly the bytes that it states is read.
    """
    head = _PPM_HEAD.match(raw)
    if head is None:
        return None
    width, height = int(head[1]), int(head[2])
    if len(raw) - head.end() != height * width * 3:
        return None
    return np.frombuffer(raw, np.uint8, offset=head.end()).reshape(height, width, 3)


def orientation_of(image: Image.Image) -> int:
    """An image's orientation from EXIF or XMP, 1 to 8; 1 (upright) if that is missing or damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except BROKEN:
        return 1
    return orientation if orientation in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation_of(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in _HOLD_ORIENTATION:  # so that no later reader turns it again
        turned.info.pop(name, None)
    return turned


def in_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, 16-bit grey by the range of the type, never by what one image holds: images must stay comparable.

    Raises:
        UndecodableError: for pixels whose type says nothing of the range that is used.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BIT_AS_I):
        what = "32-bit floats" if image.mode == "F" else "signed or 32-bit integers"
        raise UndecodableError(
            f"its pixels are {what}, whose values for black and white are not known. Convert the images to 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"Pillow cannot identify the image format as one of {', '.join(FORMATS)}"
    return f"{type(error).__name__}: {error}".rstrip(".")
