"""No warnings of what Pillow finds odd in an image, such as damaged EXIF: it is decoded, or it is not."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quietly"]

_quiet_lock = threading.Lock()
_quiet: list[warnings.catch_warnings[None]] = []
_asked = 0


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings, whichever thread they come from; Python's own filters are the whole process's.

    `warnings.catch_warnings` alone, entered by several threads, leaves the process without warnings for good.
    """
    global _asked
    with _quiet_lock:
        if _asked == 0:
            filters = warnings.catch_warnings()
            filters.__enter__()
            warnings.simplefilter("ignore")
            _quiet.append(filters)
        _asked += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _asked -= 1
            if _asked == 0:
                _quiet.pop().__exit__(None, None, None)
