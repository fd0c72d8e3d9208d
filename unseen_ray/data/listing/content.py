"""Notices that the content of files changed while their names and sizes stayed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from unseen_ray.errors import DataError
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import retried_inline

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from unseen_ray.data.listing.files import FileStat

__all__ = ["sample_of_bytes", "times_of"]

_RANGES = 64
_RANGE_BYTES = 4096
_AT_ONCE = 16


def times_of(stats: Iterable[FileStat]) -> str:
    """SHA-256 of when files were last modified; empty where the file system does not say."""
    times = [stat.mtime_ns for stat in stats]
    return "" if None in times else hashlib.sha256(repr(times).encode()).hexdigest()


def sample_of_bytes(fs: FileSystem, paths: Sequence[str], sizes: Sequence[int]) -> str:
    """SHA-256 of 64 ranges of 4 KiB, spread evenly over all bytes of some files: over all of them, if they are that small.

    Raises:
        DataError: if a file cannot be read.
    """
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    places = np.unique(np.linspace(0, max(0, total - _RANGE_BYTES), _RANGES).astype(np.int64))
    files = np.searchsorted(ends, places, side="right")
    starts = places - (ends - np.asarray(sizes))[files] if total else places
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # of an object store, each range takes a request
        ranges = pool.map(lambda at: _range(fs, paths[at[0]], at[1]), zip(files.tolist(), starts.tolist(), strict=True))
        return hashlib.sha256(b"".join(ranges)).hexdigest() if total else ""


def _range(fs: FileSystem, path: str, start: int) -> bytes:
    def read() -> bytes:
        with fs.open_input_file(path) as file:
            return bytes(file.read_at(_RANGE_BYTES, start))

    try:
        return retried_inline(path, read, fs)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}.") from None
