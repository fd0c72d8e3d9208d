"""Samples that a script or a notebook holds in memory, written once as a source that other processes can read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.data.images.decode import in_rgb
from unseen_ray.data.images.encode import to_png
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.sources.prepared import PLAN, PREPARED, PREPARING
from unseen_ray.data.sources.tables.labels import image_schema
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.filesystem import Folder

__all__ = ["is_object", "store_samples"]

logger = logging.getLogger(__name__)

_PART = 2048  # images in one file
_ACCEPTED = (
    "Accepted are a pair (images, labels) of arrays, with images as uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3); a torch "
    "Dataset of (image, label) pairs, whose images are PIL or uint8; a Hugging Face Dataset with columns image and label; and an "
    "object with __len__, labels, keys and __getitem__(id) -> (H, W, 3) uint8"
)


@dataclass(frozen=True, slots=True)
class _Samples:
    """Any of the accepted objects: its length, and one sample by number as (image, label, key)."""

    count: int
    at: Callable[[int], tuple[bytes, int, str]]
    class_names: tuple[str, ...] = ()


def is_object(source: Any) -> bool:
    """Whether a source holds samples, other than text, a path, a mapping or a function, which a configuration can store."""
    return not (
        source is None or callable(source) or isinstance(source, (str, Mapping)) or hasattr(source, "__fspath__")
    )


def store_samples(source: Any, folder: Folder, *, anew: bool = False, field: str = "source") -> dict[str, Any]:
    """Write an object's samples as Parquet with encoded images, unless the folder holds them already.

    Args:
        source: see `_ACCEPTED`; its numbers become the ids.
        folder: on storage that every node shares, behind the fence of a lock.
        anew: write what the folder holds once more.
        field: the configuration's field, for messages.

    Returns:
        The source as a configuration writes it.

    Raises:
        ConfigError: if the object is none that is accepted, or the folder holds other samples or anything else.
        DataError: if a sample is not an image with a label.
    """
    samples, place = _samples_of(source, field), {"use": "parquet", "path": folder.root}
    digest = _digest_of(samples)
    if (found := folder.read(PREPARED)) is not None and not anew:
        if from_checked_json(found).get("digest") != digest:
            raise ConfigError(
                f"{folder.root} holds other samples than this source. Name another out, or set fresh=True."
            )
        logger.info("the samples are taken from %s, where they were written before", folder.root)
        return place
    _clear(folder)
    names = [_write_part(samples, folder, start) for start in range(0, samples.count, _PART)]
    folder.write(PREPARED, to_checked_json({"digest": digest, "shards": [{"name": name} for name in names]}))
    folder.delete_folder(PREPARING)
    return place


def _clear(folder: Folder) -> None:
    """Make a folder ready to be written; ConfigError if it holds what no earlier write has made."""
    there = folder.files()
    if there and not {PREPARED, PLAN} & set(there):
        raise ConfigError(f"{folder.root} holds {', '.join(there[:3])}. Remove the folder, or name another out.")
    folder.write(PLAN, b"")  # readers refuse an unfinished folder by it
    for name in there:
        if name != PLAN:
            folder.delete(name)


def _write_part(samples: _Samples, folder: Folder, start: int) -> str:
    rows = [samples.at(number) for number in range(start, min(start + _PART, samples.count))]
    images, labels, keys = zip(*rows, strict=True)
    columns = {"image": [{"bytes": image, "path": None} for image in images], "label": labels, "key": keys}
    sink, name = pa.BufferOutputStream(), f"part-{start // _PART:05d}.parquet"
    pq.write_table(pa.table(columns, image_schema(samples.class_names)), sink, row_group_size=256)
    folder.write(name, memoryview(sink.getvalue()))
    return name


def _digest_of(samples: _Samples) -> str:
    """SHA-256 of all samples and the class names: a corrected label must not meet the samples of an earlier start."""
    if not samples.count:
        raise DataError("the source holds no samples.")
    digest = hashlib.sha256(repr((samples.count, samples.class_names)).encode())
    for number in range(samples.count):
        image, label, key = samples.at(number)
        digest.update(image + repr((label, key)).encode())
    return digest.hexdigest()


def _samples_of(source: Any, field: str) -> _Samples:
    if hasattr(source, "column_names") and hasattr(source, "with_format"):
        return _of_table(source, field)
    if all(hasattr(source, name) for name in ("__len__", "__getitem__", "labels", "keys")):
        names = tuple(map(str, getattr(source, "class_names", ())))
        keys = [str(key) for key in source.keys]
        return _Samples(len(source), lambda i: (_encoded(source[i], i), _label(source.labels[i], i), keys[i]), names)
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(hasattr(each, "__len__") for each in source):
        return _of_arrays(np.asarray(source[0]), np.asarray(source[1]), field)
    if (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not isinstance(source, (list, tuple, np.ndarray, Mapping))
        and not hasattr(source, "columns")  # a data frame, whose items are its columns
    ):
        return _Samples(len(source), lambda i: _pair(source[i], i), tuple(map(str, getattr(source, "classes", ()))))
    raise ConfigError(f"{field} is of type {type(source).__name__}, whose samples cannot be read. {_ACCEPTED}.")


def _of_arrays(images: Any, labels: Any, field: str) -> _Samples:
    if images.ndim == 2 and len(images) == len(labels):
        raise ConfigError(
            f"{field} is a pair of arrays, the first of shape {images.shape}: rows of features, which have no pixels. Give ur.score your "
            f"own out-of-fold probabilities of them, or read them in a `fit` of your own. {_ACCEPTED}."
        )
    if images.ndim in (3, 4) and labels.ndim == 1 and len(images) != len(labels):
        raise ConfigError(f"{field} has {len(images)} images and {len(labels)} labels. Give one label for each image.")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"{field} is a pair of arrays, {images.dtype} of shape {images.shape} and {labels.dtype} of shape {labels.shape}. {_ACCEPTED}."
        )
    names: tuple[str, ...] = ()
    if labels.dtype.kind == "U":
        found, labels = np.unique(labels, return_inverse=True)
        names = tuple(found.tolist())
    if labels.dtype.kind not in "iu":
        raise ConfigError(
            f"the labels of {field} are {labels.dtype}; they must be integers, 0 to C - 1, or the names of classes as text."
        )
    return _Samples(len(images), lambda i: (_encoded(images[i], i), int(labels[i]), str(i)), names)


def _of_table(source: Any, field: str) -> _Samples:
    """A Hugging Face Dataset, whose images are taken as they are stored."""
    names = [name for name in ("image", "img") if name in source.column_names]
    if not names or "label" not in source.column_names:
        raise ConfigError(
            f"{field} has the columns {', '.join(source.column_names)}, and needs `image` and `label`. Rename them with rename_column."
        )
    stored = source.with_format("arrow")

    def at(number: int) -> tuple[bytes, int, str]:
        row = stored[number].select([names[0], "label"]).to_pylist()[0]
        image = row[names[0]]
        data = image.get("bytes") if isinstance(image, dict) else None
        return data or _encoded(source[number][names[0]], number), _label(row["label"], number), str(number)

    return _Samples(len(source), at, tuple(getattr(source.features["label"], "names", None) or ()))


def _pair(sample: Any, number: int) -> tuple[bytes, int, str]:
    if not isinstance(sample, Sequence) or len(sample) != 2:
        raise DataError(f"sample {number} is of type {type(sample).__name__}; it must be an (image, label) pair.")
    return _encoded(sample[0], number), _label(sample[1], number), str(number)


def _label(value: Any, number: int) -> int:
    label = np.asarray(value)
    if label.ndim or label.dtype.kind not in "iu":
        raise DataError(f"the label of sample {number} is {value!r}; it must be an integer, 0 to C - 1.")
    return int(label)


def _encoded(image: Any, number: int) -> bytes:
    """An image as PNG, which keeps its pixels."""
    try:
        pixels = np.asarray(in_rgb(image) if hasattr(image, "convert") else image)
    except UndecodableError as error:
        raise DataError(f"the image of sample {number} cannot be used: {error}.") from None
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)  # torch's order
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(
            f"the image of sample {number} is {pixels.dtype} of shape {pixels.shape}; it must be a PIL image, or uint8 of shape (H, W), "
            "(H, W, 1) or (H, W, 3). Give the data set without its transform, such as ToTensor and Normalize."
        )
    return to_png(pixels)
