"""Sets of samples as values: each says what the fold plan says, and none grows with the data set."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from typing import NoReturn

import numpy as np
import pytest

from unseen_ray.core.arrays import LabelArray
from unseen_ray.core.folds import Dealing, plan_folds
from unseen_ray.core.samples.id_sets import AllIds, ArrayIds, FoldIds, FoldSpec, IdSet, Outside, are_in, digest_of_rule
from unseen_ray.core.samples.population import Population, make_population
from unseen_ray.core.tasks import stage_zero_tasks


def population_of(size: int, holdout: float = 0.0, skipped: tuple[int, ...] = ()) -> Population:
    labels = np.random.default_rng(size).integers(0, 3, size)
    return make_population(labels, 3, holdout=holdout, seed=4, skipped=np.array(skipped, np.int64))


POPULATIONS = [population_of(37), population_of(101, holdout=0.3), population_of(101, holdout=0.3, skipped=(0, 50, 99))]


@pytest.mark.parametrize("population", POPULATIONS, ids=["all", "holdout", "holdout and skipped"])
@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("folds", [2, 3, 7])
def test_fold_ids_and_their_outside_follow_the_plan(population: Population, folds: int, stratify: bool) -> None:
    spec = FoldSpec(num_folds=folds, seed=11, stratify=stratify)
    plan = plan_folds(len(population), folds, 11, labels=population.labels_N if stratify else None)
    for fold in range(folds):
        inside = FoldIds(spec, fold).resolve(population)
        outside = Outside(FoldIds(spec, fold)).resolve(population)
        np.testing.assert_array_equal(inside, population.ids_N[plan.train_ids(fold)])
        np.testing.assert_array_equal(outside, population.ids_N[plan.unseen_ids(fold)])


@pytest.mark.parametrize("population", POPULATIONS, ids=["all", "holdout", "holdout and skipped"])
def test_no_set_holds_what_takes_no_part(population: Population) -> None:
    fold = FoldIds(FoldSpec(num_folds=4, seed=0), 1)
    for ids in (AllIds(), fold, Outside(fold), Outside(ArrayIds(population.ids_N[:5]))):
        resolved = ids.resolve(population)
        assert resolved.dtype == np.int64
        assert (np.diff(resolved) > 0).all()
        assert np.isin(resolved, population.ids_N).all()


@pytest.mark.parametrize("population", POPULATIONS, ids=["all", "holdout", "holdout and skipped"])
def test_all_array_and_outside(population: Population) -> None:
    chosen = population.ids_N[::3]
    np.testing.assert_array_equal(AllIds().resolve(population), population.ids_N)
    np.testing.assert_array_equal(ArrayIds(chosen).resolve(population), chosen)
    rest = Outside(ArrayIds(chosen)).resolve(population)
    np.testing.assert_array_equal(np.sort(np.concatenate([chosen, rest])), population.ids_N)
    np.testing.assert_array_equal(Outside(Outside(ArrayIds(chosen))).resolve(population), chosen)
    assert Outside(AllIds()).resolve(population).size == 0


def test_a_plan_is_not_taken_for_that_of_another_population() -> None:
    ids = FoldIds(FoldSpec(num_folds=3, seed=0), 0)
    for size in (30, 31, 300, 30):
        population = population_of(size)
        plan = plan_folds(size, 3, 0, labels=population.labels_N)
        np.testing.assert_array_equal(ids.resolve(population), plan.train_ids(0))


@pytest.mark.parametrize("train_on", ["fold", "complement"])
def test_a_task_of_stage_zero_does_not_grow_with_the_data(train_on: str) -> None:
    def pickled_sizes(size: int) -> list[int]:
        population = population_of(size)
        tasks = stage_zero_tasks(mode="unseen", spec=FoldSpec(num_folds=4, seed=0), train_on=train_on, repeats=2)
        assert sum(len(task.train.resolve(population)) for task in tasks) >= 2 * size
        return [len(pickle.dumps(task)) for task in tasks]

    assert pickled_sizes(100) == pickled_sizes(1_000_000)
    assert max(pickled_sizes(100)) < 1000


def test_a_set_survives_the_wire() -> None:
    population = POPULATIONS[1]
    fold = FoldIds(FoldSpec(num_folds=4, seed=9), 2)
    for ids in (AllIds(), fold, Outside(fold), ArrayIds(population.ids_N[:7])):
        copy = pickle.loads(pickle.dumps(ids))
        np.testing.assert_array_equal(copy.resolve(population), ids.resolve(population))


@pytest.mark.parametrize("population", POPULATIONS, ids=["all", "holdout", "holdout and skipped"])
@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("folds", [2, 5])
def test_blocks_are_dealt_out_as_evenly_as_one(population: Population, folds: int, stratify: bool) -> None:
    plan = plan_folds(len(population), folds, 11, labels=population.labels_N if stratify else None, block_rows=16)
    assert np.ptp(np.bincount(plan.fold_of_N, minlength=folds)) <= 1
    if stratify:
        counts = np.zeros((folds, 3), int)
        np.add.at(counts, (plan.fold_of_N, population.labels_N), 1)
        assert np.ptp(counts, axis=0).max() <= 1
    spec = FoldSpec(num_folds=folds, seed=11, stratify=stratify, block_rows=16)
    for fold in range(folds):
        np.testing.assert_array_equal(FoldIds(spec, fold).resolve(population), population.ids_N[plan.train_ids(fold)])


@pytest.mark.parametrize("disk", ["with room", "full", "none"])
def test_each_block_of_a_long_population_is_dealt_once(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    population, dealt = population_of(640 + 7), list[int]()
    deal = Dealing.folds_of

    def counted(dealing: Dealing, block: int, labels_M: LabelArray) -> LabelArray:
        dealt.append(block)
        return deal(dealing, block, labels_M)

    def refused(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Dealing, "folds_of", counted)
    if disk != "with room":
        monkeypatch.setattr(*((os, "pwrite") if disk == "full" else (tempfile, "TemporaryFile")), refused)
    spec = FoldSpec(num_folds=3, seed=2, block_rows=32)
    plan = plan_folds(len(population), 3, 2, labels=population.labels_N, block_rows=32)
    dealt.clear()
    for fold in (0, 1, 2, 0):
        np.testing.assert_array_equal(FoldIds(spec, fold).resolve(population), plan.train_ids(fold))
    assert dealt == (list(range(21)) if disk == "with room" else 4 * list(range(21)))


@pytest.mark.parametrize("population", POPULATIONS, ids=["all", "holdout", "holdout and skipped"])
def test_a_range_of_a_set_is_that_of_the_whole(population: Population) -> None:
    fold = FoldIds(FoldSpec(num_folds=3, seed=2, block_rows=16), 1)
    for ids in (
        AllIds(),
        fold,
        Outside(fold),
        ArrayIds(population.ids_N[::3]),
        Outside(ArrayIds(population.ids_N[::3])),
    ):
        whole = ids.resolve(population)
        for low, high in ((0, 200), (-5, 3), (15, 17), (16, 32), (40, 40), (30, 20), (36, 300), (500, 600)):
            part = ids.within(population, low, high)
            assert part.tolist() == whole[(whole >= low) & (whole < high)].tolist()
        numbers = np.array([7, 10**15, -1, 0, 36, 50, 7, 2**62])
        assert are_in(numbers, ids, population).tolist() == np.isin(numbers, whole).tolist()
    assert not are_in(np.empty(0, np.int64), fold, population).size


def test_a_rule_names_what_determines_a_set() -> None:
    spec, whole = FoldSpec(num_folds=3, seed=2), POPULATIONS[0]
    sets: list[IdSet] = [AllIds(), ArrayIds(np.arange(3)), ArrayIds(np.arange(4))]
    sets += [FoldIds(spec, 0), FoldIds(spec, 1), FoldIds(FoldSpec(num_folds=3, seed=3), 0)]
    sets += [Outside(each) for each in sets]
    names = [digest_of_rule(each, population) for each in sets for population in POPULATIONS]
    assert len(set(names)) == len(names)
    assert digest_of_rule(FoldIds(spec, 1), whole) == digest_of_rule(FoldIds(FoldSpec(num_folds=3, seed=2), 1), whole)
