"""Laws of groups: never in two folds, never on both sides of the holdout, and as even as they allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from unseen_ray.core.folds import plan_folds
from unseen_ray.core.samples.dealing import deal_groups, draw_groups
from unseen_ray.core.samples.groups import Groups, first_of_groups, is_related
from unseen_ray.core.samples.id_sets import FoldIds, FoldSpec, Outside, digest_of_rule
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError

repeatable = settings(derandomize=True, deadline=None, max_examples=150)
SIZES = (2, 5, 17, 60, 301)
SPREADS = (1, 2, 3, 20)  # samples of a group on average


def random_groups(size: int, spread: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, size, spread)).integers(0, max(size // spread, 1), size)


def folds_of(
    size: int, groups: np.ndarray, folds: int, *, labels: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    return plan_folds(size, folds, seed, labels=labels, groups=groups).fold_of_N


def largest(groups: np.ndarray) -> int:
    return int(np.unique(groups, return_counts=True)[1].max())


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("size", SIZES)
def test_no_group_is_in_two_folds_and_every_sample_is_in_one(size: int, spread: int, stratify: bool) -> None:
    groups = random_groups(size, spread)
    labels = np.random.default_rng(size).integers(0, 3, size) if stratify else None
    for folds in {2, 3, min(size, 10)} - {0, 1}:
        if folds > size:
            continue
        fold_of = folds_of(size, groups, folds, labels=labels)
        assert ((fold_of >= 0) & (fold_of < folds)).all()
        for group in np.unique(groups):
            assert len(np.unique(fold_of[groups == group])) == 1


@repeatable
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(2, 6), st.integers(0, 2**32))
def test_without_classes_sizes_differ_by_at_most_the_largest_group(members: list[int], folds: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(members)), members)
    _, sizes = deal_groups(groups, np.zeros(len(groups), np.int64), folds, seed)
    assert sizes.max() - sizes.min() <= max(members)
    assert sizes.sum() == len(groups)


@repeatable
@given(st.data(), st.integers(2, 6))
def test_each_class_differs_by_at_most_its_largest_group(data: st.DataObject, folds: int) -> None:
    members = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=30))
    groups = np.repeat(np.arange(len(members)), [count for count, _ in members])
    classes = np.repeat([number for _, number in members], [count for count, _ in members])
    fold_of, _ = deal_groups(groups, classes, folds, 0)
    for number in set(classes.tolist()):
        counts = np.bincount(fold_of[classes == number], minlength=folds)
        assert counts.max() - counts.min() <= max(count for count, of in members if of == number)


def test_samples_alone_level_what_the_groups_leave_uneven() -> None:
    groups = np.concatenate([np.zeros(40, int), np.ones(30, int), np.arange(2, 132)])
    fold_of = folds_of(200, groups, 4)
    assert np.bincount(fold_of).tolist() == [50, 50, 50, 50]


@pytest.mark.parametrize("spread", [2, 5])
def test_as_even_as_scikit_learn_deals_them(spread: int) -> None:
    """The summed difference of class counts from an even share, over many random cases."""
    ours = theirs = 0.0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        of_group = rng.integers(0, 4, 300 // spread)
        groups = rng.integers(0, 300 // spread, 300)
        labels = of_group[groups]
        share = np.bincount(labels, minlength=4) / 5
        dealt = folds_of(300, groups, 5, labels=labels, seed=seed)
        ours += sum(np.abs(np.bincount(labels[dealt == fold], minlength=4) - share).sum() for fold in range(5))
        split = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        theirs += sum(np.abs(np.bincount(labels[test], minlength=4) - share).sum() for _, test in split)
    assert ours <= theirs


def test_names_of_groups_do_not_matter_and_the_seed_does() -> None:
    groups, labels = random_groups(300, 3), np.arange(300) % 4
    fold_of = folds_of(300, groups, 4, labels=labels)
    renamed = np.random.default_rng(0).permutation(1000)[groups] - 500
    np.testing.assert_array_equal(folds_of(300, renamed, 4, labels=labels), fold_of)
    assert (folds_of(300, groups, 4, labels=labels, seed=1) != fold_of).any()


def test_groups_of_one_change_nothing() -> None:
    labels = np.arange(50) % 3
    plain = plan_folds(50, 4, 7, labels=labels).fold_of_N
    np.testing.assert_array_equal(folds_of(50, np.arange(50)[::-1], 4, labels=labels, seed=7), plain)


def test_a_list_of_groups_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="groups has 3 entries for 10 samples"):
        plan_folds(10, 2, groups=np.zeros(3, int))


@repeatable
@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), st.floats(0.05, 0.9), st.integers(0, 2**32), st.data())
def test_the_holdout_takes_whole_groups_no_more_than_its_share_and_no_class_whole(
    names: list[int], fraction: float, seed: int, data: st.DataObject
) -> None:
    size = len(names)
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    groups = Groups(of_R=first_of_groups(np.array(names)))
    population = make_population(labels, 3, holdout=fraction, seed=seed, groups=groups)
    held, kept = np.array(names)[population.holdout_ids], np.array(names)[population.ids_N]
    assert not set(held.tolist()) & set(kept.tolist())
    assert len(held) <= sum(min(round(fraction * n), max(n - 1, 0)) for n in np.bincount(labels).tolist())
    assert set(labels[population.ids_N].tolist()) == set(labels.tolist())


@pytest.mark.parametrize(("patients", "each", "classes"), [(10, 100, 10), (100, 100, 10), (50, 100, 100), (10, 100, 2)])
def test_patients_with_images_of_several_classes_fill_the_holdout(patients: int, each: int, classes: int) -> None:
    size = patients * each
    rng = np.random.default_rng(0)
    groups = Groups(of_R=first_of_groups(rng.permutation(np.repeat(np.arange(patients), each))))
    population = make_population(rng.integers(0, classes, size), classes, holdout=0.2, seed=1, groups=groups)
    assert 0.15 * size <= len(population.holdout_ids) <= 0.2 * size + classes / 2


def test_a_smaller_group_is_drawn_where_a_larger_one_does_not_fit() -> None:
    groups = np.repeat([0, 3, 4, 6], [3, 1, 2, 2])
    keys = np.arange(8, dtype=np.uint64)  # in the order of the groups
    drawn = draw_groups(groups, np.zeros(8, np.int64), np.array([3]), keys)
    assert drawn.tolist() == [0, 1, 2]
    assert draw_groups(groups, np.zeros(8, np.int64), np.array([2]), keys).tolist() == [3]
    assert draw_groups(groups[3:], np.zeros(5, np.int64), np.array([4]), keys[3:]).tolist() == [0, 1, 2]


def test_mixed_groups_come_in_turn_with_others() -> None:
    """Of 400 pairs, half of them of two classes, the holdout has some of both kinds."""
    classes = np.array([[0, 0], [1, 1], [0, 1], [1, 0]] * 100).ravel()
    groups = Groups(of_R=np.arange(800) // 2 * 2)
    population = make_population(classes, 2, holdout=0.2, seed=0, groups=groups)
    assert len(population.holdout_ids) == 160
    mixed = (population.holdout_ids % 8 >= 4).mean()
    assert 0.3 < mixed < 0.7


def test_of_samples_alone_the_holdout_is_the_one_without_groups() -> None:
    labels = np.arange(200) % 7
    plain = make_population(labels, 7, holdout=0.2, seed=3).holdout_ids
    ids = np.arange(200)
    keys = tie_keys(ids, derive(3, "holdout"))
    quota = np.minimum(np.round(0.2 * np.bincount(labels)), np.bincount(labels) - 1).astype(int)
    np.testing.assert_array_equal(draw_groups(ids, labels, quota, keys), plain)


def test_of_copies_one_that_can_be_read_stays() -> None:
    groups = Groups(of_R=np.array([0, 0, 2, 0, 2, 5]), drop=True)
    population = make_population(np.zeros(6, int), 1, groups=groups)
    assert sorted(groups.of_R[population.ids_N].tolist()) == [0, 2, 5]  # type: ignore[index]
    left = make_population(np.zeros(6, int), 1, groups=groups, skipped=population.ids_N[:2])
    assert sorted(groups.of_R[left.ids_N].tolist()) == [0, 2, 5]  # type: ignore[index]
    assert len(left.copy_ids) == 1


def test_of_copies_in_two_classes_neither_class_is_preferred() -> None:
    """Also where ids follow the classes, as they do in folders."""
    groups = Groups(of_R=np.tile(np.arange(500), 2), drop=True)
    labels = np.repeat([0, 1], 500)
    kept = np.bincount(labels[make_population(labels, 2, groups=groups).ids_N])
    assert kept.sum() == 500
    assert 200 < kept[0] < 300


@pytest.mark.parametrize("stratify", [False, True])
def test_ranges_of_a_fold_are_those_of_the_whole(stratify: bool) -> None:
    labels = np.arange(500) % 5
    groups = Groups(of_R=first_of_groups(random_groups(500, 3)))
    population = make_population(labels, 5, holdout=0.1, seed=1, groups=groups, skipped=np.array([3, 77]))
    spec = FoldSpec(num_folds=4, seed=9, stratify=stratify, block_rows=64)
    folds = [FoldIds(spec, fold) for fold in range(4)]
    np.testing.assert_array_equal(
        np.sort(np.concatenate([each.resolve(population) for each in folds])), population.ids_N
    )
    for each in folds:
        whole = each.resolve(population)
        pieces = [each.within(population, low, low + 37) for low in range(0, 500, 37)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        inside, outside = groups.of_R[whole], groups.of_R[Outside(each).resolve(population)]  # type: ignore[index]
        assert not set(inside.tolist()) & set(outside.tolist())


def test_the_rule_of_a_long_run_names_its_groups() -> None:
    labels, spec = np.zeros(40, int), FoldSpec(num_folds=2, seed=0)
    populations = [make_population(labels, 1, groups=Groups(of_R=np.arange(40) // size * size)) for size in (2, 4)]
    plain = make_population(labels, 1)
    rules = {digest_of_rule(FoldIds(spec, 0), each) for each in (*populations, plain)}
    assert len(rules) == 3
    assert digest_of_rule(FoldIds(spec, 0), plain).endswith(plain.excluded_digest)  # as stored runs have it


def test_related_samples_are_those_of_the_same_groups() -> None:
    assert is_related(np.array([0, 1, 0, 3, 1]), np.array([2])).tolist() == [True, False, True, False, False]
