"""Silences Pillow's warnings about oddities such as damaged EXIF: an image decodes, or it does not."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quietly"]

_quiet_lock = threading.Lock()
_quiet: list[warnings.catch_warnings[None]] = []
_users = 0


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
