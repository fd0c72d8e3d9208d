"""Images in one folder per class: `root/cat/001.jpg`, the layout of torchvision's ImageFolder and of ImageNet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from unseen_ray.data.listing.class_tree import class_tree_of
from unseen_ray.data.listing.content import times_of
from unseen_ray.data.listing.files import list_folder
from unseen_ray.data.listing.image_files import HEAD_BYTES, images_among
from unseen_ray.data.sources.info import Encoded, SourceInfo, fingerprint_of, probe_size
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import retried_inline

__all__ = ["FolderSource"]

_PROBED = 64


class FolderSource:
    """A class-per-folder tree, local or remote.

    The classes are the folders directly under `path`, in the order of their names. Images may lie below them at any
    depth; they are ordered by their relative path, which is their key. Hidden files are ignored. What else is passed over,
    such as files that Pillow cannot read, is named in `info.passed_over`; a tree of splits, or of one class, is refused.

    Args:
        path: local path or URI of the root.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` samples; None for all.
        name: its name in messages; None for the path.
    """

    def __init__(
        self, *, path: str, size: int | None = None, limit: int | None = None, name: str | None = None
    ) -> None:
        self._path, self._size = path, size
        self._name = name or path
        self._fs, self._root = filesystem_of(path)
        listing = list_folder(path)
        tree = class_tree_of(listing, where=path, images_of=self._images_among)
        self._classes, self._passed_over = tree.classes, tree.passed_over
        self._files = tree.images[:limit]
        self._sizes = [listing.files[name].size for name in self._files]
        self._times = times_of(listing.files[name] for name in self._files)

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts, from the names alone."""
        number_of = {name: number for number, name in enumerate(self._classes)}
        labels = np.array([number_of[key.split("/", 1)[0]] for key in self._files], np.int64)
        probed = np.unique(np.linspace(0, len(labels) - 1, _PROBED).astype(int))
        digest = hashlib.sha256()
        size_px, original_px = probe_size(_hashed((raw for _, raw in self.read(list(probed))), digest), self._size)
        return SourceInfo(
            name=self._name,
            labels_N=labels,
            num_classes=len(self._classes),
            size_px=size_px,
            original_px=original_px,
            class_names=self._classes,
            fingerprint=fingerprint_of("folder", self._files, self._sizes, self._classes),
            sample=digest.hexdigest(),
            times=self._times,
            passed_over=self._passed_over,
        )

    def encoded(self) -> Encoded:
        """The mean size of the files."""
        return Encoded(bytes_each=float(np.mean(self._sizes)), how="the mean of all files' sizes")

    def keys(self, ids: Sequence[int]) -> list[str]:
        """Paths relative to the root."""
        return [self._files[number] for number in ids]

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Encoded images."""
        for number in ids:
            try:
                data = read_file(self._fs, f"{self._root}/{self._files[number]}")
            except OSError as error:
                raise DataError(f"{self._name}/{self._files[number]} cannot be read: {reason_of(error)}.") from None
            yield int(number), data

    def _images_among(self, names: Iterable[str]) -> set[str]:
        return images_among(names, self._head)

    def _head(self, name: str) -> bytes:
        path = f"{self._root}/{name}"

        def read() -> bytes:
            with self._fs.open_input_stream(path, compression=None, buffer_size=HEAD_BYTES) as stream:
                return bytes(stream.read(HEAD_BYTES))

        try:
            return retried_inline(path, read, self._fs)
        except OSError as error:
            raise DataError(f"{self._name}/{name} cannot be read: {reason_of(error)}.") from None


def _hashed(images: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    """The images, each added to a digest when it is asked for."""
    for image in images:
        digest.update(image)
        yield image
