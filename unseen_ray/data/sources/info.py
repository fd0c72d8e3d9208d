"""What a source is: labels and counts without reading a pixel, and pixels or encoded images on demand."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, LabelArray
from unseen_ray.data.images.pillow_warnings import quietly
from unseen_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MAX_DEFAULT_SIZE_PX",
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

MAX_DEFAULT_SIZE_PX = 64
"""Larger images are scaled to this unless the source's `size` says otherwise: a scoring model needs no more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceInfo:
    """What is known of a source before any pixel is decoded.

    Attributes:
        name: how messages call it.
        labels_N: (N,) classes of all rows: int64, or of millions as narrow as they can be, mapped from a file.
        num_classes: C.
        size_px: height and width that images are brought to.
        original_px: (height, width) of the images that were looked at, where they agree.
        class_names: C names, or empty where the source has none.
        fingerprint: changes when the data does.
        note: what should be known of a source that stands for another one.
    """

    name: str
    labels_N: LabelArray
    num_classes: int
    size_px: int
    original_px: tuple[int, int] | None
    class_names: tuple[str, ...]
    fingerprint: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What the images of a source take where they are stored.

    Attributes:
        bytes_each: of an image, the mean.
        how: where that was found.
        groups: parts of which each is read whole, such as row groups; 0 where single images are read.
    """

    bytes_each: float
    how: str
    groups: int = 0

    def read_bytes(self, batch_size: int, num_samples: int) -> float:
        """Bytes that are read for each image of a random batch, which touches groups that it needs little of.

        Args:
            batch_size: images of a batch; each group is read once for it.
            num_samples: N, over all groups.
        """
        if not self.groups:
            return self.bytes_each
        touched = self.groups * (1 - (1 - 1 / self.groups) ** batch_size)
        return touched * num_samples / self.groups * self.bytes_each / batch_size


class Source(Protocol):
    """An opened source."""

    @property
    def info(self) -> SourceInfo:
        """Labels, counts, fingerprint."""
        ...

    def keys(self, ids: Sequence[int]) -> list[str]:
        """The portable names of samples."""
        ...

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Encoded images, or (H, W, 3) uint8 pixels, in the order of the ids."""
        ...


def encoded_of(source: Source) -> Encoded:
    """What images take where they are stored: as the source itself says (`encoded()`), else the mean of some of them."""
    said: Encoded | None = source.encoded() if hasattr(source, "encoded") else None
    if said is not None:
        return said
    some = np.unique(np.linspace(0, len(source.info) - 1, _SAMPLED).astype(int))
    sizes = [len(raw) if isinstance(raw, bytes) else raw.nbytes for _, raw in source.read(some.tolist())]
    return Encoded(bytes_each=float(np.mean(sizes)), how=f"the mean of {len(sizes)} images")


def key_column(source: Source, ids_M: IdArray) -> pa.Array:
    """(M,) portable names as Arrow strings: as the source itself makes them (`key_column(ids)`), else of `keys`."""
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
        values: (N,) what the source holds.
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
            f"the labels of {where} are {labels.dtype} of shape {labels.shape}; they must be one integer a sample, 0 to C - 1. "
            "Map class names to numbers first."
        )
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
    # Labels that are ids in disguise: counting them would take gigabytes, and a model a last layer of that width.
    if num_classes is None and largest >= 2**24:
        raise DataError(
            f"{where} has label {largest}: that would make {largest + 1} classes. Number the classes 0 to C - 1."
        )


def fingerprint_of(*parts: str | bytes | Iterable[object]) -> str:
    """SHA-256 over the parts, each with its length, so that no two lists of parts look alike."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part if isinstance(part, bytes) else part.encode() if isinstance(part, str) else repr(list(part)).encode()
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def probe_size(images: Iterable[RawImage], size: int | None) -> tuple[int, tuple[int, int] | None]:
    """The size to bring images to, from the headers of a few.

    Args:
        images: encoded or (H, W, 3); unreadable ones are passed over, they are met again when they are decoded.
        size: what the user asked for; None for the median short side, but at most 64 px.

    Returns:
        The size in pixels, and (height, width) where all that were looked at agree.
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
    from PIL import Image

    try:
        with quietly(), Image.open(io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None
