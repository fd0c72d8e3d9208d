"""Laws of the merge: free of the order of arrival, equal to slow loops, and strict about gaps, conflicts and damage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.core import combine_votes
from unseen_ray.core.combine_votes import ScoreTable, VoteCombiner, log_of_probs
from unseen_ray.core.predictions import EpochView
from unseen_ray.core.samples.id_sets import FoldSpec
from unseen_ray.core.samples.population import Population, make_population
from unseen_ray.core.scores import entropy, loss
from unseen_ray.core.stats import mean_ranks
from unseen_ray.core.tasks import VotePart, stage_zero_tasks
from unseen_ray.errors import IncompleteScoreError

CLASSES = 3
FUNCTIONS = {"fine": entropy, "coarse": loss}
GRID = [(size, folds, geometry, repeats)
        for size, folds in ((7, 2), (11, 3), (23, 5), (50, 7))
        for geometry in ("fold", "complement")
        for repeats in (1, 2)]  # fmt: skip
each_case = pytest.mark.parametrize("case", GRID, ids=lambda case: "-".join(map(str, case)))
Case = tuple[int, int, str, int]


def population_of(size: int) -> Population:
    """Ids with holes: a fifth is held out."""
    return make_population(np.random.default_rng(size).integers(0, CLASSES, size), CLASSES, holdout=0.2)


def vote_part(index: int, ids: np.ndarray, *, seed: int = 0) -> VotePart:
    """Made-up votes: one score that never ties, one that often does, top probabilities in eighths."""
    rng = np.random.default_rng((seed, index))
    count = len(ids)
    return VotePart(
        index=index,
        ids_M=ids,
        pred_M=rng.integers(0, CLASSES, count),
        p_top_M=(rng.integers(3, 9, count) / 8).astype(np.float32),
        p_label_M=rng.random(count).astype(np.float32),
        scores={
            "fine": rng.normal(size=count).astype(np.float32),
            "coarse": rng.integers(0, 3, count).astype(np.float32),
        },
        probs_MC=rng.dirichlet(np.ones(CLASSES), count).astype(np.float32),
    )


def parts_of(case: Case) -> tuple[Population, list[VotePart]]:
    size, folds, geometry, repeats = case
    population = population_of(size)
    tasks = stage_zero_tasks(mode="unseen", spec=FoldSpec(num_folds=folds, seed=1), train_on=geometry, repeats=repeats)
    return population, [vote_part(task.index, task.scored.resolve(population), seed=size) for task in tasks]


def votes_each(case: Case) -> int:
    _, folds, geometry, repeats = case
    return repeats * (folds - 1 if geometry == "fold" else 1)


def book_for(case: Case, population: Population, parts: list[VotePart]) -> VoteCombiner:
    book = VoteCombiner(
        ids_M=population.ids_N, labels_M=population.labels_N, num_parts=len(parts), votes_each=votes_each(case)
    )
    for part in parts:
        book.add(part)
    return book


def merged(case: Case, combine: str) -> tuple[Population, list[VotePart], ScoreTable]:
    population, parts = parts_of(case)
    return population, parts, book_for(case, population, parts).combine(combine, FUNCTIONS)


def small_book(*parts: VotePart, size: int = 3, votes: int = 1, num_parts: int | None = None) -> VoteCombiner:
    """Candidates 0, 10, 20, ... of class 0."""
    num_parts = len(parts) if num_parts is None else num_parts
    labels = np.zeros(size, np.int64)
    book = VoteCombiner(ids_M=10 * np.arange(size), labels_M=labels, num_parts=num_parts, votes_each=votes)
    for part in parts:
        book.add(part)
    return book


def small_part(index: int = 0, *, size: int = 3) -> VotePart:
    return vote_part(index, 10 * np.arange(size))


def votes_for(parts: list[VotePart], column: Callable[[VotePart], np.ndarray]) -> dict[int, list[Any]]:
    """What each id was given, in the order of the tasks."""
    given: dict[int, list[Any]] = {}
    for part in parts:
        for id, value in zip(part.ids_M.tolist(), column(part), strict=True):
            given.setdefault(id, []).append(value)
    return given


def loop_ranks(values: np.ndarray) -> list[float]:
    """(rank - 0.5) / n, where rank 1 is the lowest and tied values share the mean of their ranks."""
    ordered = sorted(values.tolist())
    ranks: dict[float, list[int]] = {}
    for rank, value in enumerate(ordered, start=1):
        ranks.setdefault(value, []).append(rank)
    return [(sum(ranks[value]) / len(ranks[value]) - 0.5) / len(values) for value in values.tolist()]


def loop_majority(votes: list[tuple[int, float]]) -> int:
    """The class most often named; then the higher summed top-1 probability; then the lower number."""
    return min(
        {pred for pred, _ in votes},
        key=lambda name: (
            -sum(pred == name for pred, _ in votes),
            -sum(float(p) for pred, p in votes if pred == name),
            name,
        ),
    )


def assert_equals_loop(values_M: np.ndarray, ids_M: np.ndarray, wanted: dict[int, float]) -> None:
    np.testing.assert_allclose(values_M, [wanted[id] for id in ids_M.tolist()], rtol=1e-6, atol=1e-7)


@each_case
@pytest.mark.parametrize("combine", ["mean", "rank_mean", "mean_prob"])
def test_one_row_a_candidate_in_the_order_of_the_ids(case: Case, combine: str) -> None:
    population, _, table = merged(case, combine)
    np.testing.assert_array_equal(table.ids_M, population.ids_N)
    np.testing.assert_array_equal(table.labels_M, population.labels_N)
    np.testing.assert_array_equal(table.votes_M, np.full(len(population), votes_each(case)))
    assert table.votes_M.dtype == np.int32
    assert table.pred_M.dtype == np.int64
    assert list(table.scores) == list(table.stds) == ["fine", "coarse"]
    floats = [table.p_label_M, *table.scores.values(), *table.stds.values()]
    assert {column.dtype for column in floats} == {np.dtype(np.float32)}
    assert {column.shape for column in floats} == {(len(population),)}


@each_case
@pytest.mark.parametrize("combine", ["mean", "rank_mean", "mean_prob"])
def test_the_order_of_arrival_does_not_matter(case: Case, combine: str) -> None:
    population, parts = parts_of(case)

    def bits(order: np.ndarray, twice: int) -> list[bytes]:
        arrived = [parts[place] for place in [*order, *order[:twice]]]
        book = VoteCombiner(
            ids_M=population.ids_N, labels_M=population.labels_N, num_parts=len(parts), votes_each=votes_each(case)
        )
        for part in arrived:
            book.add(replace(part, ids_M=part.ids_M.copy()))
        table = book.combine(combine, FUNCTIONS)
        columns = [table.votes_M, table.pred_M, table.p_label_M, *table.scores.values(), *table.stds.values()]
        return [column.tobytes() for column in [*columns, table.probs_MC]]

    rng = np.random.default_rng(0)
    straight = bits(np.arange(len(parts)), 0)
    for _ in range(4):
        assert bits(rng.permutation(len(parts)), twice=int(rng.integers(0, 3))) == straight


@each_case
def test_mean_and_std_equal_a_slow_loop(case: Case) -> None:
    _, parts, table = merged(case, "mean")
    for name in ("fine", "coarse"):
        given_ = votes_for(parts, lambda part, name=name: part.scores[name].astype(float))
        means = {id: math.fsum(values) / len(values) for id, values in given_.items()}
        stds = {id: math.sqrt(sum((v - means[id]) ** 2 for v in vs) / len(vs)) for id, vs in given_.items()}
        assert_equals_loop(table.scores[name], table.ids_M, means)
        assert_equals_loop(table.stds[name], table.ids_M, stds)
        if votes_each(case) == 1:
            assert not table.stds[name].any()


@each_case
def test_rank_mean_equals_a_slow_loop(case: Case) -> None:
    _, parts, table = merged(case, "rank_mean")
    for name in ("fine", "coarse"):
        given_ = votes_for(parts, lambda part, name=name: loop_ranks(part.scores[name]))
        means = {id: sum(values) / len(values) for id, values in given_.items()}
        assert_equals_loop(table.scores[name], table.ids_M, means)


@each_case
def test_mean_prob_equals_a_slow_loop(case: Case) -> None:
    population, parts, table = merged(case, "mean_prob")
    means = {id: sum(map(np.float64, rows)) / len(rows) for id, rows in votes_for(parts, lambda p: p.probs_MC).items()}
    label = dict(zip(population.ids_N.tolist(), population.labels_N.tolist(), strict=True))
    assert_equals_loop(table.probs_MC, table.ids_M, means)
    assert table.probs_MC.dtype == np.float32
    entropies = {id: -sum(p * math.log(p) for p in row.tolist() if p > 0) for id, row in means.items()}
    losses = {id: -math.log(row[label[id]]) for id, row in means.items()}
    np.testing.assert_allclose(table.scores["fine"], [entropies[id] for id in table.ids_M], rtol=1e-5)
    np.testing.assert_allclose(table.scores["coarse"], [losses[id] for id in table.ids_M], rtol=1e-4, atol=1e-6)


@each_case
@pytest.mark.parametrize("combine", ["rank_mean", "mean_prob"])
def test_std_p_label_and_pred_do_not_depend_on_the_combination(case: Case, combine: str) -> None:
    one, other = merged(case, "mean")[2], merged(case, combine)[2]
    for name in one.stds:
        np.testing.assert_array_equal(one.stds[name], other.stds[name])
    np.testing.assert_array_equal(one.p_label_M, other.p_label_M)
    np.testing.assert_array_equal(one.pred_M, other.pred_M)


@each_case
@pytest.mark.parametrize("most_votes", [1, 7, 1 << 18])
def test_p_label_and_pred_equal_a_slow_loop(case: Case, most_votes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine_votes, "_MOST_VOTES", most_votes)
    _, parts, table = merged(case, "mean")
    p_label = votes_for(parts, lambda part: part.p_label_M.astype(float))
    assert_equals_loop(table.p_label_M, table.ids_M, {id: sum(values) / len(values) for id, values in p_label.items()})
    named = votes_for(parts, lambda part: list(zip(part.pred_M.tolist(), part.p_top_M.tolist(), strict=True)))
    assert table.pred_M.tolist() == [loop_majority(named[id]) for id in table.ids_M.tolist()]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([0.0, -1.5, 2.0, 2.5, 1e-9, 7.0]), min_size=1, max_size=30))
def test_ranks_equal_a_slow_loop(values: list[float]) -> None:
    ranks = mean_ranks(np.array(values, np.float32))
    assert ranks.tolist() == pytest.approx(loop_ranks(np.array(values, np.float32)), rel=1e-12)
    assert ranks.mean() == pytest.approx(0.5)
    assert ranks.min() > 0 and ranks.max() < 1


def test_ranks_by_hand() -> None:
    assert mean_ranks(np.array([5.0, 5.0, 5.0])).tolist() == [0.5, 0.5, 0.5]
    assert mean_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [0.75, 0.125, 0.75, 0.375]


@pytest.mark.parametrize(
    ("votes", "pred"),
    [
        ([(2, 0.5)], 2),
        ([(1, 0.5), (1, 0.5), (0, 1.0)], 1),  # the most votes, however sure the others are
        ([(1, 0.5), (0, 0.75)], 0),  # one vote each: the surer
        ([(0, 0.5), (1, 0.75)], 1),
        ([(2, 0.5), (1, 0.5)], 1),  # as sure: the lower number
        ([(1, 0.5), (2, 0.5), (0, 0.5)], 0),
        ([(2, 0.75), (1, 0.5), (2, 0.5), (1, 0.75)], 1),  # two votes each, the same sum
        ([(2, 0.75), (1, 0.5), (2, 0.5), (1, 0.625)], 2),  # the sum, not the highest one
        ([(1, 0.875), (2, 0.625), (1, 0.25), (2, 0.625)], 2),
        ([(0, 0.5), (1, 0.5), (1, 0.5), (2, 1.0), (0, 0.25)], 1),
    ],
)
def test_the_majority_names_the_class(votes: list[tuple[int, float]], pred: int) -> None:
    for order in list(permutations(votes))[:24]:
        parts = [
            replace(
                small_part(index, size=1), pred_M=np.array([name]), p_top_M=np.array([p_top], np.float32), probs_MC=None
            )
            for index, (name, p_top) in enumerate(order)
        ]
        assert small_book(*parts, size=1, votes=len(votes)).combine("mean").pred_M.tolist() == [pred]


def test_one_vote_is_taken_as_it_is() -> None:
    part = small_part()
    table = small_book(part).combine("mean")
    for name, values in part.scores.items():
        np.testing.assert_array_equal(table.scores[name], values)
        assert table.stds[name].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(table.pred_M, part.pred_M)
    np.testing.assert_array_equal(table.p_label_M, part.p_label_M)


def test_probabilities_are_kept_only_where_they_were_sent() -> None:
    assert small_book(replace(small_part(), probs_MC=None)).combine("mean").probs_MC is None


def test_logs_of_probabilities_stay_finite() -> None:
    logs = log_of_probs(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert logs.dtype == np.float32
    assert np.isfinite(logs).all()
    assert logs[0, 0] == 0
    np.testing.assert_allclose(logs[1], np.log(0.5), rtol=1e-6)


def test_the_same_votes_twice_count_once() -> None:
    part, copy = small_part(), small_part()
    assert part is not copy
    table = small_book(part, copy, part, num_parts=1).combine("mean")
    assert table.votes_M.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(table.scores["fine"], part.scores["fine"])


@pytest.mark.parametrize("column", ["pred_M", "p_top_M", "p_label_M", "probs_MC", "score", "score name", "ids_M"])
def test_different_votes_of_one_task_are_refused(column: str) -> None:
    part = small_part()
    if column == "score":
        other = replace(part, scores={**part.scores, "fine": part.scores["fine"] + 1})
    elif column == "score name":
        other = replace(part, scores={"fine": part.scores["fine"], "other": part.scores["coarse"]})
    elif column == "ids_M":
        other = replace(part, ids_M=np.array([0, 10, 30]))
    else:
        changed = getattr(part, column).copy()
        changed[0] = changed[0] / 2 if changed.dtype == np.float32 else changed[0] + 1
        other = replace(part, **{column: changed})
    book = small_book(part, size=4, num_parts=1)
    with pytest.raises(IncompleteScoreError, match="task 0 delivered two different sets of votes"):
        book.add(other)


@pytest.mark.parametrize("missing", [[0], [1, 2], [0, 1, 2]])
def test_a_missing_task_is_named(missing: list[int]) -> None:
    parts = [small_part(index) for index in range(3) if index not in missing]
    book = small_book(*parts, votes=3, num_parts=3)
    with pytest.raises(
        IncompleteScoreError, match=f"{len(missing)} of 3 tasks have not voted; the first is task {missing[0]}"
    ):
        book.combine("mean")


@pytest.mark.parametrize("index", [-1, 2, 100])
def test_votes_of_an_unknown_task_are_refused(index: int) -> None:
    book = small_book(num_parts=2)
    with pytest.raises(IncompleteScoreError, match=f"votes of task {index} in a stage of 2 tasks"):
        book.add(replace(small_part(), index=index))


@pytest.mark.parametrize("ids", [[0, 20, 10], [0, 10, 10], [20, 10, 0]])
def test_ids_that_do_not_rise_are_refused(ids: list[int]) -> None:
    with pytest.raises(IncompleteScoreError, match="votes of task 0: the ids do not increase strictly"):
        small_book(replace(small_part(), ids_M=np.array(ids)))


@pytest.mark.parametrize("stranger", [5, 30, -1])
def test_ids_that_are_no_candidates_are_refused(stranger: int) -> None:
    ids = np.sort(np.array([0, 10, stranger]))
    with pytest.raises(
        IncompleteScoreError, match=f"votes of task 0: 1 ids are not among the 3 allowed ones; the first is {stranger}"
    ):
        small_book(replace(small_part(), ids_M=ids))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["p_top_M", "p_label_M", "fine", "probs_MC"])
def test_votes_that_are_not_finite_are_refused(column: str, value: float) -> None:
    part = small_part()
    damaged = (part.scores[column] if column in part.scores else getattr(part, column)).copy()
    damaged[1] = value
    fields = {"scores": {**part.scores, column: damaged}} if column in part.scores else {column: damaged}
    name = column.removesuffix("_M").removesuffix("_MC")
    with pytest.raises(IncompleteScoreError, match=rf"votes of task 0: {name} .*id 10 .*not finite for 1 samples"):
        small_book(replace(part, **fields))


@pytest.mark.parametrize("column", ["pred_M", "p_top_M", "p_label_M", "fine", "probs_MC"])
@pytest.mark.parametrize("length", [0, 1, 2])
def test_columns_of_another_length_are_refused(column: str, length: int) -> None:
    part = small_part()
    short = (part.scores[column] if column in part.scores else getattr(part, column))[:length]
    fields = {"scores": {**part.scores, column: short}} if column in part.scores else {column: short}
    name = column.removesuffix("_M").removesuffix("_MC")
    with pytest.raises(IncompleteScoreError, match=f"votes of task 0: {name} has {length} rows for 3 ids"):
        small_book(replace(part, **fields))


def test_tasks_with_different_scores_are_refused() -> None:
    other = replace(small_part(1), scores={"fine": small_part(1).scores["fine"]})
    with pytest.raises(IncompleteScoreError, match="the tasks of one stage delivered different scores"):
        small_book(small_part(0), other, votes=2).combine("mean")


@pytest.mark.parametrize(("votes", "given_", "wrong"), [(1, [1, 2, 1], 1), (2, [1, 2, 1], 2), (3, [1, 2, 1], 3)])
def test_the_wrong_number_of_votes_is_refused(votes: int, given_: list[int], wrong: int) -> None:
    parts = [small_part(0), vote_part(1, np.array([10]))]
    first = next(place for place, count in enumerate(given_) if count != votes)
    message = (
        f"{wrong} of 3 candidates have fewer or more votes than they must get; "
        f"the first is id {10 * first} with {given_[first]} instead of {votes}"
    )
    with pytest.raises(IncompleteScoreError, match=message):
        small_book(*parts, votes=votes).combine("mean")


def test_a_candidate_without_votes_is_refused() -> None:
    with pytest.raises(
        IncompleteScoreError, match=r"1 of 3 candidates have .*; the first is id 20 with 0 instead of 1"
    ):
        small_book(vote_part(0, np.array([0, 10]))).combine("mean")


@pytest.mark.parametrize("combine", ["mean", "rank_mean", "mean_prob"])
@pytest.mark.parametrize(("size", "folds", "models"), [(23, 5, 2), (50, 7, 3), (11, 3, 3)])
def test_candidates_with_different_numbers_of_votes_equal_the_loop(
    size: int, folds: int, models: int, combine: str
) -> None:
    population = population_of(size)
    spec = FoldSpec(num_folds=folds, seed=1)
    tasks = stage_zero_tasks(mode="unseen", spec=spec, train_on="fold", repeats=1)[:models]
    parts = [vote_part(task.index, task.scored.resolve(population), seed=size) for task in tasks]
    preds = votes_for(parts, lambda part: np.stack([part.pred_M, part.p_top_M], axis=1))
    due = np.array([len(preds[id]) for id in population.ids_N.tolist()])
    assert set(due.tolist()) == ({models - 1, models} if models < folds else {folds - 1})
    book = VoteCombiner(ids_M=population.ids_N, labels_M=population.labels_N, num_parts=models, votes_each=due)
    for part in parts:
        book.add(part)
    table = book.combine(combine, FUNCTIONS)
    np.testing.assert_array_equal(table.votes_M, due)
    wanted = [loop_majority([(int(p), float(t)) for p, t in preds[id]]) for id in population.ids_N.tolist()]
    np.testing.assert_array_equal(table.pred_M, wanted)
    if combine == "mean":
        fine = votes_for(parts, lambda part: part.scores["fine"])
        assert_equals_loop(table.scores["fine"], table.ids_M, {id: float(np.mean(its)) for id, its in fine.items()})


def test_a_score_that_takes_the_batchs_view_gets_that_of_the_mean_probabilities() -> None:
    def of_view(log_probs_NC: np.ndarray, labels_N: np.ndarray, *, epoch_view: EpochView) -> np.ndarray:
        assert epoch_view.log_probs_BC is log_probs_NC
        return -epoch_view.log_p_label_B

    case: Case = (23, 5, "fold", 1)
    population, parts = parts_of(case)
    table = book_for(case, population, parts).combine("mean_prob", {"fine": of_view, "coarse": loss})
    np.testing.assert_allclose(table.scores["fine"], table.scores["coarse"], rtol=1e-6)
