"""Images in one folder per class: `root/cat/001.jpg`, the layout of torchvision's ImageFolder and of ImageNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

import numpy as np

from unseen_ray.data.sources.info import Encoded, RawImage, SourceInfo, fingerprint_of, probe_size
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.retry import retried_inline

__all__ = ["IMAGE_ENDINGS", "FolderSource"]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "dev"}
_PROBED = 64


class FolderSource:
    """A class-per-folder tree, local or remote.

    The classes are the folders directly under `path`, in the order of their names. Images may lie below them at any
    depth; they are ordered by their relative path, which is their key. Hidden files are ignored.

    Args:
        path: local path or URI of the root.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` samples; None for all.
        name: its name in messages; None for the path.
    """

    def __init__(
        self, *, path: str, size: int | None = None, limit: int | None = None, name: str | None = None
    ) -> None:
        self._path, self._size, self._limit = path, size, limit
        self._name = name or path
        self._fs, self._root = filesystem_of(path)
        self._files, self._sizes, self._classes = self._list()

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts, from the names alone."""
        number_of = {name: number for number, name in enumerate(self._classes)}
        labels = np.array([number_of[key.split("/", 1)[0]] for key in self._files], np.int64)
        probed = np.unique(np.linspace(0, len(labels) - 1, _PROBED).astype(int))
        size_px, original_px = probe_size((raw for _, raw in self.read(list(probed))), self._size)
        return SourceInfo(
            name=self._name,
            labels_N=labels,
            num_classes=len(self._classes),
            size_px=size_px,
            original_px=original_px,
            class_names=tuple(self._classes),
            fingerprint=fingerprint_of("folder", self._files, self._sizes, self._classes),
        )

    def encoded(self) -> Encoded:
        """The mean size of the files."""
        return Encoded(bytes_each=float(np.mean(self._sizes)), how="the mean of all files' sizes")

    def keys(self, ids: Sequence[int]) -> list[str]:
        """Paths relative to the root."""
        return [self._files[number] for number in ids]

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Encoded images."""
        for number in ids:
            try:
                data = read_file(self._fs, f"{self._root}/{self._files[number]}")
            except OSError as error:
                raise DataError(f"{self._name}/{self._files[number]} cannot be read: {error}.") from None
            yield int(number), data

    def _list(self) -> tuple[list[str], list[int], list[str]]:
        from pyarrow.fs import FileSelector, FileType

        try:
            selector = FileSelector(self._root, recursive=True)
            entries = retried_inline(self._path, lambda: self._fs.get_file_info(selector))
        except OSError as error:
            raise DataError(f"source {self._path} cannot be listed: {error}.") from None
        relative = {entry.path[len(self._root.rstrip("/")) + 1 :]: entry for entry in entries}
        visible = {
            key: entry for key, entry in relative.items() if not any(part.startswith(".") for part in key.split("/"))
        }
        classes = {
            key.split("/", 1)[0] for key, entry in visible.items() if "/" in key or entry.type == FileType.Directory
        }
        images = sorted(
            key for key, entry in visible.items() if entry.type == FileType.File and key.lower().endswith(IMAGE_ENDINGS)
        )
        self._check(images, classes)
        files = list(islice((key for key in images if "/" in key), self._limit))
        return files, [int(visible[key].size) for key in files], sorted(classes)

    def _check(self, images: list[str], classes: set[str]) -> None:
        nested = [key for key in images if "/" in key]
        if not nested:
            loose = f"; {len(images)} images lie directly in it, without a class" if images else ""
            raise DataError(
                f"source {self._path} holds no images in class folders{loose}. Expected {self._path.rstrip('/')}/<class>/<image> "
                f"with one of {' '.join(IMAGE_ENDINGS)}, or Parquet files (*.parquet)."
            )
        if classes <= _SPLITS and all(key.count("/") > 1 for key in nested):
            train = next((name for name in sorted(classes) if name.startswith("train")), sorted(classes)[0])
            raise DataError(
                f"source {self._path} holds the splits {', '.join(sorted(classes))}, not classes. "
                f"Set source: {self._path}/{train} (and test: the split to measure on)."
            )
