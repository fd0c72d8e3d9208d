"""Which files are images that Pillow can read: by their ending, or by their first bytes where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

__all__ = ["HEAD_BYTES", "IMAGE_ENDINGS", "ending_of", "ending_of_head", "images_among", "is_image_head"]

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".jp2", ".j2k", ".tga",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
HEAD_BYTES = 16
_ENDINGS = {
    rb"\xff\xd8\xff": ".jpg",
    rb"\x89PNG\r\n\x1a\n": ".png",
    rb"GIF8[79]a": ".gif",
    rb"BM": ".bmp",
    rb"II\*\0|MM\0\*": ".tif",
    rb"RIFF....WEBP": ".webp",
    rb"....ftypavi[fs]": ".avif",
    rb"P[1-6]\s": ".ppm",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": ".jp2",
}
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,7}$")
_LOOKED_AT = 64


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty if it has none, as `img.0001` has not."""
    found = _ENDING.search(name.rpartition("/")[2].lower())
    return found[0] if found else ""


def is_image_head(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an image."""
    return bool(ending_of_head(head))


def ending_of_head(head: bytes) -> str:
    """The ending that a file with these first bytes should have; empty if it is no image."""
    return next((ending for start, ending in _ENDINGS.items() if re.match(start, head, re.DOTALL)), "")


def images_among(names: Iterable[str], read_head: Callable[[str], bytes]) -> set[str]:
    """Which files are images.

    Args:
        names: of the files.
        read_head: reads the first `HEAD_BYTES` of one; asked only for files without an ending. Where 64 of them, spread over all,
            are images, the others count as images too: a request for each of a million objects would take hours.
    """
    found, unknown = set(), []
    for name in names:
        if (ending := ending_of(name)) in IMAGE_ENDINGS:
            found.add(name)
        elif not ending:
            unknown.append(name)
    spread = {unknown[place] for place in np.linspace(0, len(unknown) - 1, min(len(unknown), _LOOKED_AT)).astype(int)}
    known = {name for name in spread if is_image_head(read_head(name))}
    if len(unknown) > len(spread):
        rest = [name for name in unknown if name not in spread]
        known |= set(rest) if known == spread else {name for name in rest if is_image_head(read_head(name))}
    return found | known
