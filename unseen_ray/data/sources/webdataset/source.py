"""WebDataset tars as a source: each image is read by its place, so that samples can be drawn in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.data.listing.content import sample_of_bytes, times_of
from unseen_ray.data.listing.shard_files import find_shards
from unseen_ray.data.sources.info import Encoded, SourceInfo, check_labels, fingerprint_of, probe_size
from unseen_ray.data.sources.webdataset.tar_index import Columns, TarIndex, index_tar
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import retried_inline

__all__ = ["WebDatasetSource"]

_AT_ONCE = 8
_PROBED = 64
_NAMED = 3

_T = TypeVar("_T")


class WebDatasetSource:
    """Tars whose samples are files side by side, such as `000123.jpg` and `000123.cls`.

    Ids number the samples of all tars, in the order of the tars' names. Keys are WebDataset's (`000123`); where two tars have the same
    key, all keys begin with the tar's name.

    Args:
        path: a tar, a pattern such as `train-{000..146}.tar`, or a folder of tars; local or a URI.
        image: the ending of images without its first dot, or several separated by `;`; None for all that Pillow reads.
        label: `cls` or `txt` for a file of that ending, or `json:key` for a value of the JSON file; a dot in the key leads inwards.
        classes: a text file with the name of a class in each line; None if labels are names themselves, or have none.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` samples; None for all.
    """

    def __init__(
        self,
        *,
        path: str,
        image: str | None = None,
        label: str = "cls",
        classes: str | None = None,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        if label.partition(":")[0] == "json" and not label.partition(":")[2]:
            raise ConfigError(
                f"label={label} names no value of the JSON file. Write label: 'json:key', such as json:label."
            )
        self._path, self._size = path, size
        found = find_shards(path, ".tar")
        self.fs = found.fs
        self.columns = Columns(image, label)
        self.names, self.paths = found.names, found.paths
        self._stats, self._note = found.stats, found.note
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            indices = list(pool.map(self._index, self.paths, self.names))
        self._starts = np.cumsum([0, *(len(index.keys) for index in indices)])
        self._count = int(self._starts[-1]) if limit is None else min(limit, int(self._starts[-1]))
        self._offsets = _joined([index.offsets for index in indices])
        self._image_bytes = _joined([index.sizes for index in indices])
        keys = [key for index in indices for key in index.keys]
        self._are_first = all(index.is_first for index in indices)
        self._with_tar = len(set(keys)) < len(keys)
        self._keys = pa.array(_with_tars(indices, self.names) if self._with_tar else keys, pa.string())
        self._labels, self._num_classes, self._classes = self._numbered(indices, classes)

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts."""
        probed = np.unique(np.linspace(0, self._count - 1, _PROBED).astype(int))
        size_px, original_px = probe_size((raw for _, raw in self.read(probed.tolist())), self._size)
        sizes = [stat.size for stat in self._stats]
        sample = sample_of_bytes(self.fs, self.paths, sizes)
        return SourceInfo(
            name=self._path,
            labels_N=self._labels,
            num_classes=self._num_classes,
            size_px=size_px,
            original_px=original_px,
            class_names=self._classes,
            fingerprint=fingerprint_of(
                "webdataset", self.names, sizes, self._keys[: self._count].to_pylist(), self._labels.tobytes()
            ),
            # Which of several images of a sample is used, the fingerprint does not tell.
            sample=sample if self._are_first else fingerprint_of(sample, self._offsets.tobytes()),
            times=times_of(self._stats),
            note=self._note,
        )

    def encoded(self) -> Encoded:
        """The mean size of the images."""
        return Encoded(bytes_each=float(self._image_bytes[: self._count].mean()), how="the mean of all images' sizes")

    def keys(self, ids: Sequence[int]) -> list[str]:
        """WebDataset's keys."""
        return list(self.key_column(np.asarray(ids, np.int64)).to_pylist())

    def key_column(self, ids_M: IdArray) -> pa.Array:
        """The same for (M,) ids as Arrow strings."""
        return self._keys.take(pa.array(ids_M))

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Encoded images."""
        tars = self.tars_of(np.asarray(ids, np.int64))
        opened: tuple[int, Any] = (-1, None)
        try:
            for number, tar in zip(ids, tars.tolist(), strict=True):
                if opened[0] != tar:
                    _close(opened[1])
                    opened = (tar, self._open(tar))
                yield int(number), self._read(opened[1], tar, int(number))
        finally:
            _close(opened[1])

    def keys_in_tar(self, ids_M: IdArray) -> set[str]:
        """WebDataset's keys of samples of one tar, never with the tar before them."""
        keys = self.keys(ids_M.tolist())
        if not self._with_tar:
            return set(keys)
        start = len(self.names[int(self.tars_of(ids_M[:1])[0])]) + 1
        return {key[start:] for key in keys}

    def tars_of(self, ids_M: IdArray) -> IntArray:
        """(M,) which tar each sample lies in."""
        return np.searchsorted(self._starts, ids_M, side="right") - 1

    def _open(self, tar: int) -> Any:
        path = self.paths[tar]
        return self._of_storage(path, self.names[tar], lambda: self.fs.open_input_file(path))

    def _read(self, file: Any, tar: int, number: int) -> bytes:
        size, offset = int(self._image_bytes[number]), int(self._offsets[number])
        data = bytes(self._of_storage(self.paths[tar], self.names[tar], lambda: file.read_at(size, offset)))
        if len(data) < size:
            raise DataError(
                f"{self.names[tar]} of source {self._path} is truncated: {self.keys([number])[0]} is incomplete."
            )
        return data

    def _index(self, path: str, name: str) -> TarIndex:
        where = f"{name} of source {self._path}"
        return self._of_storage(path, name, lambda: index_tar(self.fs, path, self.columns, name=where))

    def _of_storage(self, path: str, name: str, do: Callable[[], _T]) -> _T:
        """What storage answers, asked again after a failure that may pass; DataError if it fails for good."""
        try:
            return retried_inline(path, do, self.fs)
        except OSError as error:
            raise DataError(f"{name} of source {self._path} cannot be read: {reason_of(error)}.") from None

    def _numbered(self, indices: Sequence[TarIndex], classes: str | None) -> tuple[IntArray, int, tuple[str, ...]]:
        labels = [label for index in indices for label in index.labels]
        names = _lines(classes) if classes is not None else []
        texts = {label for label in labels if isinstance(label, str)}
        if texts and len(texts) < len(set(labels)):
            some = sorted(texts)[:_NAMED]
            raise DataError(
                f"labels of source {self._path} are numbers and text, such as {', '.join(some)}. Write one of the two."
            )
        if texts:
            names = names or sorted(texts)
            if unknown := sorted(texts - set(names)):
                raise DataError(f"source {self._path} has the label {unknown[0]!r}, which {classes} does not name.")
            number_of = {name: number for number, name in enumerate(names)}
            labels = [number_of[str(label)] for label in labels]
        checked, num_classes = check_labels(
            np.array(labels[: self._count], np.int64), where=self._path, num_classes=len(names) or None
        )
        return checked, num_classes, tuple(names)


def _joined(lists: Sequence[Sequence[int]]) -> IntArray:
    return np.concatenate([np.array(values, np.int64) for values in lists])


def _with_tars(indices: Sequence[TarIndex], names: Sequence[str]) -> list[str]:
    """Keys with the tar before them; DataError if a tar holds a key twice."""
    for index, name in zip(indices, names, strict=True):
        seen: set[str] = set()
        for key in index.keys:
            if key in seen:
                raise DataError(f"{name} holds the key {key} twice, in two places. Give each sample a unique name.")
            seen.add(key)
    return [f"{name}/{key}" for index, name in zip(indices, names, strict=True) for key in index.keys]


def _lines(path: str) -> list[str]:
    fs, place = filesystem_of(path)
    try:
        names = [line.strip() for line in read_file(fs, place).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"classes={path} cannot be read: {reason_of(error)}. Give a text file with one class name in each line."
        ) from None
    if not names or len(set(names)) < len(names):
        raise DataError(f"classes={path} names {'a class twice' if names else 'no class'}. Give one name in each line.")
    return names


def _close(file: Any) -> None:
    if file is not None:
        file.close()
