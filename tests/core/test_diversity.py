"""Policies over features, beside slow references that hold every distance; and laws of their own."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.core import select
from unseen_ray.core.policies import by_features as diversity
from unseen_ray.core.policies import distances
from unseen_ray.core.policies import window_search as placing
from unseen_ray.core.seeds import tie_keys
from unseen_ray.errors import ConfigError, FitError

CLASSES = 3
KINDS = ("normal", "grid", "equal")
USES = {
    "k_center": (select.k_center, {}),
    "k_center over all": (select.k_center, {"within": "all"}),
    "d2": (select.d2, {}),
    "d2 with 3 neighbours": (select.d2, {"neighbours": 3, "gamma": 0.3}),
    "d2 as published": (select.d2, {"distances": "raw", "negative": "raw", "gamma": 0.1}),
    "d2 on raw distances": (select.d2, {"distances": "raw"}),
    "window": (select.window, {"start": "auto"}),
    "moderate": (select.moderate, {"of": "distance"}),
}
each_use = pytest.mark.parametrize("use", USES)
each_kind = pytest.mark.parametrize("kind", KINDS)
repeatable = settings(derandomize=True, deadline=None, max_examples=60)


def candidates(count: int, *, seed: int = 0, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of which some tie and some are negative, labels, and scattered ids in no order."""
    rng = np.random.default_rng((seed, count))
    scores = rng.integers(-20, 20, count) / 16
    return scores.astype(np.float32), rng.integers(0, classes, count), rng.permutation(3 * count)[:count]


def features_of(kind: str, count: int, width: int = 5, *, seed: int = 0) -> np.ndarray:
    """Features far from 0; on the grid many distances tie and some samples are the same."""
    rng = np.random.default_rng((seed, count, width))
    if kind == "normal":
        return (rng.normal(size=(count, width)) + 3).astype(np.float32)
    if kind == "grid":
        return (rng.integers(0, 3, (count, width)) + 3).astype(np.float16)
    return np.full((count, width), 3.3, np.float32)


def choose(use: str, columns: tuple[np.ndarray, ...], budget: int, features: np.ndarray, **more: Any) -> np.ndarray:
    policy, options = USES[use]
    more = {"kept_C": np.zeros(CLASSES, np.int64), "seed": 0} | options | more
    return policy(*columns, budget, features_MD=features, **more)


def all_distances(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Every Euclidean distance, one by one."""
    a, b = ones.astype(np.float64), others.astype(np.float64)
    return np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b] for x in a]).reshape(len(a), len(b))


def shares(use: str, columns: tuple[np.ndarray, ...], budget: int) -> list[tuple[np.ndarray, int]]:
    """The groups of a policy, in the order of the keys, and what each gives."""
    by_key = np.argsort(tie_keys(columns[2], 0))
    if use.endswith("all"):
        return [(by_key, budget)]
    even = select.class_balanced(*columns, budget, kept_C=np.zeros(CLASSES, np.int64), seed=0)
    quota = np.bincount(columns[1][even], minlength=CLASSES)
    return [(by_key[columns[1][by_key] == number], int(quota[number])) for number in range(CLASSES)]


def farthest_first(scores: np.ndarray, features: np.ndarray, budget: int, kept: np.ndarray) -> list[int]:
    """As its paper says; of equals the first."""
    between, to_kept = all_distances(features, features), all_distances(features, kept)
    picks: list[int] = []
    while len(picks) < budget:
        best, far = -1, -1.0
        for place in range(len(features)):
            near = min([*(between[place][pick] for pick in picks), *to_kept[place]], default=scores[place] + 1e6)
            if place not in picks and round(near, 6) > far:
                best, far = place, round(near, 6)
        picks.append(best)
    return picks


def assert_by_messages(
    picks: list[int],
    scores: np.ndarray,
    features: np.ndarray,
    *,
    neighbours: int,
    gamma: float,
    distances: str,
    negative: str,
) -> None:
    """Each pick has the highest score after the messages before it: as the paper says, over an undirected graph."""
    count, between = len(features), all_distances(features, features)
    joined: dict[tuple[int, int], float] = {}
    for one in range(count):
        others = sorted((between[one][other].round(9), other) for other in range(count) if other != one)
        for _, other in others[:neighbours]:
            joined[one, other] = joined[other, one] = between[one][other]
    positive = [distance for distance in joined.values() if distance > 0]
    scale = float(np.median(positive)) if positive and distances == "scaled" else 1.0
    sums = [float(score) for score in scores]
    for (one, other), distance in joined.items():
        sums[one] += np.exp(-distance / scale) * max(float(scores[other]), 1e-7 if negative == "raw" else 0.0)
    left = set(range(count))
    for pick in picks:
        assert sums[pick] > max(sums[place] for place in left) - 1e-5
        left.remove(pick)
        for (one, other), distance in joined.items():
            if one == pick and (sums[pick] > 0 or negative == "raw"):
                sums[other] -= np.exp(-gamma * distance / scale) * sums[pick]


@each_kind
@pytest.mark.parametrize("use", ["k_center", "k_center over all"])
@pytest.mark.parametrize("budget", [1, 7, 40, 80])
@pytest.mark.parametrize("stage", [0, 1])
def test_k_center_is_the_traversal_by_hand(use: str, kind: str, budget: int, stage: int) -> None:
    columns, features = candidates(81), features_of(kind, 81)
    kept, kept_labels = features_of(kind, 10 * stage, seed=1), np.arange(10 * stage) % 2  # none of class 2
    more = {"kept_features_KD": kept, "kept_labels_K": kept_labels}
    wanted = []
    for number, (members, quota) in enumerate(shares(use, columns, budget)):
        mine = kept if use.endswith("all") else kept[kept_labels == number]
        picks = farthest_first(columns[0][members], features[members], quota, mine)
        wanted += members[picks].tolist()
    assert sorted(choose(use, columns, budget, features, **more).tolist()) == sorted(wanted)


@each_kind
@pytest.mark.parametrize("use", [use for use in USES if use.startswith("d2")])
@pytest.mark.parametrize("budget", [1, 7, 40, 80])
@pytest.mark.parametrize("shift", [0.0, -2.0, 5.0])
def test_d2_is_the_messages_by_hand(use: str, kind: str, budget: int, shift: float) -> None:
    columns, features = candidates(81), features_of(kind, 81)
    scores = columns[0] + np.float32(shift)
    options = {"neighbours": 10, "gamma": 1.0, "distances": "scaled", "negative": "shift"} | USES[use][1]
    sent = scores if options["negative"] == "raw" else scores - min(float(scores.min()), 0.0)
    chosen = choose(use, (scores, *columns[1:]), budget, features)
    for number, (members, quota) in enumerate(shares(use, columns, budget)):
        picks = [int(np.flatnonzero(members == place)[0]) for place in chosen if columns[1][place] == number]
        assert len(picks) == quota
        if quota < len(members):  # of all, the order says nothing
            assert_by_messages(picks, sent[members], features[members], **options)


@pytest.mark.parametrize("chunk", [2**8, 2**12])
@each_kind
@each_use
def test_blocks_change_nothing(use: str, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, features = candidates(300), features_of(kind, 300)
    whole = choose(use, columns, 120, features)
    monkeypatch.setattr(distances, "BLOCK_BYTES", chunk)
    monkeypatch.setattr(distances, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(placing, "_BLOCK_BYTES", chunk)
    monkeypatch.setattr(diversity, "_FEW", 7)
    np.testing.assert_array_equal(choose(use, columns, 120, features), whole)


@each_kind
@each_use
def test_a_memory_map_gives_the_same_and_is_left_as_it_was(use: str, kind: str, tmp_path: Path) -> None:
    columns, features = candidates(120), features_of(kind, 120)
    path = tmp_path / "features.npy"
    np.save(path, features)
    before = path.read_bytes()
    stored = np.load(path, mmap_mode="r")
    for column in (*columns, features):
        column.setflags(write=False)
    whole = choose(use, columns, 50, features)
    np.testing.assert_array_equal(choose(use, columns, 50, stored), whole)
    np.testing.assert_array_equal(choose(use, columns, 50, features.astype(np.float32)), whole)
    assert path.read_bytes() == before


@each_kind
@each_use
def test_the_order_of_the_candidates_does_not_matter(use: str, kind: str) -> None:
    columns, features = candidates(200, seed=1), features_of(kind, 200)
    for budget in (1, 60, 150):
        chosen = set(columns[2][choose(use, columns, budget, features)].tolist())
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(200)
            shuffled = choose(use, tuple(column[order] for column in columns), budget, features[order])
            assert set(columns[2][order][shuffled].tolist()) == chosen


@repeatable
@given(st.lists(st.integers(0, 9), min_size=CLASSES, max_size=CLASSES), st.sampled_from(KINDS), st.data())
def test_the_budget_is_exact_whatever_the_classes(sizes: list[int], kind: str, data: st.DataObject) -> None:
    labels = np.repeat(np.arange(CLASSES), sizes)
    kept_C = np.array(data.draw(st.lists(st.integers(0, 4), min_size=CLASSES, max_size=CLASSES)))
    budget, total = data.draw(st.integers(0, len(labels))), int(kept_C.sum())
    columns = np.zeros(len(labels), np.float32), labels, np.arange(len(labels))
    kept = {"kept_features_KD": features_of(kind, total, seed=1), "kept_labels_K": np.repeat(range(CLASSES), kept_C)}
    even = select.class_balanced(*columns, budget, kept_C=kept_C, seed=0)
    for use in USES:
        more = kept if use.startswith("k_center") else {}
        chosen = choose(use, columns, budget, features_of(kind, len(labels)), kept_C=kept_C, **more)
        assert len(set(chosen.tolist())) == len(chosen) == budget
        assert set(chosen.tolist()) <= set(range(len(labels)))
        if use in ("k_center", "d2"):
            assert sorted(labels[chosen]) == sorted(labels[even])


@each_kind
def test_k_center_in_stages_is_k_center_at_once(kind: str) -> None:
    columns, features = candidates(300), features_of(kind, 300)
    at_once = choose("k_center over all", columns, 100, features)
    first = choose("k_center over all", columns, 30, features)
    left = np.setdiff1d(np.arange(300), first)
    then = choose(
        "k_center over all",
        tuple(column[left] for column in columns),
        70,
        features[left],
        kept_C=np.bincount(columns[1][first]),
        kept_features_KD=features[first],
        kept_labels_K=columns[1][first],
    )
    assert set(at_once.tolist()) == set(first.tolist()) | set(left[then].tolist())


def clusters() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """One class: ten places, ten copies at each, and one far away."""
    features = np.repeat(np.random.default_rng(0).normal(size=(10, 4)), 10, axis=0)
    features = np.concatenate([features, np.full((1, 4), 50.0)]).astype(np.float32)
    return (np.ones(101, np.float32), np.zeros(101, np.int64), np.arange(101)), features


@pytest.mark.parametrize("seed", range(3))
def test_k_center_takes_no_copies_and_every_outlier(seed: int) -> None:
    columns, features = clusters()
    for use in ("k_center", "k_center over all"):
        chosen = choose(use, columns, 11, features, kept_C=np.zeros(1, np.int64), seed=seed)
        assert sorted(chosen // 10) == list(range(11))
        assert 100 in chosen[:2]


@pytest.mark.parametrize("seed", range(3))
def test_d2_takes_no_copies_while_it_has_others_and_outliers_late(seed: int) -> None:
    columns, features = clusters()
    more = {"neighbours": 9, "seed": seed, "kept_C": np.zeros(1, np.int64)}
    chosen = choose("d2", columns, 11, features, **more)
    assert sorted(chosen[:10] // 10) == list(range(10))
    assert chosen[10] == 100
    assert len(set((select.top(*columns, 11, kept_C=np.zeros(1, np.int64), seed=seed) // 10).tolist())) < 10


def test_k_center_begins_with_the_highest_score_and_far_from_what_is_kept() -> None:
    features = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    scores, kept_C = np.where(np.arange(101) == 30, 1.0, 0.0).astype(np.float32), np.zeros(1, np.int64)
    columns = scores, np.zeros(101, np.int64), np.arange(101)
    assert choose("k_center", columns, 4, features, kept_C=kept_C).tolist() == [30, 100, 65, 0]
    more = {"kept_features_KD": np.ones((1, 1), np.float32), "kept_C": np.ones(1, np.int64)}
    assert choose("k_center", columns, 2, features, kept_labels_K=np.zeros(1, np.int64), **more).tolist() == [0, 50]


def test_d2_minds_neither_the_unit_of_features_nor_that_of_scores() -> None:
    columns, features = candidates(300), features_of("normal", 300)
    plain = choose("d2", columns, 100, features)
    np.testing.assert_array_equal(choose("d2", columns, 100, features * np.float32(1024)), plain)
    np.testing.assert_array_equal(choose("d2", (columns[0] * 64, *columns[1:]), 100, features), plain)
    assert set(choose("d2", columns, 100, features, gamma=0.0).tolist()) != set(plain.tolist())
    assert set(choose("d2", columns, 100, features, neighbours=2).tolist()) != set(plain.tolist())


def test_the_parts_of_a_sum_do_not_hide_a_small_distance() -> None:
    """A mean that is large beside the differences must cost no digits."""
    features = (1000 + np.random.default_rng(0).normal(size=(50, 8)) / 100).astype(np.float32)
    group = distances.points(features, np.arange(50))
    squared = np.concatenate([chunk for _, chunk in distances.squared_distances(group, group)], axis=1)
    np.testing.assert_allclose(np.sqrt(squared), all_distances(features, features), rtol=1e-4, atol=0)


def test_copies_are_at_no_distance_wherever_they_stand() -> None:
    """To rounding a product of equal rows is not twice the same; what is left must not decide who is nearer."""
    features = np.tile(np.random.default_rng(0).normal(size=(7, 97)) + 10, (30, 1)).astype(np.float32)
    group = distances.points(features, np.arange(210))
    squared = np.concatenate([chunk for _, chunk in distances.squared_distances(group, group)], axis=1)
    same = np.arange(210)[:, None] % 7 == np.arange(210) % 7
    np.testing.assert_array_equal(squared == 0, same)


def accuracies(columns: tuple[np.ndarray, ...], budget: int, features: np.ndarray) -> list[float]:
    """Of the ridge regression on each window, by least squares with the penalty as more rows; none of it shared."""
    order = select.top(*columns, len(features), kept_C=np.zeros(CLASSES, np.int64), seed=0)
    labels, found = columns[1][order], []
    ordered = features[order].astype(np.float64)
    ordered = (ordered - ordered.mean(axis=0)) / np.sqrt(ordered.var(axis=0).mean())
    for step in range(20):
        first = round(step / 20 * len(order))
        if first > len(order) - budget:
            break
        inside = slice(first, first + budget)
        mean, targets = ordered[inside].mean(axis=0), np.eye(CLASSES)[labels[inside]]
        penalty = np.sqrt(budget * 0.01 * ordered[inside].var(axis=0).mean()) * np.eye(features.shape[1])
        rows = np.concatenate([ordered[inside] - mean, penalty])
        wanted = np.concatenate([targets - targets.mean(axis=0), np.zeros((len(penalty), CLASSES))])
        weights = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        found.append(float((((ordered - mean) @ weights + targets.mean(axis=0)).argmax(axis=1) == labels).mean()))
    return found


def noisy(count: int, hard: float, seed: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Candidates whose hardest part has labels that say nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    features = (rng.normal(size=(count, 6)) + 2 * np.eye(CLASSES, 6)[labels] + 2).astype(np.float32)
    scores = rng.random(count).astype(np.float32)
    labels = np.where(scores > 1 - hard, rng.integers(0, CLASSES, count), labels)
    return (scores, labels, rng.permutation(count)), features


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [10, 40, 200, 390])
@pytest.mark.parametrize("hard", [0.0, 0.3, 0.6])
def test_the_window_is_placed_where_a_regression_on_it_is_right_most_often(budget: int, hard: float, seed: int) -> None:
    columns, features = noisy(401, hard, seed)
    found = accuracies(columns, budget, features)
    best = found.index(max(found)) / 20
    order = select.window(*columns, budget, kept_C=np.zeros(CLASSES, np.int64), seed=0, start=best)
    np.testing.assert_array_equal(choose("window", columns, budget, features), order)


def test_the_window_leaves_labels_out_that_say_nothing() -> None:
    columns, features = noisy(2000, 0.4, 0)
    chosen = choose("window", columns, 600, features)
    assert columns[0][chosen].max() < 0.75
    clean, features = noisy(2000, 0.0, 0)
    equal = np.ones_like(features)
    np.testing.assert_array_equal(
        choose("window", (clean[0], np.zeros(2000, np.int64), clean[2]), 600, equal), np.argsort(-clean[0])[:600]
    )


@each_kind
@pytest.mark.parametrize("budget", [0, 1, 30, 59, 60])
def test_moderate_keeps_the_middle_of_the_distances_by_hand(kind: str, budget: int) -> None:
    columns, features = candidates(60), features_of(kind, 60)
    distances = []
    for sample, label in zip(features.astype(np.float64), columns[1], strict=True):
        others = features[columns[1] == label].astype(np.float64)
        centre = [
            sorted(column)[(len(column) - 1) // 2] / 2 + sorted(column)[len(column) // 2] / 2 for column in others.T
        ]
        distances.append(float(((sample - centre) ** 2).sum() ** 0.5))
    keys = tie_keys(columns[2], 0)
    order = sorted(range(60), key=lambda place: (-round(distances[place], 9), keys[place]))
    kept = choose("moderate", columns, budget, features)
    assert kept.tolist() == order[(60 - budget) // 2 :][:budget]


@pytest.mark.parametrize(
    ("use", "most_mb"),
    [pytest.param("d2", 100, marks=pytest.mark.slow), ("k_center", 60), ("window", 60), ("moderate", 60)],
)
def test_memory_is_bounded(use: str, most_mb: int) -> None:
    """20,000 of one class; all their distances would be 1,600 MB."""
    peak = peak_memory(use, 20_000)
    assert peak < most_mb * 2**20


def test_d2_holds_a_block_of_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 MB; all distances would be 64 MB."""
    monkeypatch.setattr(distances, "BLOCK_BYTES", 2**22)
    assert peak_memory("d2", 4000) < 24 * 2**20


def peak_memory(use: str, count: int) -> int:
    features = np.random.default_rng(0).normal(size=(count, 32)).astype(np.float16)
    columns = np.zeros(count, np.float32), np.zeros(count, np.int64), np.arange(count)
    tracemalloc.start()
    try:
        assert len(choose(use, columns, count // 10, features, kept_C=np.zeros(1, np.int64))) == count // 10
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("k_center", {"within": "none"}, r"policy option within='none' is not allowed: write class or all\."),
        ("d2", {"neighbours": 0}, r"policy option neighbours=0 must be a whole number, 1 or more\."),
        ("d2", {"neighbours": 2.5}, r"neighbours=2.5 must be a whole number"),
        ("d2", {"neighbours": True}, r"neighbours=True must be a whole number"),
        ("d2", {"gamma": -0.1}, r"policy option gamma=-0.1 must be a number, 0 or more\."),
        ("d2", {"gamma": "much"}, r"gamma='much' must be a number"),
        ("d2", {"distances": "cosine"}, r"policy option distances='cosine' is not allowed: write scaled or raw\."),
        ("d2", {"negative": "clip"}, r"policy option negative='clip' is not allowed: write shift or raw\."),
        ("moderate", {"of": "loss"}, r"policy option of='loss' is not allowed: write score or distance\."),
        ("window", {"start": "best"}, r"start='best' is not in \[0, 1\): it is a share, or auto\."),
    ],
)
def test_options_outside_their_range_are_refused(use: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(use, candidates(10), 5, features_of("normal", 10), **options)


@pytest.mark.parametrize("use", ["k_center", "d2", "window", "moderate"])
def test_without_features_the_message_says_how_to_have_some(use: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"policy {use}.* looks at features, and none are stored\. Set save_features: true\."
    ):
        choose(use, candidates(10), 5, None)


@pytest.mark.parametrize("use", ["k_center", "d2", "window", "moderate"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(use: str, bad: float) -> None:
    features = features_of("normal", 90)
    features[17, 2] = bad
    with pytest.raises(
        FitError, match=r"features hold 1 rows of \d+ that are not finite, the first for candidate 17\."
    ):
        choose(use, candidates(90), 45, features)
