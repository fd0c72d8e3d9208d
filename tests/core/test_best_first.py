"""The order in which samples were picked, by passes: that of a coreset in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from unseen_ray.core.outofcore.best_first import ids_best_first
from unseen_ray.core.outofcore.chunks import Chunk
from unseen_ray.core.samples.coreset import Coreset


@pytest.mark.parametrize("most_sorted", [1, 40, 10_000])
@pytest.mark.parametrize("digits", [1, 7])
def test_the_order_is_that_of_one_sort(most_sorted: int, digits: int) -> None:
    rng = np.random.default_rng(digits)
    ids = np.sort(rng.choice(9000, 700, replace=False))
    stages, scores = rng.integers(0, 3, 700).astype(np.int32), rng.normal(size=700).round(digits).astype(np.float32)
    scores[:50] = rng.choice([0.0, -0.0], 50)

    def shards(columns: Sequence[str]) -> Iterator[Chunk]:
        table = {"id": ids, "stage": stages, "score": scores}
        for start in range(0, 700, 90):
            yield {name: table[name][start : start + 90] for name in columns}

    pieces = list(ids_best_first(shards, 4, 5, most_sorted=most_sorted))
    assert len(pieces) > 3 or most_sorted == 10_000
    np.testing.assert_array_equal(np.concatenate(pieces), Coreset(ids=ids, stages=stages, scores=scores).in_order(5))
