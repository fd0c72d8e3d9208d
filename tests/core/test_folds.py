"""Laws of the fold plan: disjoint, covering, even, stratified, and nothing both trained on and scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.core.folds import FoldPlan, plan_folds
from unseen_ray.errors import ConfigError

GEOMETRIES = ("fold", "complement")
PAIRS = [(size, folds) for size in (2, 3, 7, 10, 53) for folds in range(2, size + 1)] + [
    (1003, k) for k in (2, 3, 7, 10)
]
repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def random_labels(size: int, classes: int, seed: int = 0) -> np.ndarray:
    """Labels of classes of very different sizes, some smaller than the number of folds."""
    weights = 1.0 / np.arange(1, classes + 1) ** 2
    return np.random.default_rng((seed, size)).choice(classes, size, p=weights / weights.sum())


def folds_of(plan: FoldPlan) -> list[np.ndarray]:
    side = plan.train_ids if plan.train_on == "fold" else plan.unseen_ids
    return [side(fold) for fold in range(plan.num_folds)]


def assert_even_partition(plan: FoldPlan, size: int) -> None:
    folds = folds_of(plan)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(size))
    sizes = [len(ids) for ids in folds]
    assert max(sizes) - min(sizes) <= 1


def assert_stratified(plan: FoldPlan, labels: np.ndarray) -> None:
    classes = int(labels.max()) + 1
    counts_KC = np.array([np.bincount(labels[ids], minlength=classes) for ids in folds_of(plan)])
    assert (counts_KC.max(axis=0) - counts_KC.min(axis=0) <= 1).all()


def assert_sides_complementary(plan: FoldPlan, size: int) -> None:
    for fold in range(plan.num_folds):
        train, unseen = plan.train_ids(fold), plan.unseen_ids(fold)
        assert train.dtype == unseen.dtype == np.int64
        assert (np.diff(train) > 0).all() and (np.diff(unseen) > 0).all()
        np.testing.assert_array_equal(np.sort(np.concatenate([train, unseen])), np.arange(size))


@pytest.mark.parametrize("train_on", GEOMETRIES)
@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize(("size", "folds"), PAIRS)
def test_every_plan_is_an_even_partition(size: int, folds: int, stratify: bool, train_on: str) -> None:
    labels = random_labels(size, 5) if stratify else None
    plan = plan_folds(size, folds, 3, labels=labels, train_on=train_on)
    assert plan.fold_of_N.shape == (size,)
    assert plan.num_folds == folds
    assert_even_partition(plan, size)
    assert_sides_complementary(plan, size)
    if labels is not None:
        assert_stratified(plan, labels)


@repeatable
@given(st.data())
def test_laws_hold_for_any_labels(data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=60)))
    folds = data.draw(st.integers(2, len(labels)))
    seed = data.draw(st.integers(0, 2**64 - 1))
    plan = plan_folds(len(labels), folds, seed, labels=labels, train_on=data.draw(st.sampled_from(GEOMETRIES)))
    assert_even_partition(plan, len(labels))
    assert_sides_complementary(plan, len(labels))
    assert_stratified(plan, labels)


@pytest.mark.parametrize(("size", "folds"), [(10, 3), (53, 5), (1003, 7)])
def test_fold_gives_k_minus_one_votes_and_complement_one(size: int, folds: int) -> None:
    for train_on, votes in (("fold", folds - 1), ("complement", 1)):
        plan = plan_folds(size, folds, train_on=train_on)
        scored = np.concatenate([plan.unseen_ids(fold) for fold in range(folds)])
        np.testing.assert_array_equal(np.bincount(scored, minlength=size), np.full(size, votes))


@pytest.mark.parametrize(("size", "folds"), [(10, 3), (53, 5)])
def test_the_geometries_are_mirror_images(size: int, folds: int) -> None:
    fold, complement = (plan_folds(size, folds, 1, train_on=train_on) for train_on in GEOMETRIES)
    for index in range(folds):
        np.testing.assert_array_equal(fold.train_ids(index), complement.unseen_ids(index))
        np.testing.assert_array_equal(fold.unseen_ids(index), complement.train_ids(index))


@pytest.mark.parametrize("size", [2, 9, 50])
def test_the_geometries_coincide_at_two_folds(size: int) -> None:
    def pairs(train_on: str) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        plan = plan_folds(size, 2, 5, labels=random_labels(size, 3), train_on=train_on)
        return {(tuple(plan.train_ids(fold)), tuple(plan.unseen_ids(fold))) for fold in range(2)}

    assert pairs("fold") == pairs("complement")
    assert len(pairs("fold")) == 2


@pytest.mark.parametrize("stratify", [False, True])
def test_the_same_arguments_give_the_same_plan_and_another_seed_another(stratify: bool) -> None:
    labels = random_labels(100, 4) if stratify else None
    plans = [plan_folds(100, 4, seed, labels=labels).fold_of_N for seed in (0, 0, 1, 2)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert all((plans[0] != other).any() for other in plans[2:])


def test_folds_do_not_follow_the_order_of_the_ids() -> None:
    fold_of_N = plan_folds(10_000, 4, 0).fold_of_N
    per_block = np.array([np.bincount(block, minlength=4) for block in np.split(fold_of_N, 10)])
    assert (np.abs(per_block - 250) < 100).all()
    assert (per_block != 250).any()
    neighbours_together = (fold_of_N[1:] == fold_of_N[:-1]).mean()
    assert 0.2 < neighbours_together < 0.3


@pytest.mark.parametrize(("size", "folds"), [(10, 1), (10, 0), (10, -2), (10, 11), (1, 2)])
def test_impossible_folds_are_refused(size: int, folds: int) -> None:
    with pytest.raises(ConfigError, match=rf"folds={folds} is outside 2\.\.{size} \(the number of samples\)"):
        plan_folds(size, folds)


@pytest.mark.parametrize("length", [0, 9, 11])
def test_labels_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"labels has {length} entries for 10 samples"):
        plan_folds(10, 2, labels=np.zeros(length, np.int64))


def test_an_unknown_geometry_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_on='both' is neither 'fold' nor 'complement'"):
        plan_folds(10, 2, train_on="both")


def test_labels_may_be_any_integers() -> None:
    ranks = np.random.default_rng(0).integers(0, 4, 50)
    for names in (np.array([-7, 0, 3, 10**9]), np.array([-4, -3, -2, -1])):
        plan = plan_folds(50, 3, 1, labels=names[ranks])
        np.testing.assert_array_equal(plan.fold_of_N, plan_folds(50, 3, 1, labels=ranks).fold_of_N)
    assert plan_folds(6, 2, labels=[0, 0, 1, 1, 2, 2]).fold_of_N.tolist().count(0) == 3  # type: ignore[arg-type]
