"""CIFAR-10 and CIFAR-100 as torchvision stores them on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unseen_ray.data.sources.cifar.batch import read_batch
from unseen_ray.data.sources.info import RawImage, SourceInfo, check_labels, fingerprint_of
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import Folder, sha256_of

__all__ = ["CifarSource"]

Split = Literal["train", "test"]

_LAYOUT: dict[str, dict[str, Any]] = {
    "cifar10": {
        "folder": "cifar-10-batches-py",
        "train": [f"data_batch_{number}" for number in range(1, 6)],
        "test": ["test_batch"],
        "names": ("batches.meta", b"label_names"),
        "labels": b"labels",
    },
    "cifar100": {
        "folder": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "names": ("meta", b"fine_label_names"),
        "labels": b"fine_labels",
    },
}


class CifarSource:
    """The Python version of CIFAR, under `root` as torchvision downloads it.

    Args:
        name: `cifar10` or `cifar100`.
        root: the folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        split: `train` or `test`.
        limit: use only the first `limit` samples; None for all.
    """

    def __init__(self, name: str, *, root: str = "data", split: Split = "train", limit: int | None = None) -> None:
        layout = _LAYOUT[name]
        self._name, self._split = name, split
        self._folder = Folder(f"{root.rstrip('/')}/{layout['folder']}")
        self._files = layout[split]
        parts = [self._batch(file, layout["labels"]) for file in self._files]
        self._classes = self._names(*layout["names"])
        self._counts = [len(labels) for _, labels in parts]
        pixels = np.concatenate([pixels for pixels, _ in parts])
        self._pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)[:limit]
        self._labels, self._num_classes = check_labels(
            np.concatenate([labels for _, labels in parts])[:limit],
            where=f"{name} {split}",
            num_classes=len(self._classes),
        )

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts."""
        return SourceInfo(
            name=f"{self._name} {self._split}",
            labels_N=self._labels,
            num_classes=self._num_classes,
            size_px=32,
            original_px=(32, 32),
            class_names=self._classes,
            fingerprint=fingerprint_of(
                self._name, self._split, sha256_of(self._pixels.tobytes()), self._labels.tobytes()
            ),
        )

    def keys(self, ids: Sequence[int]) -> list[str]:
        """File name and row."""
        starts = np.cumsum([0, *self._counts])
        files = np.searchsorted(starts, ids, side="right") - 1
        return [f"{self._files[file]}:{number - starts[file]}" for file, number in zip(files, ids, strict=True)]

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Pixels."""
        return ((int(number), self._pixels[number]) for number in ids)

    def _batch(self, file: str, label_field: bytes) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Pixels (n, 3072) and labels (n,) of one file."""
        batch = self._load(file)
        pixels, labels = self._get(batch, b"data", file), self._get(batch, label_field, file)
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.ndim != 2
            or pixels.shape[1] != 3072
        ):
            raise DataError(f"{self._folder.path(file)} is damaged: its data is not a uint8 array with 3072 columns.")
        if (
            not isinstance(labels, list)
            or len(labels) != len(pixels)
            or not all(type(label) is int for label in labels)
        ):
            raise DataError(
                f"{self._folder.path(file)} is damaged: it does not hold one integer label for each of {len(pixels)} images."
            )
        return pixels, np.array(labels, np.int64)

    def _names(self, file: str, field: bytes) -> tuple[str, ...]:
        names = self._get(self._load(file), field, file)
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
            raise DataError(f"{self._folder.path(file)} is damaged: {field.decode()} is not a list of names.")
        return tuple(name.decode("utf-8", "replace") for name in names)

    def _load(self, file: str) -> dict[bytes | str, Any]:
        path = self._folder.path(file)
        data = self._folder.read(file)
        if data is None:
            raise DataError(
                f"{path} is missing. Set `root` to the folder that holds {self._folder.root.rsplit('/', 1)[-1]}, "
                f"as torchvision.datasets downloads it: source: {{use: {self._name}, root: ...}}."
            )
        try:
            return read_batch(data)
        except ValueError as error:
            raise DataError(f"{path} is damaged or not a CIFAR file: {error}.") from None

    def _get(self, batch: dict[bytes | str, Any], field: bytes, file: str) -> Any:
        if field not in batch:
            raise DataError(f"{self._folder.path(file)} has no {field.decode()!r}; it has {sorted(map(str, batch))}.")
        return batch[field]
