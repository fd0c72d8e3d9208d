"""Laws of the population: what the holdout takes, what is skipped, and that ids stay row numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.core.samples.population import Population, make_population
from unseen_ray.core.seeds import derive, tie_keys

repeatable = settings(derandomize=True, deadline=None, max_examples=100)
FRACTIONS = [0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 0.999]


def uneven_labels(seed: int = 0) -> np.ndarray:
    """Classes of 100, 1, 2, 5, 0 and 30 samples, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(6), [100, 1, 2, 5, 0, 30]))


def literal_holdout(labels: np.ndarray, ids: list[int], fraction: float, seed: int) -> set[int]:
    """In each class those of the lowest keys, never the last sample."""
    key = dict(zip(ids, tie_keys(np.array(ids, np.int64), derive(seed, "holdout")).tolist(), strict=True))
    held = set()
    for number in set(labels.tolist()):
        members = sorted((id for id in ids if labels[id] == number), key=lambda id: key[id])
        held |= set(members[: min(round(fraction * len(members)), max(len(members) - 1, 0))])
    return held


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_each_class_gives_its_rounded_share_but_never_its_last_sample(fraction: float, seed: int) -> None:
    labels = uneven_labels()
    population = make_population(labels, 6, holdout=fraction, seed=seed)
    held = np.bincount(labels[population.holdout_ids], minlength=6)
    for count, given_away in zip(np.bincount(labels, minlength=6).tolist(), held.tolist(), strict=True):
        assert given_away == min(round(fraction * count), max(count - 1, 0))


@repeatable
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.99), st.integers(0, 2**32), st.data())
def test_which_samples_are_held_is_a_function_of_seed_and_id(
    classes: list[int], fraction: float, seed: int, data: st.DataObject
) -> None:
    labels = np.array(classes)
    skipped = data.draw(st.sets(st.integers(0, len(labels) - 1), max_size=len(labels) - 1))
    population = make_population(labels, 5, holdout=fraction, seed=seed, skipped=np.array(sorted(skipped), np.int64))
    ids = [id for id in range(len(labels)) if id not in skipped]
    held = literal_holdout(labels, ids, fraction, seed)
    assert set(population.holdout_ids.tolist()) == held
    assert population.ids_N.tolist() == [id for id in ids if id not in held]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_holdout_and_population_share_nothing_and_cover_everything(fraction: float) -> None:
    labels = uneven_labels()
    population = make_population(labels, 6, holdout=fraction)
    assert not np.intersect1d(population.ids_N, population.holdout_ids).size
    np.testing.assert_array_equal(np.union1d(population.ids_N, population.holdout_ids), np.arange(len(labels)))
    assert (np.diff(population.ids_N) > 0).all()
    assert (np.diff(population.holdout_ids) > 0).all()
    assert len(population) == len(population.ids_N)


def test_a_class_does_not_notice_the_other_classes() -> None:
    labels = uneven_labels()
    others = np.where(labels == 0, 0, np.random.default_rng(1).integers(1, 6, len(labels)))
    one, other = (make_population(values, 6, holdout=0.25, seed=3) for values in (labels, others))
    assert set(one.holdout_ids[labels[one.holdout_ids] == 0]) == set(other.holdout_ids[others[other.holdout_ids] == 0])


def test_a_larger_holdout_contains_the_smaller() -> None:
    labels = uneven_labels()
    held = [set(make_population(labels, 6, holdout=fraction).holdout_ids.tolist()) for fraction in FRACTIONS]
    assert all(smaller <= larger for smaller, larger in pairwise(held))
    assert held[0] == set() and held[-1]


def test_another_seed_holds_others() -> None:
    labels = uneven_labels()
    one, same, other = (make_population(labels, 6, holdout=0.5, seed=seed).holdout_ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_skipped_rows_are_gone_and_ids_stay_row_numbers(fraction: float) -> None:
    labels = uneven_labels()
    skipped = np.array([130, 3, 77, 4])
    population = make_population(labels, 6, holdout=fraction, skipped=skipped)
    everything = np.union1d(population.ids_N, population.holdout_ids)
    np.testing.assert_array_equal(everything, np.setdiff1d(np.arange(len(labels)), skipped))
    np.testing.assert_array_equal(population.labels_N, labels[population.ids_N])
    assert population.ids_N.dtype == population.holdout_ids.dtype == np.int64


def test_nothing_skipped_is_the_same_as_none() -> None:
    labels = uneven_labels()
    plain, empty = make_population(labels, 6), make_population(labels, 6, skipped=np.empty(0, np.int64))
    np.testing.assert_array_equal(plain.ids_N, empty.ids_N)
    np.testing.assert_array_equal(plain.ids_N, np.arange(len(labels)))


def small_population() -> Population:
    return make_population(np.array([0, 1, 1, 3, 0, 1]), 5, skipped=np.array([1]))


def test_class_counts() -> None:
    population = small_population()
    assert population.class_counts().tolist() == [2, 2, 0, 1, 0]
    assert population.class_counts(np.array([2, 3])).tolist() == [0, 1, 0, 1, 0]
    assert population.class_counts(np.empty(0, np.int64)).tolist() == [0] * 5


def test_labels_of_ids_in_any_order() -> None:
    assert small_population().labels_of(np.array([5, 0, 3])).tolist() == [1, 0, 3]


@pytest.mark.parametrize("stranger", [1, 6, 10**9])
def test_labels_of_an_id_that_takes_no_part(stranger: int) -> None:
    with pytest.raises(ValueError, match=f"1 ids are not among the 5 allowed ones; the first is {stranger}"):
        small_population().labels_of(np.array([0, stranger]))


def test_labels_of_a_held_out_id() -> None:
    population = make_population(uneven_labels(), 6, holdout=0.5)
    with pytest.raises(ValueError, match=f"the first is {population.holdout_ids[0]}"):
        population.labels_of(population.holdout_ids)


@pytest.mark.parametrize("holdout", [0.0, 0.23])
@pytest.mark.parametrize("skipped", [(), (3, 500, 999)])
def test_one_that_is_read_by_ranges_is_the_same(holdout: float, skipped: tuple[int, ...]) -> None:
    labels = np.random.default_rng(1).integers(0, 7, 1000)
    fields = {"holdout": holdout, "seed": 3, "skipped": np.array(skipped, np.int64)}
    whole = make_population(labels, 7, **fields)
    narrow = make_population(labels.astype(np.uint8), 7, **fields, chunk_rows=64)
    for name in ("ids_N", "labels_N", "holdout_ids", "excluded_ids"):
        np.testing.assert_array_equal(getattr(narrow, name), getattr(whole, name))
        assert getattr(narrow, name).dtype == np.int64
    np.testing.assert_array_equal(narrow.class_counts(), np.bincount(whole.labels_N, minlength=7))
    places = [narrow.id_at(place) for place in range(len(narrow) + 1)]
    assert places == [*whole.ids_N.tolist(), 1000]
    assert [narrow.place_of(number) for number in range(1001)] == np.searchsorted(whole.ids_N, range(1001)).tolist()
    for low, high in ((-4, 5), (0, 1000), (499, 501), (990, 2000), (7, 7), (9, 3)):
        wanted = whole.ids_N[(whole.ids_N >= low) & (whole.ids_N < high)]
        assert narrow.ids_within(low, high).tolist() == wanted.tolist()
