"""Laws of the drawn baselines: exact sizes, exact class counts, another seed another subset, no favour to position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.evaluation.baselines import matched_subset, random_subset

repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def population(classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and sorted ids with gaps."""
    return np.array(classes), np.arange(len(classes)) * 3 + 1


@repeatable
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**63), st.data())
def test_a_matched_subset_has_the_class_counts_it_was_asked_for(
    classes: list[int], seed: int, data: st.DataObject
) -> None:
    labels, ids = population(classes)
    counts = np.array([data.draw(st.integers(0, classes.count(number))) for number in range(5)])
    drawn = matched_subset(labels, ids, counts, seed)
    assert np.bincount(labels[(drawn - 1) // 3], minlength=5).tolist() == counts.tolist()
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert set(drawn.tolist()) <= set(ids.tolist())


@repeatable
@given(st.integers(0, 100), st.integers(0, 2**63))
def test_a_random_subset_is_sorted_and_of_the_size_it_was_asked_for(size: int, seed: int) -> None:
    ids = np.arange(100) * 7
    drawn = random_subset(ids, size, seed)
    assert len(drawn) == size
    assert drawn.tolist() == sorted(set(drawn.tolist()) & set(ids.tolist()))


@pytest.mark.parametrize("matched", [False, True])
def test_every_sample_is_drawn_about_as_often_and_the_order_of_the_ids_says_nothing(matched: bool) -> None:
    labels, ids = population([0, 1] * 100)
    shuffle = np.random.default_rng(0).permutation(len(ids))

    def draw(labels: np.ndarray, ids: np.ndarray, seed: int) -> list[int]:
        counts = np.array([30, 10])
        return (matched_subset(labels, ids, counts, seed) if matched else random_subset(ids, 40, seed)).tolist()

    times = np.zeros(200, int)
    for seed in range(400):
        drawn = draw(labels, ids, seed)
        assert drawn == draw(labels[shuffle], ids[shuffle], seed)
        times[[(number - 1) // 3 for number in drawn]] += 1
    for of_class, share in ((0, 0.3 if matched else 0.2), (1, 0.1 if matched else 0.2)):
        expected = 400 * share
        assert np.abs(times[labels == of_class] - expected).max() < 5 * np.sqrt(expected)
