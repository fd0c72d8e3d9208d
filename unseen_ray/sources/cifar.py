"""CIFAR-10 and CIFAR-100 as torchvision keeps them on disk.

Their files are Python pickles. They are read by an unpickler that builds numpy arrays and plain containers and refuses
to import anything else, so that a file from a stranger cannot run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from unseen_ray.errors import DataError
from unseen_ray.sources.info import RawImage, SourceInfo, check_labels, fingerprint_of
from unseen_ray.storage import Folder, sha256_of

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
_HARMLESS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class CifarSource:
    """The Python version of CIFAR, under `root` where torchvision's download puts it.

    Args:
        name: `cifar10` or `cifar100`.
        root: the folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        split: `train` or `test`.
        limit: the first so many samples; None for all.
    """

    def __init__(self, name: str, *, root: str = "data", split: Split = "train", limit: int | None = None) -> None:
        layout = _LAYOUT[name]
        self._name, self._split = name, split
        self._folder = Folder(f"{root.rstrip('/')}/{layout['folder']}")
        batches = [self._load(file) for file in layout[split]]
        meta = self._load(layout["names"][0])
        self._classes = tuple(text.decode() for text in self._get(meta, layout["names"][1], layout["names"][0]))
        self._counts = [
            len(self._get(b, layout["labels"], file)) for b, file in zip(batches, layout[split], strict=True)
        ]
        self._files = layout[split]
        pixels = [
            np.asarray(self._get(b, b"data", file), np.uint8) for b, file in zip(batches, self._files, strict=True)
        ]
        labels = np.concatenate([np.asarray(b[layout["labels"]], np.int64) for b in batches])
        self._pixels = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)[:limit]
        self._labels, self._num_classes = check_labels(
            labels[:limit], where=f"{name} {split}", num_classes=len(self._classes)
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

    def _load(self, file: str) -> dict[bytes, Any]:
        path = self._folder.path(file)
        data = self._folder.read(file)
        if data is None:
            raise DataError(
                f"{path} is missing. Set `root` to the folder that holds {self._folder.root.rsplit('/', 1)[-1]}, "
                f"as torchvision.datasets downloads it: source: {{use: {self._name}, root: ...}}."
            )
        try:
            content = _PlainUnpickler(data).load()
        except Exception as error:
            raise DataError(f"{path} is damaged or no CIFAR file: {type(error).__name__}: {error}.") from None
        if not isinstance(content, dict):
            raise DataError(f"{path} is no CIFAR file: it holds a {type(content).__name__}, not a dict.")
        return content

    def _get(self, batch: dict[bytes, Any], field: bytes, file: str) -> Any:
        if field not in batch:
            raise DataError(f"{self._folder.path(file)} has no {field.decode()!r}; it has {sorted(map(str, batch))}.")
        return batch[field]


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        import io

        super().__init__(io.BytesIO(data), encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)
