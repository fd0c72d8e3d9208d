"""ImageNet-1K in numbers alone: as many samples and classes, no pictures; to plan for it where it is not at hand."""

from __future__ import annotations

import numpy as np


class ImageNetCounts:
    """1,281,167 black images of 1,000 classes, as evenly as they go (ImageNet's have 732 to 1,300 each)."""

    note = (
        "counts alone stand for ImageNet-1K: 1,281,167 samples of 1,000 classes, as evenly as they go (its own have 732 to 1,300); "
        "no image of it was read"
    )
    encoded_bytes = (
        114_700  # the 147,897,477,120 bytes of the training tar over its files, less the tar's own 768 a file
    )

    def __init__(self) -> None:
        self.labels = np.arange(1_281_167) % 1000
        self.keys = [f"n{number}" for number in range(len(self.labels))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        return np.zeros((375, 500, 3) if place % 4 else (500, 375, 3), np.uint8)
