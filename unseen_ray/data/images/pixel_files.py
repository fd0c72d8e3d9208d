"""Decoded pixels in files, for sources larger than memory: each image is decoded only once.

FOLDER/FINGERPRINT-64px/00000.pixels    (rows, 64, 64, 3) uint8, image after image, without a header
FOLDER/FINGERPRINT-64px/00000.json      written after it: its rows, its SHA-256, and the samples that cannot be decoded
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.images.pixel_store import BadSample, chunks_of, decode_range
from unseen_ray.data.sources.info import Source
from unseen_ray.errors import StorageError
from unseen_ray.storage.fence import Fence
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import retried
from unseen_ray.storage.tables import sha256_of_file

__all__ = ["FilePixelStore", "PixelFiles", "write_file", "write_files"]

_FILE_BYTES = 64 << 20
_LEAST_FILES = 8  # so that several workers can decode a small source
# A batch at random reads from most files of a large source: they stay open as far as the process may open files.
_OPEN_FILES = max(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
_WANTED_PER_S = 10_000  # images: more than a GPU trains on
_MOST_THREADS = 64
_REMEMBERED = 16  # reads whose time is kept, one a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFiles:
    """Where the decoded pixels of a source are stored, and which rows are in which file.

    Attributes:
        folder: local path or URI, on storage that every worker shares.
        num_samples: rows of the source.
        size_px: height and width of the images.
        fence: of the run whose folder holds them; None where they outlive runs.
    """

    folder: str
    num_samples: int
    size_px: int
    fence: Fence | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.size_px * self.size_px * 3

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        return self.num_samples * self.image_bytes

    @property
    def rows_each(self) -> int:
        """Images per file; the last file may have fewer."""
        most = max(_FILE_BYTES // self.image_bytes, 1)
        return min(most, -(-self.num_samples // _LEAST_FILES))

    def ranges(self) -> list[tuple[int, int]]:
        """Rows [start, stop) of each file."""
        return chunks_of(self.num_samples, self.rows_each)

    def bytes_of(self, place: int) -> int:
        """Bytes of a file."""
        return min(self.rows_each, self.num_samples - place * self.rows_each) * self.image_bytes

    def name(self, place: int) -> str:
        """The file name of a range."""
        return f"{place:05d}.pixels"

    def finished(self, place: int) -> list[BadSample] | None:
        """The bad samples of a complete file; None if it does not exist or is damaged."""
        folder = Folder(self.folder)
        head = folder.read(_head(place))
        try:
            receipt = json.loads(head or b"{}")
            bad = [BadSample(**sample) for sample in receipt["bad"]]
            digest = receipt["sha256"]
        except (ValueError, KeyError, TypeError):
            return None
        return bad if digest == sha256_of_file(folder, self.name(place)) else None


def write_file(files: PixelFiles, source: Source, start: int) -> list[BadSample]:
    """Decode the rows of one file and write it, unless it is already complete.

    Args:
        files: the layout of the files.
        source: the opened source.
        start: the file's first row.

    Returns:
        The samples that cannot be decoded; their pixels are black.

    Raises:
        StorageError: if the file cannot be written.
    """
    place, folder = start // files.rows_each, Folder(files.folder, files.fence)
    known = files.finished(place)
    if known is not None:
        return known
    stop = min(start + files.rows_each, files.num_samples)
    pixels = np.empty((stop - start, files.size_px, files.size_px, 3), np.uint8)
    bad: list[BadSample] = []
    for first, last in chunks_of(stop - start):
        pixels[first:last], failed = decode_range(source, np.arange(start + first, start + last), files.size_px)
        bad += failed
    digest = folder.write(files.name(place), pixels.data.cast("B"))
    head = {"rows": [start, stop], "sha256": digest, "bad": [asdict(sample) for sample in bad]}
    folder.write(_head(place), json.dumps(head).encode())  # last: a pixel file without it does not count
    return bad


def write_files(files: PixelFiles, source: Source) -> list[BadSample]:
    """Write what is missing of the files; the samples that cannot be decoded, by id. See `write_file`."""
    ranges = files.ranges()
    # Other processes may write the same files: each starts elsewhere, and finds theirs.
    first = os.getpid() % len(ranges)
    bad = [sample for start, _ in ranges[first:] + ranges[:first] for sample in write_file(files, source, start)]
    return sorted(bad, key=lambda sample: sample.id)


@dataclass(slots=True, eq=False)
class FilePixelStore:
    """Pixels read from files on demand; a read takes no more memory than its result.

    A file that something else has changed is refused. It has another size, or is newer than its receipt, which was written after it:
    then its SHA-256 decides. A local file is looked at again after each read, one on an object store where it is opened.
    """

    files: PixelFiles
    _opened: OrderedDict[int, _Opened] = field(init=False, default_factory=OrderedDict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _latencies: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=_REMEMBERED))
    _pool: ThreadPoolExecutor = field(
        init=False, default_factory=lambda: ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="read")
    )

    def __len__(self) -> int:
        return self.files.num_samples

    @property
    def size_px(self) -> int:
        """Height and width."""
        return self.files.size_px

    def images(self, ids_B: IdArray, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """(B, H, W, 3) uint8 in the order of the ids; StorageError if a file is missing or was changed.

        So many threads read at once that the latency of the storage alone would let `_WANTED_PER_S` images a second through.
        """
        # Neighbours in a file become one read, if they are neighbours in the batch.
        order = np.argsort(ids_B, kind="stable")
        ids = ids_B[order]
        pixels = np.empty((len(ids), self.size_px, self.size_px, 3), np.uint8) if out is None else out
        runs = _runs(ids, order, self.files.rows_each)
        reads = [(int(ids[first]), pixels[order[first] : order[first] + last - first]) for first, last in runs]
        for one in reads[:1]:
            began = time.perf_counter()
            self._read(*one)
            self._latencies.append(time.perf_counter() - began)
        self._read_at_once(reads[1:], len(ids))
        return pixels

    def _read_at_once(self, reads: list[tuple[int, NDArray[np.uint8]]], images: int) -> None:
        def read_each(some: list[tuple[int, NDArray[np.uint8]]]) -> None:
            for one in some:
                self._read(*one)

        seconds = len(reads) * statistics.median(self._latencies or [0])
        threads = min(math.ceil(seconds * _WANTED_PER_S / max(images, 1)), _MOST_THREADS)
        if threads <= 1:
            read_each(reads)
            return
        each = -(-len(reads) // threads)
        for _ in self._pool.map(read_each, [reads[start : start + each] for start in range(0, len(reads), each)]):
            pass

    def _read(self, first: int, into: NDArray[np.uint8]) -> None:
        place, row = divmod(first, self.files.rows_each)
        with self._lock:
            opened = self._opened.get(place)
            if opened is None:
                opened = self._opened[place] = _Opened(self.files, place)
            self._opened.move_to_end(place)
            if len(self._opened) > _OPEN_FILES:
                self._opened.popitem(last=False)  # closed by its __del__, once no other thread reads from it
        opened.read(row * self.files.image_bytes, into.data.cast("B"))


class _Opened:
    """An open file, local or remote, that several threads may read at once."""

    def __init__(self, files: PixelFiles, place: int) -> None:
        self._files, self._place = files, place
        self._path = Folder(files.folder).path(files.name(place))
        self._descriptor: int | None = None
        fs, inner = filesystem_of(self._path)
        try:
            if fs.type_name == "local":
                self._descriptor = os.open(inner, os.O_RDONLY | os.O_CLOEXEC)
            else:
                self._stream = retried(self._path, lambda: fs.open_input_file(inner))
            self._stamp = self._stamp_now()
            self._check()
        except OSError as error:
            raise self._failed(reason_of(error)) from None

    def read(self, offset: int, into: memoryview) -> None:
        """Fill a buffer from `offset` on."""
        done = 0
        while done < len(into):
            try:
                done += self._some(offset + done, into[done:])
            except OSError as error:
                raise self._failed(reason_of(error)) from None
        if (now := self._stamp_now()) != self._stamp:
            self._stamp = now
            self._verify()

    def _check(self) -> None:
        """StorageError if the file is not what was decoded, as far as its size and its time tell."""
        fs, inner = filesystem_of(self._path)
        _, receipt = filesystem_of(Folder(self._files.folder).path(_head(self._place)))
        found, written = retried(self._path, lambda: fs.get_file_info([inner, receipt]))
        if found.size != self._files.bytes_of(self._place):
            raise self._failed(f"it has {found.size} bytes, and {self._files.bytes_of(self._place)} were written")
        is_older = found.mtime_ns is not None and written.mtime_ns is not None and found.mtime_ns <= written.mtime_ns
        if not is_older:
            self._verify()

    def _verify(self) -> None:
        """StorageError if the SHA-256 of the file is not that of its receipt."""
        if self._files.finished(self._place) is None:
            raise self._failed("something changed it after its images were decoded")

    def _stamp_now(self) -> tuple[int, int] | None:
        """Size and time of change of a local file; None for one elsewhere."""
        if self._descriptor is None:
            return None
        now = os.fstat(self._descriptor)
        return now.st_size, now.st_mtime_ns

    def _some(self, offset: int, into: memoryview) -> int:
        if self._descriptor is not None:
            count = os.preadv(self._descriptor, [into], offset)
        else:
            data = retried(self._path, lambda: self._stream.read_at(len(into), offset))
            count = len(data)
            into[:count] = data
        if not count:
            raise self._failed("it is too short")
        return count

    def _failed(self, reason: str) -> StorageError:
        return StorageError(
            f"the decoded pixels in {self._path} cannot be read: {reason}. Is it on storage that every node shares? Run the same "
            "line again to decode what is missing."
        )

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _runs(ids: IdArray, order: IdArray, rows_each: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of sorted ids that are consecutive rows of one file, and consecutive in the batch: `order` sorted them."""
    apart = (np.diff(ids) != 1) | (np.diff(order) != 1) | (ids[1:] // rows_each != ids[:-1] // rows_each)
    breaks = np.flatnonzero(apart) + 1
    ends = [0, *breaks.tolist(), len(ids)]
    yield from ((first, last) for first, last in itertools.pairwise(ends) if last > first)


def _head(place: int) -> str:
    return f"{place:05d}.json"
