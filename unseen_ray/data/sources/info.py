"""The interface of a source: labels and counts without reading a pixel, and pixels or encoded images on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, LabelArray
from unseen_ray.core.samples.groups import NO_GROUPS, Groups
from unseen_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MAX_DEFAULT_SIZE_PX",
    "MOST_CLASSES",
    "Encoded",
    "RawImage",
    "Source",
    "SourceInfo",
    "check_labels",
    "encoded_of",
    "fingerprint_of",
    "key_column",
    "probe_size",
]

_SAMPLED = 64

RawImage = bytes | NDArray[np.uint8]

MOST_CLASSES = 2**22
"""Of data without names of classes; the last layer of a model has a row for each."""

MAX_DEFAULT_SIZE_PX = 64
"""Larger images are scaled down to this unless the source sets `size`: a scoring model needs no more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceInfo:
    """What is known about a source before any pixel is decoded.

    Attributes:
        name: its name in messages.
        labels_N: (N,) class of each row: int64, or for millions of rows a narrower type in a memory-mapped file.
        num_classes: C.
        size_px: height and width that images are scaled to.
        original_px: (height, width) of the sampled images if they agree, else None.
        class_names: C names, or empty if the source has none.
        fingerprint: changes when labels, names or sizes change.
        sample: SHA-256 of a sample of the stored bytes, and of what tells which of them are used; empty where `fingerprint` covers
            all of that, or nothing is known of it.
        times: SHA-256 of when the files were modified, which also changes when they are only copied; empty if unknown.
        note: a remark for the user, such as that the source stands in for another one.
        passed_over: in words, what lies beside the samples and is not used; empty if nothing is.
        groups: which rows belong together, as far as the configuration's `group` tells.
    """

    name: str
    labels_N: LabelArray
    num_classes: int
    size_px: int
    original_px: tuple[int, int] | None
    class_names: tuple[str, ...]
    fingerprint: str
    sample: str = ""
    times: str = ""
    note: str = ""
    passed_over: str = ""
    groups: Groups = NO_GROUPS

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def content(self) -> str:
        """Digest of all that is known of the source's content, for what outlives a run."""
        return fingerprint_of(self.fingerprint, self.sample, self.times)

    def is_of_same_data(self, other: SourceInfo) -> bool:
        """Whether both are known to hold the same samples, or the same files, of which they may use other rows or labels."""
        return self.fingerprint == other.fingerprint or (bool(self.sample) and self.sample == other.sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The stored size of a source's images.

    Attributes:
        bytes_each: mean bytes of an image.
        how: how the mean was found.
        groups: number of parts that can only be read whole, such as row groups; 0 if images are read one by one.
    """

    bytes_each: float
    how: str
    groups: int = 0

    def read_bytes(self, batch_size: int, num_samples: int) -> float:
        """Expected bytes read per image of a random batch, which needs only a little of each group it touches.

        Args:
            batch_size: images in a batch; each group is read at most once for it.
            num_samples: N, over all groups.
        """
        if not self.groups:
            return self.bytes_each
        # expected number of distinct groups among `batch_size` independent draws
        touched = self.groups * (1 - (1 - 1 / self.groups) ** batch_size)
        return touched * num_samples / self.groups * self.bytes_each / batch_size


class Source(Protocol):
    """An opened source."""

    @property
    def info(self) -> SourceInfo:
        """Labels, counts, fingerprint."""
        ...

    def keys(self, ids: Sequence[int]) -> list[str]:
        """The keys (portable names) of samples."""
        ...

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Encoded images, or (H, W, 3) uint8 pixels, in the order of the ids."""
        ...


def encoded_of(source: Source) -> Encoded:
    """The stored size of images: from the source's `encoded()` if it has one, else the mean of a few images."""
    stated: Encoded | None = source.encoded() if hasattr(source, "encoded") else None
    if stated is not None:
        return stated
    some = np.unique(np.linspace(0, len(source.info) - 1, _SAMPLED).astype(int))
    sizes = [len(raw) if isinstance(raw, bytes) else raw.nbytes for _, raw in source.read(some.tolist())]
    return Encoded(bytes_each=float(np.mean(sizes)), how=f"the mean of {len(sizes)} images")


def key_column(source: Source, ids_M: IdArray) -> pa.Array:
    """(M,) keys as Arrow strings: from the source's `key_column(ids)` if it has one, else from `keys`."""
    import pyarrow as pa

    if hasattr(source, "key_column"):
        column: pa.Array = source.key_column(ids_M)
        return column
    return pa.array(source.keys(ids_M.tolist()), pa.string())


def check_labels(
    values: Any, *, where: str, num_classes: int | None = None, first_row: int = 0
) -> tuple[IntArray, int]:
    """Check labels and count the classes.

    Args:
        values: (N,) the source's labels.
        where: the source's name in messages.
        num_classes: C if the source's metadata states it.
        first_row: row number of the first label, for messages.

    Returns:
        (N,) int64 labels, and C: the metadata's number of classes, else the largest label + 1.

    Raises:
        DataError: if there are no labels, or one is negative, not an integer, or not below C.
    """
    labels = np.asarray(values)
    if labels.size == 0:
        raise DataError(f"{where} holds no samples. Point the source to the data.")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"the labels of {where} are {labels.dtype} of shape {labels.shape}; they must be one integer per sample, 0 to C - 1. "
            "Map class names to numbers first."
        )
    if labels.dtype == np.uint64 and labels.max() >= 2**63:
        raise DataError(f"{where} has label {labels.max()}; labels are 0 to C - 1. Number the classes so.")
    labels = labels.astype(np.int64)
    _check_range(labels, where, num_classes, first_row)
    return labels, int(labels.max()) + 1 if num_classes is None else num_classes


def _check_range(labels: IntArray, where: str, num_classes: int | None, first_row: int) -> None:
    if labels.min() < 0:
        row = int(np.argmin(labels))
        raise DataError(
            f"row {first_row + row} of {where} has label {labels[row]}; labels are 0 to C - 1. Drop unlabelled rows first."
        )
    largest = int(labels.max())
    if num_classes is not None and largest >= num_classes:
        row = int(np.argmax(labels))
        raise DataError(
            f"row {first_row + row} of {where} has label {largest}, but its metadata names {num_classes} classes (0 to {num_classes - 1})."
        )
    # such labels are ids in disguise: counting them would take gigabytes, and the model would need a last layer this wide
    if num_classes is None and largest >= MOST_CLASSES:
        raise DataError(
            f"{where} has label {largest}: that would make {largest + 1} classes, more than {MOST_CLASSES}. "
            "Number the classes 0 to C - 1."
        )


def fingerprint_of(*parts: str | bytes | Iterable[object]) -> str:
    """SHA-256 over the parts, each with its length, so that different lists of parts never hash the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part if isinstance(part, bytes) else part.encode() if isinstance(part, str) else repr(list(part)).encode()
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def probe_size(images: Iterable[RawImage], size: int | None) -> tuple[int, tuple[int, int] | None]:
    """The size to scale images to, from the headers of a few.

    Args:
        images: encoded or (H, W, 3); unreadable ones are ignored here and reported when they are decoded.
        size: the user's choice; None for the median short side, at most 64 px.

    Returns:
        The size in pixels, and (height, width) if all images agree, else None.
    """
    shapes = [shape for image in images if (shape := _shape_of(image)) is not None]
    original = shapes[0] if shapes and len(set(shapes)) == 1 else None
    if size is not None:
        return size, original
    if not shapes:
        return MAX_DEFAULT_SIZE_PX, None
    return min(int(np.median([min(shape) for shape in shapes])), MAX_DEFAULT_SIZE_PX), original


def _shape_of(image: RawImage) -> tuple[int, int] | None:
    if not isinstance(image, bytes):
        return image.shape[0], image.shape[1]
    from unseen_ray.data.images.opening import BROKEN, opened, quietly

    try:
        with quietly(), opened(image) as header:
            return header.height, header.width
    except BROKEN:
        return None
