"""Decodes JPEGs with simplejpeg, faster than Pillow and to the same bits; unusual files are left to Pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from simplejpeg import decode_jpeg, decode_jpeg_header

from unseen_ray.data.images.opening import MOST_SCANS

__all__ = ["pixels_of_jpeg", "scaled"]

_JFIF = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
_JFIF_END = 20
_QUANTISERS, _CODES, _RESTARTS, _COMMENT, _BASELINE = b"\xff\xdb", b"\xff\xc4", b"\xff\xdd", b"\xff\xfe", b"\xff\xc0"
_KNOWN = frozenset({_QUANTISERS, _CODES, _RESTARTS, _COMMENT, _BASELINE})
_PROFILE, _PROFILE_NAME, _PROFILE_LEAST = b"\xff\xe2", b"ICC_PROFILE\x00", 16
_SCAN = b"\xff\xda"
_COLOURS = ("YCbCr", "RGB", "Gray")
_MOST_PX = 1 << 26  # Pillow may refuse a larger image as a decompression bomb
_LEAST_SIDE = 8  # if the longer side is shorter, two of libjpeg's scales (eighths) can give the same size


def pixels_of_jpeg(raw: bytes, least_px: int) -> NDArray[np.uint8] | None:
    """The (H, W, 3) uint8 pixels of a baseline JPEG without an orientation; None for any other bytes.

    The image is decoded at the scale that Pillow's `draft` picks: the smallest of 1/8, 1/4, 1/2 and 1 with no side below `least_px`.
    """
    if not _is_bare(raw):
        return None
    try:
        height, width, colours, _ = decode_jpeg_header(raw)
    except ValueError:
        return None
    if colours not in _COLOURS or height * width > _MOST_PX:
        return None
    part = next((part for part in (8, 4, 2) if min(width, height) >= part * least_px), 1)
    return scaled(raw, -(-width // part), -(-height // part))


def scaled(raw: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """The (height, width, 3) uint8 pixels of a JPEG, at the scale of libjpeg that gives exactly this size.

    None if the decoder so much as warns, for example about a truncated file: Pillow decides what counts as damaged.
    """
    if max(width, height) < _LEAST_SIDE:
        return None
    try:
        pixels: NDArray[np.uint8] = decode_jpeg(raw, min_width=width, min_height=height)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _is_bare(raw: bytes) -> bool:
    """Whether a JPEG has few scans, and no segment before them that Pillow would interpret, except for a colour profile."""
    if not raw.startswith(_JFIF):
        return False
    place = _JFIF_END
    while True:
        kind, length = raw[place : place + 2], int.from_bytes(raw[place + 2 : place + 4], "big")
        if kind == _PROFILE:
            if length < _PROFILE_LEAST or not raw.startswith(_PROFILE_NAME, place + 4):
                return False
        elif kind not in _KNOWN:
            return kind == _SCAN and raw.count(_SCAN) <= MOST_SCANS
        place += 2 + length
