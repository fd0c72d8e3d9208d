"""What an epoch takes where it does not take everything."""

from __future__ import annotations

import numpy as np
import pytest

from unseen_ray.core.samples.coreset import Coreset
from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.core.seeds import derive, tie_keys

IDS = np.flatnonzero(np.arange(1000) % 7 != 3)


def drawn(epoch: int, *, size: int = 300, fixed: int = 100, seed: int = 5, ids: np.ndarray = IDS) -> np.ndarray:
    draw = EpochDraw(fixed_ids=IDS[::3][:fixed], size=size, seed=seed)
    return ids[draw.positions(ids, epoch)]


@pytest.mark.parametrize(("size", "fixed"), [(300, 100), (300, 0), (100, 100), (len(IDS), 50), (1, 0), (1, 1)])
def test_a_draw_has_the_fixed_ids_and_its_size(size: int, fixed: int) -> None:
    for epoch in range(5):
        ids = drawn(epoch, size=size, fixed=fixed)
        assert len(ids) == size and np.all(np.diff(ids) > 0)
        assert set(IDS[::3][:fixed]) <= set(ids) <= set(IDS)


def test_the_rest_are_the_lowest_hashes_of_seed_epoch_and_id() -> None:
    fixed, others = IDS[::3][:100], np.setdiff1d(IDS, IDS[::3][:100])
    for epoch in range(3):
        lowest = others[np.argsort(tie_keys(others, derive(5, f"epoch {epoch}")))[:200]]
        assert drawn(epoch).tolist() == sorted([*fixed, *lowest])


def test_another_epoch_or_seed_is_another_draw_and_the_same_is_the_same() -> None:
    assert drawn(2).tolist() == drawn(2).tolist()
    assert drawn(2).tolist() != drawn(3).tolist()
    assert drawn(2).tolist() != drawn(2, seed=6).tolist()


def test_an_id_that_was_not_drawn_leaves_the_others_as_they_are() -> None:
    without = np.setdiff1d(IDS, np.setdiff1d(IDS, drawn(0))[:50])
    assert drawn(0, ids=without).tolist() == drawn(0).tolist()


def test_every_other_sample_is_drawn_as_often() -> None:
    times = sum(np.isin(IDS, drawn(epoch)).astype(int) for epoch in range(400))
    others = times[~np.isin(IDS, IDS[::3][:100])]
    share = 200 / len(others)
    assert others.sum() == 400 * 200
    assert np.abs(others / 400 - share).max() < 5 * np.sqrt(share * (1 - share) / 400)


def test_a_rule_tells_draws_apart() -> None:
    fixed = IDS[:10]
    rules = {
        EpochDraw(fixed_ids=ids, size=size, seed=seed).rule()
        for ids, size, seed in ((fixed, 20, 0), (fixed, 21, 0), (fixed, 20, 1), (IDS[:9], 20, 0))
    }
    assert len(rules) == 4


def test_what_a_coreset_picked_first_is_of_its_first_stages_and_highest_scores() -> None:
    rng = np.random.default_rng(0)
    ids, stages = np.arange(60) * 3, rng.integers(0, 3, 60).astype(np.int32)
    scores = rng.integers(0, 4, 60).astype(np.float32)
    coreset, ties = Coreset(ids=ids, stages=stages, scores=scores), dict(zip(ids, tie_keys(ids, 7), strict=True))
    order = sorted(range(60), key=lambda place: (stages[place], -scores[place], ties[ids[place]]))
    for count in (0, 1, 17, 60):
        assert coreset.first(count, 7).tolist() == sorted(ids[order[:count]])
