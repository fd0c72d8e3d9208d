"""Measures how fast a folder's storage writes and reads, with temporary files."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from unseen_ray.storage.filesystem import Folder, absolute_path, is_uri

__all__ = ["StorageSpeed", "storage_speed"]

_BYTES = 32 << 20
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSpeed:
    """Bytes per second of one writer and one reader: the median over three files of 32 MiB."""

    write: float
    read: float


def storage_speed(root: str) -> StorageSpeed:
    """Write files into a folder, read them back and remove them, along with any folder created for them.

    Raises:
        StorageError: if the folder cannot be written or read.
    """
    data = os.urandom(_BYTES)
    writes, reads = [], []
    with _removes_new_folders(root):
        folder = Folder(root)
        for _ in range(_ROUNDS):
            name = f"speed-{uuid.uuid4().hex[:8]}.tmp"
            try:
                began = time.perf_counter()
                folder.write(name, data, durable=True)
                written = time.perf_counter()
                _drop_page_cache(folder.path(name))
                begun = time.perf_counter()
                folder.read_whole(name)
                reads.append(time.perf_counter() - begun)
                writes.append(written - began)
            finally:
                folder.delete(name)
    return StorageSpeed(write=_BYTES / statistics.median(writes), read=_BYTES / statistics.median(reads))


@contextlib.contextmanager
def _removes_new_folders(root: str) -> Iterator[None]:
    """On exit, remove the empty folders on the way to `root` that did not exist before."""
    new: list[str] = []
    path = "" if is_uri(root) else absolute_path(root)
    while path and not os.path.exists(path):
        new.append(path)
        path = os.path.dirname(path)
    try:
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _drop_page_cache(path: str) -> None:
    """Drop a local file from the page cache, so that the next read measures the disk."""
    if is_uri(path) or not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
