"""A source as a torch data set of (image, label), for training on the coreset in your own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.images.decode import open_image
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.sources.info import Source
from unseen_ray.errors import BadSampleError

__all__ = ["SourceDataset", "subset_of"]


class SourceDataset(Dataset[tuple[Any, int]]):
    """Every row of a source, like a torchvision data set: (PIL image at its original size, label).

    Args:
        source: the opened source.
        transform: applied to the image.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.source, self.transform = source, transform
        self.targets = source.info.labels_N

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        _, raw = next(iter(self.source.read([number])))
        try:
            image = open_image(raw)
        except UndecodableError as error:
            raise BadSampleError(self.source.keys([number]), str(error), 1) from None
        return (self.transform(image) if self.transform else image), int(self.targets[number])


def subset_of(
    source: Source, ids: IdArray, transform: Callable[[Image.Image], Any] | None = None
) -> Subset[tuple[Any, int]]:
    """The samples with these ids, in this order."""
    return Subset(SourceDataset(source, transform), np.asarray(ids).tolist())
