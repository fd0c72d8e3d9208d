"""Ranks by counting in passes are those of one sort, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from unseen_ray.core.outofcore import ranks
from unseen_ray.core.stats import mean_ranks


def columns(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    return [
        rng.normal(size=count),
        rng.normal(size=count).round(1),
        np.exp(20 * rng.normal(size=count)),
        -np.exp(-30 * rng.random(count)),
        rng.integers(-3, 3, count) * 0.0,  # 0 and -0 are tied
        rng.choice([np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-42, -1e-42, 0], count),
    ]


@pytest.mark.parametrize(("most_sorted", "most_counted"), [(1, 1), (7, 3), (200, 1), (200, 500), (10_000, 1)])
def test_ranks_are_those_of_one_sort(most_sorted: int, most_counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 50, 701):
        monkeypatch.setattr(ranks, "_CHUNK", int(rng.integers(1, 300)))
        for values in columns(rng, count):
            for missing in (np.zeros(count, bool), rng.random(count) < 0.3, np.ones(count, bool)):
                given = values.astype(np.float32)
                given[missing] = np.nan
                before = rng.random(count)
                after, wanted = before.copy(), before.copy()
                ranks.add_mean_ranks(given, after, most_sorted=most_sorted, most_counted=most_counted)
                wanted[~missing] += mean_ranks(given[~missing])
                np.testing.assert_array_equal(after, wanted)


def test_a_group_holds_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([1 + rng.random(5000), np.exp(-30 * rng.random(1000))]).astype(np.float32)
    sizes: list[int] = []
    unique, zeros = np.unique, np.zeros
    monkeypatch.setattr(np, "unique", lambda keys, **more: (sizes.append(len(keys)), unique(keys, **more))[1])
    monkeypatch.setattr(
        np, "zeros", lambda shape, *more: (sizes.append(-shape if shape > 2**16 else 0), zeros(shape, *more))[1]
    )
    ranks.add_mean_ranks(values, np.empty(6000), most_sorted=300, most_counted=20)
    assert 0 < max(sizes) <= 300 and -20 * 2**16 <= min(sizes) < 0
