"""The unit of work: how tasks are numbered, what they train on and score, and that a leak is refused."""

from __future__ import annotations

import numpy as np
import pytest

from unseen_ray.core.folds import plan_folds
from unseen_ray.core.samples.id_sets import ArrayIds, FoldSpec
from unseen_ray.core.samples.population import Population, make_population
from unseen_ray.core.tasks import EvalTask, ScoreTask, check_unseen, later_tasks, stage_zero_tasks
from unseen_ray.errors import LeakError

GEOMETRIES = ("fold", "complement")


def population_of(size: int = 41, holdout: float = 0.2) -> Population:
    return make_population(np.random.default_rng(0).integers(0, 3, size), 3, holdout=holdout)


def stage_zero(folds: int = 3, train_on: str = "fold", repeats: int = 1, mode: str = "unseen") -> list[ScoreTask]:
    return stage_zero_tasks(mode=mode, spec=FoldSpec(num_folds=folds, seed=2), train_on=train_on, repeats=repeats)


def sides(task: ScoreTask, population: Population) -> tuple[np.ndarray, np.ndarray]:
    return task.train.resolve(population), task.scored.resolve(population)


def assert_same_pairs(tasks: list[ScoreTask], others: list[ScoreTask], population: Population) -> None:
    def as_set(of: list[ScoreTask]) -> set[tuple[bytes, bytes, int]]:
        return {(*(ids.tobytes() for ids in sides(task, population)), task.repeat) for task in of}

    assert as_set(tasks) == as_set(others)


@pytest.mark.parametrize("train_on", GEOMETRIES)
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_stage_zero_numbers_its_tasks_fold_by_fold(folds: int, repeats: int, train_on: str) -> None:
    tasks = stage_zero(folds, train_on, repeats)
    assert [task.index for task in tasks] == list(range(folds * repeats))
    assert [(task.fold, task.repeat) for task in tasks] == [(k, r) for k in range(folds) for r in range(repeats)]
    assert {task.stage for task in tasks} == {0}
    assert {task.mode for task in tasks} == {"unseen"}
    assert len({task.name for task in tasks}) == len(tasks)


@pytest.mark.parametrize("train_on", GEOMETRIES)
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_stage_zero_follows_the_plan(folds: int, train_on: str) -> None:
    population = population_of()
    plan = plan_folds(len(population), folds, 2, labels=population.labels_N, train_on=train_on)
    for task in stage_zero(folds, train_on, repeats=2):
        train, scored = sides(task, population)
        np.testing.assert_array_equal(train, population.ids_N[plan.train_ids(task.fold)])
        np.testing.assert_array_equal(scored, population.ids_N[plan.unseen_ids(task.fold)])
        assert not np.intersect1d(scored, population.holdout_ids).size
        assert not np.intersect1d(train, population.holdout_ids).size


def test_the_geometries_coincide_at_two_folds() -> None:
    assert_same_pairs(stage_zero(2, "fold", 2), stage_zero(2, "complement", 2), population_of())


@pytest.mark.parametrize("train_on", GEOMETRIES)
@pytest.mark.parametrize("repeats", [1, 3])
def test_fitting_is_one_model_of_all_data_that_scores_all_data(repeats: int, train_on: str) -> None:
    population = population_of()
    tasks = stage_zero(4, train_on, repeats, mode="fitting")
    assert [(task.index, task.repeat, task.fold, task.mode) for task in tasks] == [
        (repeat, repeat, None, "fitting") for repeat in range(repeats)
    ]
    for task in tasks:
        train, scored = sides(task, population)
        np.testing.assert_array_equal(train, population.ids_N)
        np.testing.assert_array_equal(scored, population.ids_N)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_later_stage_trains_on_the_coreset_and_scores_the_rest(repeats: int) -> None:
    population = population_of()
    coreset = population.ids_N[::4]
    tasks = later_tasks(stage=2, coreset=ArrayIds(coreset), repeats=repeats)
    assert [(task.stage, task.index, task.repeat, task.fold) for task in tasks] == [
        (2, repeat, repeat, None) for repeat in range(repeats)
    ]
    for task in tasks:
        train, scored = sides(task, population)
        np.testing.assert_array_equal(train, coreset)
        np.testing.assert_array_equal(scored, np.setdiff1d(population.ids_N, coreset))
        assert task.mode == "unseen"


def all_unseen_tasks(population: Population) -> list[ScoreTask]:
    later = later_tasks(stage=1, coreset=ArrayIds(population.ids_N[::4]), repeats=2)
    return stage_zero(3, "fold", 2) + stage_zero(3, "complement") + later


def test_unseen_ids_pass_whole_in_part_and_in_any_order() -> None:
    population = population_of()
    for task in all_unseen_tasks(population):
        scored = task.scored.resolve(population)
        for ids in (scored, scored[::-1], scored[:1], scored[:0]):
            check_unseen(task, ids, population)


def test_a_planted_leak_is_refused() -> None:
    population = population_of()
    for task in all_unseen_tasks(population):
        train, scored = sides(task, population)
        for leaked in (train[:1], train[-2:], train):
            message = f"scored {len(leaked)} samples that its own model was trained on; the first is id {leaked[0]}"
            with pytest.raises(LeakError, match=f"{task.name} {message}"):
                check_unseen(task, np.concatenate([scored, leaked]), population)


@pytest.mark.parametrize("mode", ["unseen", "fitting"])
def test_ids_that_were_not_asked_for_are_refused(mode: str) -> None:
    population = population_of()
    for task in stage_zero(3, mode=mode):
        for strangers in (population.holdout_ids[:1], population.holdout_ids, np.array([10**6])):
            ids = np.concatenate([task.scored.resolve(population), strangers])
            message = f"scored {len(strangers)} samples that it was not asked for; the first is id {strangers[0]}"
            with pytest.raises(LeakError, match=message):
                check_unseen(task, ids, population)


def test_fitting_may_score_what_it_was_trained_on() -> None:
    population = population_of()
    (task,) = stage_zero(mode="fitting")
    check_unseen(task, population.ids_N, population)


def test_names_say_which_task_it_is() -> None:
    assert [task.name for task in stage_zero(2, repeats=2)] == [
        "stage 0 fold 0",
        "stage 0 fold 0 repeat 1",
        "stage 0 fold 1",
        "stage 0 fold 1 repeat 1",
    ]
    (later,) = later_tasks(stage=3, coreset=ArrayIds(np.arange(4)), repeats=1)
    assert later.name == "stage 3"
    assert EvalTask(index=0, arm="random", selection=0, repeat=2, train=later.train).name == "random seed 2"
    again = EvalTask(index=0, arm="random", selection=1, repeat=2, train=later.train)
    assert again.name == "random selection 1 seed 2"


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(("folds", "votes"), [(3, 1), (5, 1), (5, 3), (7, 2)])
def test_capped_votes_are_as_many_for_every_sample(folds: int, votes: int, repeats: int) -> None:
    population, spec = population_of(), FoldSpec(num_folds=folds, seed=2)
    tasks = stage_zero_tasks(mode="unseen", spec=spec, train_on="fold", repeats=repeats, votes=votes)
    assert len(tasks) == folds * repeats
    given = np.zeros(len(population.labels_R), np.int64)
    for task in tasks:
        train, scored = sides(task, population)
        assert not np.intersect1d(train, scored).size
        assert (np.diff(scored) > 0).all()
        given[scored] += 1
    assert set(given[population.ids_N]) == {votes * repeats}
    assert given.sum() == votes * repeats * len(population)


def test_all_votes_by_their_number_are_the_tasks_without_a_cap() -> None:
    population, spec = population_of(), FoldSpec(num_folds=4, seed=2)
    capped = stage_zero_tasks(mode="unseen", spec=spec, train_on="fold", repeats=1, votes=3, models=4)
    for task, other in zip(capped, stage_zero(4), strict=True):
        assert task.scored.rule() == other.scored.rule()
        assert_same_pairs([task], [other], population)


@pytest.mark.parametrize(("folds", "models"), [(3, 2), (5, 2), (5, 4), (7, 3)])
def test_with_fewer_models_every_sample_has_one_vote_less_than_there_are_models(folds: int, models: int) -> None:
    population, spec = population_of(), FoldSpec(num_folds=folds, seed=2)
    tasks = stage_zero_tasks(mode="unseen", spec=spec, train_on="fold", repeats=1, models=models)
    assert [task.fold for task in tasks] == list(range(models))
    given = np.zeros(len(population.labels_R), np.int64)
    for task in tasks:
        train, scored = sides(task, population)
        assert not set(train) & set(scored)
        given[scored] += 1
    assert set(given[population.ids_N]) == {models - 1}
