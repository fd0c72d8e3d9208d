"""A choice from shards is that of the whole table: the same ids, whatever the chunks, the ties and the memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.core import select
from unseen_ray.core.outofcore.chunks import Chunk, Memory, spread
from unseen_ray.core.outofcore.exact_sums import ExactSums
from unseen_ray.core.outofcore.select import STREAMED, choose, why_not_streamed
from unseen_ray.core.outofcore.selection import IdBits
from unseen_ray.core.outofcore.sort_keys import best_first_keys, value_of_key
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import offered

CLASSES = 4
LITTLE = Memory(buffer=3, bins=1, threads=1)
repeatable = settings(derandomize=True, deadline=None, max_examples=50)
PLAIN: dict[str, dict[str, Any]] = {"power": {"of": "score"}}  # what a policy needs at least to choose from shards
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, PLAIN.get(name, {})) for name in STREAMED),
    ("ccs", {"strata": 1}),
    ("ccs", {"strata": 7, "cut": 0.3}),
    ("ccs", {"cut": 0.99}),
    ("window", {"start": 0.0}),
    ("window", {"start": 0.45}),
    ("mix", {"share": 0.0}),
    *(("power", {"of": "score", "gamma": gamma}) for gamma in (-1, 0, 0.5)),
    ("mix", {"share": 0.3}),
    ("mix", {"share": 1.0}),
    ("class_floor", {"floor": 0.0}),
    ("class_floor", {"floor": 1.0}),
    ("class_quota", {"strength": 0}),
    ("class_quota", {"strength": 2.5}),
    ("class_quota", {"by": "recall"}),
    ("class_quota", {"by": "recall", "strength": 2, "inside": "random"}),
    ("class_quota", {"inside": {"use": "random"}}),
    ("class_balanced", {"inside": "random"}),
    ("beta", {"c": 1.0}),
    ("beta", {"mu": 0.5}),
]


@dataclass(frozen=True)
class Table:
    """Score shards: columns, and where chunks begin."""

    columns: dict[str, np.ndarray]
    ends: tuple[int, ...]

    def __call__(self, names: Sequence[str]) -> Iterator[Chunk]:
        assert len(set(names)) == len(names)
        for begin, end in zip((0, *self.ends), (*self.ends, len(self.columns["id"])), strict=True):
            yield {name: self.columns[name][begin:end] for name in names}

    def in_memory(self, name: str, budget: int, kept_C: np.ndarray, seed: int, **options: Any) -> list[int]:
        scores, labels, ids = (self.columns[name] for name in ("score", "label", "id"))
        policy = getattr(select, name)
        more = offered(policy, {"p_label_M": self.columns.get("p_label"), "pred_M": self.columns.get("pred")})
        picked = policy(scores, labels, ids, budget, kept_C=kept_C, seed=seed, **more, **options)
        return sorted(ids[picked].tolist())


LEVELS = [
    [0.0, -0.0],
    [-1.0, -0.0, 0.0, 2.5],
    [-3.0, -3.0000002, -1e-45, 1e-45, 3e38, -3e38],
    [0.25],
]


@st.composite
def tables(draw: st.DrawFn, *, rising: bool = True) -> Table:
    count = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    levels = draw(st.sampled_from([None, *LEVELS]))
    scores = rng.normal(size=count) if levels is None else rng.choice(levels, count)
    ids = rng.permutation(3 * count)[:count]
    columns = {
        "id": np.sort(ids) if rising else ids,
        "label": rng.choice(CLASSES, count, p=[0.6, 0.25, 0.15, 0.0]),
        "score": scores.astype(np.float32),
        "p_label": rng.choice([0.0, 1.0, 0.3, 0.7], count).astype(np.float32),
        "pred": rng.integers(0, CLASSES, count),
    }
    ends = draw(st.lists(st.integers(0, count), max_size=6))
    return Table(columns, tuple(sorted(ends)))


def streamed(table: Table, name: str, budget: int, *, memory: Memory, **options: Any) -> list[int]:
    chosen = choose(name, table, budget, memory=memory, **options)
    assert chosen.count == budget
    return sorted(number for chunk in chosen.rows(table, ("id",)) for number in chunk["id"].tolist())


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@repeatable
@given(table=tables(), data=st.data())
def test_the_choice_is_that_of_the_whole_table(
    name: str, options: dict[str, Any], table: Table, data: st.DataObject
) -> None:
    size = len(table.columns["id"])
    budget = data.draw(st.sampled_from(sorted({0, size, size // 2})) | st.integers(0, size))
    kept = np.array(
        data.draw(st.lists(st.integers(0, 60), min_size=CLASSES, max_size=CLASSES) | st.just([0] * CLASSES))
    )
    seed = data.draw(st.integers(0, 99))
    memory = data.draw(st.sampled_from([LITTLE, Memory(buffer=20, bins=6, threads=2), Memory()]))
    wanted = table.in_memory(name, budget, kept, seed, **options)
    assert streamed(table, name, budget, memory=memory, kept_C=kept, seed=seed, options=options) == wanted


@pytest.mark.parametrize("name", STREAMED)
@repeatable
@given(table=tables(rising=False), data=st.data())
def test_shards_may_have_their_ids_in_any_order(name: str, table: Table, data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, len(table.columns["id"])))
    kept = np.zeros(CLASSES, np.int64)
    options = PLAIN.get(name, {})
    found = streamed(table, name, budget, memory=LITTLE, kept_C=kept, seed=3, options=options)
    assert found == table.in_memory(name, budget, kept, 3, **options)


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("levels", [None, 3, 1])
def test_many_rows_are_narrowed_to_few(name: str, levels: int | None) -> None:
    """Above the buffer by a factor of a hundred, where ties take part in it, too."""
    rng, count = np.random.default_rng(5), 20_000
    scores = rng.normal(size=count) if levels is None else rng.integers(0, levels, count)
    columns = {
        "id": np.arange(count) * 3,
        "label": rng.integers(0, CLASSES, count),
        "score": scores.astype(np.float32),
        "p_label": rng.random(count).astype(np.float32),
    }
    table = Table(columns, (1, 7_000, 7_000, 19_999))
    kept, options = np.array([50, 0, 900, 0]), PLAIN.get(name, {})
    for memory in (Memory(buffer=200, bins=4, threads=2), Memory(buffer=1, bins=9, threads=1)):
        found = streamed(table, name, 7_001, memory=memory, kept_C=kept, seed=1, options=options)
        assert found == table.in_memory(name, 7_001, kept, 1, **options)


def test_no_more_than_the_buffer_is_kept_for_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_rows = []
    lexsort = np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda keys: (sorted_rows.append(len(keys[0])), lexsort(keys))[1])
    columns = {"id": np.arange(50_000), "score": np.ones(50_000, np.float32)}
    chosen = choose(
        "top", Table(columns, (25_000,)), 11, kept_C=np.zeros(1, np.int64), seed=0, memory=Memory(buffer=64)
    )
    assert chosen.count == 11
    assert 0 < max(sorted_rows) <= 64


@pytest.mark.parametrize("name", sorted(set(STREAMED) - {"random"}))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(name: str, bad: float) -> None:
    columns = {
        "id": np.arange(5),
        "label": np.zeros(5, np.int64),
        "score": np.array([1, 2, bad, 4, 5], np.float32),
        "p_label": np.full(5, 0.5, np.float32),
    }
    with pytest.raises(
        DataError, match=r"a score that is -?(nan|inf); all must be finite numbers\. Score these samples again"
    ):
        choose(name, Table(columns, ()), 2, kept_C=np.zeros(1, np.int64), seed=0, options=PLAIN.get(name))


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (
            "k_center",
            {},
            "policy k_center needs all candidates at once and cannot choose from score shards. Allowed are beta, ccs,",
        ),
        ("d2", {}, "policy d2 needs all candidates at once"),
        (sorted, {}, "policy sorted needs all candidates at once"),
        (
            "window",
            {"start": "auto"},
            "policy window with start: auto needs all candidates at once and cannot choose from score shards. Allowed are beta",
        ),
        ("moderate", {"of": "distance"}, "policy moderate with of: distance needs all candidates at once"),
        ("beta", {"over": "epochs"}, "policy beta with over: epochs needs all candidates at once"),
        ("class_quota", {"inside": {"use": "ccs", "cut": 0.1}}, "policy class_quota with inside: ccs needs all"),
        ("class_balanced", {"inside": "beta"}, "policy class_balanced with inside: beta needs all candidates at once"),
        ("power", {}, "policy power with of: rank needs all candidates at once"),
    ],
)
def test_a_policy_that_needs_all_at_once_is_refused(policy: Any, options: dict[str, Any], message: str) -> None:
    assert str(why_not_streamed(policy, options)).startswith(message)
    with pytest.raises(ConfigError) as raised:
        choose(policy, Table({}, ()), 1, kept_C=np.zeros(1, np.int64), seed=0, options=options)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("policy", "options"), [("ccs", {"start": "auto"}), ("window", {"over": "epochs"}), ("beta", {"start": "auto"})]
)
def test_an_option_speaks_against_its_own_policy_alone(policy: str, options: dict[str, Any]) -> None:
    assert why_not_streamed(policy, options) is None


@pytest.mark.parametrize("bad", [{"strata": 0}, {"cut": 1.0}])
def test_options_are_checked_as_by_the_policy_itself(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="policy option"):
        choose("ccs", Table({}, ()), 1, kept_C=np.zeros(1, np.int64), seed=0, options=bad)


def small(**changes: np.ndarray) -> Table:
    columns = {"id": np.arange(6), "label": np.array([0, 1, 0, 1, 0, 1]), "score": np.arange(6, dtype=np.float32)}
    return Table({**columns, **changes}, (3,))


@pytest.mark.parametrize("name", sorted(set(STREAMED) - {"beta"}))
def test_more_than_there_is_cannot_be_chosen(name: str) -> None:
    with pytest.raises(DataError, match="hold 6 candidates, and 7 are to be chosen"):
        choose(name, small(), 7, kept_C=np.zeros(2, np.int64), seed=0, options=PLAIN.get(name))


def test_what_is_wrong_with_shards_is_said() -> None:
    with pytest.raises(DataError, match="labels from 0 to 1; kept_C counts 1 classes"):
        choose("class_balanced", small(), 2, kept_C=np.zeros(1, np.int64), seed=0)
    with pytest.raises(DataError, match="scores of type float64; they must be float32"):
        choose("top", small(score=np.arange(6.0)), 2, kept_C=np.zeros(2, np.int64), seed=0)
    chosen = choose("top", small(), 2, kept_C=np.zeros(2, np.int64), seed=0)
    with pytest.raises(DataError, match="hold 0 of the 2 selected samples"):
        list(chosen.rows(small(score=np.zeros(6, np.float32)), ("id",)))
    twice = small(id=np.full(6, 5))
    with pytest.raises(DataError, match="or an id occurs twice"):
        list(choose("random", twice, 5, kept_C=np.zeros(2, np.int64), seed=0).rows(twice, ("id",)))


def test_every_other_policy_is_known_not_to_stream() -> None:
    assert set(STREAMED) | {"auto", "k_center", "d2"} == set(select.__all__)  # what auto stands for is named before
    assert all(
        "features_MD" not in inspect.signature(getattr(select, n)).parameters
        for n in set(STREAMED) - {"window", "moderate"}
    )


@repeatable
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_keys_of_scores_fall_as_they_rise_and_can_be_read_back(values: list[float]) -> None:
    scores = np.array(values, np.float32)
    for dtype in (np.float32, np.float64):
        keys = best_first_keys(scores.astype(dtype)).tolist()
        for i in range(len(values)):
            assert value_of_key(keys[i], dtype) == values[i]
            assert [keys[i] < key for key in keys] == [values[i] > value for value in values]


@repeatable
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True), max_size=40), st.data())
def test_sums_are_exact_in_any_order_and_any_parts(values: list[float], data: st.DataObject) -> None:
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
        array = array[np.isfinite(array)]
        labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(array), max_size=len(array))), np.int64)
        wanted = [sum(map(Fraction, array[labels == c].tolist()), Fraction(0)) for c in range(3)]
        parts = ExactSums(3, dtype), ExactSums(3, dtype)
        half = len(array) // 2
        parts[0].add(labels[half:], array[half:])
        parts[1].add(labels[:half], array[:half])
        parts[0].merge(parts[1])
        assert parts[0].totals() == wanted


def test_what_threads_make_of_chunks_comes_in_order_and_an_error_ends_it() -> None:
    chunks: list[Chunk] = [{"id": np.array([number])} for number in range(50)]
    assert [int(ids[0]) for ids in spread(chunks, lambda chunk: chunk["id"], 3)] == list(range(50))

    def fail(chunk: Chunk) -> int:
        return 1 // int(chunk["id"][0] - 20)

    with pytest.raises(ZeroDivisionError):
        list(spread(chunks, fail, 3))


def test_bits_tell_what_they_hold() -> None:
    bits = IdBits()
    ids = np.random.default_rng(0).permutation(3_000_000)[:5000]
    for part in np.array_split(ids, 7):
        bits.add(part)
    bits.add(ids[:10])
    assert np.flatnonzero(bits.has(np.arange(3_000_100))).tolist() == sorted(ids.tolist())
    assert not IdBits().has(ids).any()
