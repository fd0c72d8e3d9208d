"""Opens encoded images: the one place where Pillow reads bytes of a user's data.

Images of strangers are read within limits: the formats of `FORMATS`, `MOST_PIXELS` and `MOST_SCANS`; and of the text in a PNG no
more than Pillow allows (see `decode.open_image`).
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

__all__ = ["BROKEN", "FORMATS", "MOST_PIXELS", "MOST_SCANS", "UndecodableError", "opened", "quietly"]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "JPEG2000", "TGA", "PPM")
"""What is read; for some others, such as EPS, Pillow would start a program."""
MOST_PIXELS = 178_956_970
"""Of one image: as many as Pillow reads by default, half a gigabyte of RGB."""
MOST_SCANS = 50
"""Of one JPEG: encoders write about ten, and each takes the time of decoding the whole image."""
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for bytes that contradict their header."""
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"
_ALONE = re.compile(rb"[\x01\xd0-\xd8]")  # markers without a length
_MARKER = re.compile(rb"\xff+([^\x00\xff])")

_quiet_lock = threading.Lock()
_quiet: list[warnings.catch_warnings[None]] = []
_users = 0


class UndecodableError(ValueError):
    """An image cannot be decoded; the message is the decoder's reason."""


def opened(raw: bytes) -> Image.Image:
    """An image whose header is read, and whose pixels are not.

    Raises:
        UndecodableError: if it is beyond the limits.
        Exception: any of `BROKEN`, if the bytes are no image of a format that is read.
    """
    if raw.startswith(_JPEG) and _has_many_scans(raw):
        raise UndecodableError(f"it is a JPEG with more than {MOST_SCANS} scans. Encode it again")
    try:
        image: Image.Image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UndecodableError(_TOO_LARGE) from None
    if image.width * image.height > MOST_PIXELS:
        raise UndecodableError(_TOO_LARGE)
    return image


_TOO_LARGE = f"it has more than {MOST_PIXELS} pixels. Scale it down"


def _has_many_scans(raw: bytes) -> bool:
    if raw.count(_SCAN) <= MOST_SCANS:
        return False
    # the same two bytes also occur by chance, in a preview or in what is appended to an image
    scans, found = 0, _MARKER.search(raw, len(_JPEG))
    while found is not None and found[1] != b"\xd9" and scans <= MOST_SCANS:
        at = found.end()
        if not _ALONE.match(found[1]):
            scans += found[1] == _SCAN[1:]
            at += int.from_bytes(raw[at : at + 2], "big")
        found = _MARKER.search(raw, at)
    return scans > MOST_SCANS


@contextmanager
def quietly() -> Iterator[None]:
    """Silence warnings in all threads, since Python's filters belong to the process."""
    # `warnings.catch_warnings` alone is not enough: threads that leave it in another order than they entered restore
    # the wrong filters, and the process stays without warnings for good
    global _users
    with _quiet_lock:
        if _users == 0:
            filters = warnings.catch_warnings()
            filters.__enter__()
            warnings.simplefilter("ignore")
            _quiet.append(filters)
        _users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _users -= 1
            if _users == 0:
                _quiet.pop().__exit__(None, None, None)
