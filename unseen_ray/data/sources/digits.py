"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unseen_ray.data.sources.info import RawImage, SourceInfo, fingerprint_of
from unseen_ray.errors import ConfigError

__all__ = ["DigitsSource"]


class DigitsSource:
    """UCI's optical recognition of handwritten digits, as bundled with scikit-learn.

    Args:
        limit: use only the first `limit` samples; None for all.
    """

    def __init__(self, *, limit: int | None = None) -> None:
        # sklearn.datasets.load_digits reads the same file, but imports scipy and pandas, which takes a process a second.
        package = importlib.util.find_spec("sklearn")
        if package is None or package.origin is None:
            raise ConfigError(
                "source digits comes with scikit-learn, which is not installed. Run: pip install scikit-learn"
            )
        path = os.path.join(os.path.dirname(package.origin), "datasets", "data", "digits.csv.gz")
        if os.path.exists(path):
            table = np.loadtxt(path, delimiter=",")[:limit]
        else:  # a later scikit-learn may keep it elsewhere
            from sklearn.datasets import load_digits

            table = np.column_stack(load_digits(return_X_y=True))[:limit]
        # scikit-learn's grey levels are 0 to 16; the last column is the class
        grey = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self._pixels: NDArray[np.uint8] = np.repeat(grey[..., None], 3, axis=3)
        self._labels = table[:, -1].astype(np.int64)

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts."""
        return SourceInfo(
            name="digits",
            labels_N=self._labels,
            num_classes=10,
            size_px=8,
            original_px=(8, 8),
            class_names=tuple("0123456789"),
            fingerprint=fingerprint_of("digits", self._pixels.tobytes(), self._labels.tobytes()),
        )

    def keys(self, ids: Sequence[int]) -> list[str]:
        """`digits:17`."""
        return [f"digits:{number}" for number in ids]

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Pixels."""
        return ((int(number), self._pixels[number]) for number in ids)
