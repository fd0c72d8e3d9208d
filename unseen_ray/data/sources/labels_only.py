"""Labels without images: enough to score your own probabilities and select by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from unseen_ray.data.sources.info import RawImage, SourceInfo, check_labels, fingerprint_of
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.npy import array_of_npy

__all__ = ["SCORE_WITH_IMAGES", "LabelsSource", "has_labels_alone", "read_npy"]

SCORE_WITH_IMAGES = "Score with --source and name the images."


class LabelsSource:
    """(N,) integer labels in a .npy file.

    Args:
        path: local path or URI.
        classes: C; None for the largest label + 1.
        limit: use only the first `limit` labels; None for all.
    """

    def __init__(self, *, path: str, classes: int | None = None, limit: int | None = None) -> None:
        self._name = PurePosixPath(path).name
        labels, self._classes = check_labels(read_npy(path), where=self._name, num_classes=classes)
        self._labels = labels[:limit]

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts."""
        return SourceInfo(
            name=self._name,
            labels_N=self._labels,
            num_classes=self._classes,
            size_px=1,
            original_px=None,
            class_names=(),
            fingerprint=fingerprint_of("labels", self._labels.tobytes(), str(self._classes)),
        )

    def keys(self, ids: Sequence[int]) -> list[str]:
        """`labels.npy:17`."""
        return [f"{self._name}:{number}" for number in ids]

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Always DataError, since there are no images."""
        raise DataError(f"{self._name} holds labels but no images. {SCORE_WITH_IMAGES}")


def has_labels_alone(source: Any) -> bool:
    """Whether the `source` of a configuration, which may be a path alone, has labels and no images."""
    return isinstance(source, Mapping) and source.get("use") == "labels"


def read_npy(path: str) -> np.ndarray:
    """An array from a .npy file, local or a URI.

    Raises:
        DataError: if it is missing or not an array of numbers; pickled content is refused.
    """
    fs, inner = filesystem_of(path)
    try:
        array: np.ndarray = array_of_npy(read_file(fs, inner))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give a .npy file, as numpy.save writes it.") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not a .npy file of numbers: {error}. Write it with numpy.save.") from None
    return array
