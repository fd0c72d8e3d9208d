"""Ray Datasets in and out: a data set is stored once as Parquet and then pruned; tables and kept images are read by Ray's workers."""

from __future__ import annotations

import functools
import json
import logging
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data.datasource import FilenameProvider

from unseen_ray.data.images.decode import UndecodableError, to_pixels
from unseen_ray.data.images.encode import to_png
from unseen_ray.data.sources.registry import Source, SourceRef, open_source
from unseen_ray.errors import BadSampleError, ConfigError, DataError
from unseen_ray.execution.ray.connect import ensure_session
from unseen_ray.storage.filesystem import Folder, filesystem_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["read_by_ray", "store_dataset", "with_images"]

logger = logging.getLogger(__name__)

_WRITTEN = "_written.json"  # sources pass over what begins with an underscore
_BATCH = 256


def read_by_ray(folder: str, files: Sequence[str]) -> ray.data.Dataset:
    """Parquet files of a run as a Dataset in their order, read by Ray's workers."""
    ensure_session()
    filesystem, root = filesystem_of(folder)
    # Without `partitioning`, Ray would take a folder above the run called lr=0.1 for a column.
    dataset = ray.data.read_parquet([f"{root}/{file}" for file in files], filesystem=filesystem, partitioning=None)
    dataset.context.execution_options.preserve_order = True
    return dataset


def with_images(rows: ray.data.Dataset, ref: SourceRef, *, size_px: int | None) -> ray.data.Dataset:
    """Rows with a column `id`, each with its image from a source: decoded to (size_px, size_px, 3) uint8, or as it is stored."""
    opening = pickle.dumps(ref)
    return rows.map_batches(
        _add_images, fn_kwargs={"opening": opening, "size_px": size_px}, batch_size=_BATCH, batch_format="numpy"
    )


def _add_images(batch: dict[str, NDArray[Any]], *, opening: bytes, size_px: int | None) -> dict[str, Any]:
    source, ids = _opened(opening), batch["id"].tolist()
    # sources read ascending ids best
    raws = dict(source.read(sorted(set(ids))))
    if size_px is None:
        stored = (raws[number] for number in ids)
        images: Any = np.array([raw if isinstance(raw, bytes) else to_png(raw) for raw in stored], object)
    else:
        images = np.stack([_pixels(source, number, raws[number], size_px) for number in ids])
    return {**batch, "image": images}


def _pixels(source: Source, number: int, raw: Any, size_px: int) -> NDArray[np.uint8]:
    try:
        return to_pixels(raw, size_px)
    except UndecodableError as error:
        raise BadSampleError(source.keys([number]), str(error), 1) from None


@functools.lru_cache(maxsize=2)
def _opened(opening: bytes) -> Source:
    """A source, opened once in each of Ray's worker processes."""
    return open_source(pickle.loads(opening))  # pickled by the driver in this very session


def store_dataset(dataset: ray.data.Dataset, to: str, *, image: str, label: str) -> str:
    """Write the images and labels of a Dataset as Parquet, in its order, unless the folder holds them already.

    Args:
        dataset: with a column of encoded images or of (H, W), (H, W, 1) or (H, W, 3) uint8 arrays, and one of integers or text.
        to: the folder, on storage that every node shares.
        image, label: the columns.

    Returns:
        The folder.

    Raises:
        ConfigError: if the Dataset lacks a column, or the folder holds something else.
        DataError: if a value of a column is of another kind.
    """
    names = dataset.columns() or []
    if lacking := [name for name in (image, label) if name not in names]:
        raise ConfigError(
            f"the Dataset has no column {lacking[0]!r}; it has {', '.join(names)}. Name it: image=..., label=..."
        )
    if _is_stored(Folder(to), image, label):
        return to
    stored = dataset.select_columns([image, label]).map_batches(
        _encoded, fn_kwargs={"image": image, "label": label}, batch_size=_BATCH, batch_format="numpy"
    )
    stored.context.execution_options.preserve_order = True
    filesystem, root = filesystem_of(to)
    try:
        stored.write_parquet(
            root,
            filesystem=filesystem,
            filename_provider=_ByNumber(file_format="parquet"),
            mode=ray.data.SaveMode.OVERWRITE,
        )
    except ray.exceptions.RayError as error:
        raise DataError(_reason(error)) from None
    Folder(to).write(_WRITTEN, json.dumps({"image": image, "label": label}).encode())
    return to


def _is_stored(folder: Folder, image: str, label: str) -> bool:
    """Whether a folder holds a Dataset already; ConfigError if it holds anything else."""
    if (found := folder.read(_WRITTEN)) is not None:
        if json.loads(found) != {"image": image, "label": label}:
            raise ConfigError(
                f"{folder.root} holds other columns of a Dataset: {found.decode()}. Remove the folder, or name another out."
            )
        logger.info(
            "the Dataset is taken from %s, where it was written before; remove the folder to write it anew", folder.root
        )
        return True
    if others := [name for name in folder.names() if not name.endswith(".parquet")]:
        raise ConfigError(f"{folder.root} holds {', '.join(others[:3])}. Remove the folder, or name another out.")
    return False


def _reason(error: Exception) -> str:
    """Our own message out of the traceback that Ray makes of an error in a task, else the traceback's last line."""
    lines = str(error).strip().splitlines()
    ours = f"{DataError.__module__}.{DataError.__qualname__}: "
    return next(
        (line.removeprefix(ours) for line in lines if line.startswith(ours)),
        f"the Dataset cannot be written: {lines[-1]}",
    )


class _ByNumber(FilenameProvider):  # type: ignore[misc]
    """Names without a random part, so that keys do not change when the same data is written again."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        """The file of a task."""
        return f"part-{task_index:06d}.parquet"


def _encoded(batch: dict[str, NDArray[Any]], *, image: str, label: str) -> dict[str, Any]:
    return {"image": np.array([_bytes_of(value, image) for value in batch[image]], object), "label": batch[label]}


def _bytes_of(value: Any, column: str) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    if isinstance(value, bytes):
        return value
    pixels = np.asarray(value)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(
            f"column {column!r} of the Dataset holds {pixels.dtype} of shape {pixels.shape}; images are encoded (bytes), or uint8 of "
            "shape (H, W), (H, W, 1) or (H, W, 3). Convert them with map_batches first."
        )
    return to_png(pixels)
