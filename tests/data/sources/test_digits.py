"""The digits are scikit-learn's, although its loader is not called."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from unseen_ray.data.sources.digits import DigitsSource


@pytest.mark.parametrize("limit", [None, 300])
def test_pixels_and_labels_are_those_of_scikit_learn(limit: int | None) -> None:
    source, bunch = DigitsSource(limit=limit), load_digits()
    assert source.info.labels_N.tolist() == bunch.target[:limit].tolist()
    pixels = np.stack([image for _, image in source.read(range(len(source.info.labels_N)))])
    grey = np.round(bunch.images[:limit] * (255 / 16))
    assert all((pixels[..., channel] == grey).all() for channel in range(3))
