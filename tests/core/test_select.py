"""Laws of every policy: the exact budget, no repeats, no favour to position or id; and the shares of classes."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen_ray.core import select
from unseen_ray.core.policies.base import best_first
from unseen_ray.core.policies.inside import INSIDE
from unseen_ray.core.policies.quotas import apportion, split_by_weight
from unseen_ray.core.seeds import tie_keys
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import offered, plug_of

CLASSES = 4
VARIANTS = {"k_center over all": ("k_center", {"within": "all"}), "window by features": ("window", {"start": "auto"})}
NAMES = [*select.__all__, *VARIANTS]
each_policy = pytest.mark.parametrize("name", NAMES)
repeatable = settings(derandomize=True, deadline=None, max_examples=200)


def candidates(count: int, *, levels: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (of few levels, so that many tie, where asked), labels and scattered ids in no order."""
    rng = np.random.default_rng((seed, count))
    scores = rng.normal(size=count) if levels is None else rng.integers(0, levels, count)
    return scores.astype(np.float32), rng.integers(0, CLASSES, count), rng.permutation(3 * count)[:count]


def features_of(ids: np.ndarray, width: int = 6) -> np.ndarray:
    """Features that depend on the id alone, few values each, so that some samples are the same and many distances tie."""
    return np.array([np.random.default_rng(int(number)).integers(0, 3, width) for number in ids], np.float16)


def choose(
    name: str,
    columns: tuple[np.ndarray, ...],
    budget: int,
    *,
    seed: int = 0,
    kept: object = 0,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """What a policy picks; one that asks for p_y gets one that falls as the score rises."""
    kept_C = np.zeros(CLASSES, np.int64) if isinstance(kept, int) else kept
    name, options = VARIANTS.get(name, (name, {}))
    policy = getattr(select, name)
    values = {
        "p_label_M": (1 / (1 + np.exp(columns[0]))).astype(np.float32),
        "pred_M": np.where(columns[2] % 3, columns[1], (columns[1] + 1) % CLASSES),  # right on two thirds
        "kept_features_KD": np.empty((0, 6), np.float16),
        "kept_labels_K": np.empty(0, np.int64),
    }
    if "features_MD" in inspect.signature(policy).parameters:
        values["features_MD"] = features_of(columns[2]) if features is None else features
    return policy(*columns, budget, kept_C=kept_C, seed=seed, **offered(policy, values), **options)


def assert_largest_remainder(quota: np.ndarray, sizes: np.ndarray, target: int) -> None:
    """Every quota is its share rounded down or up, and no class rounded down has the larger remainder."""
    shares = [Fraction(target * int(size), int(sizes.sum())) for size in sizes]
    rounded_up = [int(count) - share.numerator // share.denominator for count, share in zip(quota, shares, strict=True)]
    remainders = [share % 1 for share in shares]
    assert int(quota.sum()) == target
    assert set(rounded_up) <= {0, 1}
    up = [remainder for remainder, extra in zip(remainders, rounded_up, strict=True) if extra]
    down = [remainder for remainder, extra in zip(remainders, rounded_up, strict=True) if not extra]
    assert not up or min(up) > 0
    assert not up or not down or min(up) >= max(down)


def assert_fair_above_the_floor(quota: np.ndarray, sizes: np.ndarray, kept: np.ndarray) -> None:
    """One fraction of all classes explains the quotas to within one sample; only a floor lifts a class above it."""
    parts = [(int(q), int(s), int(k)) for q, s, k in zip(quota, sizes, kept, strict=True) if s]
    lowest = max((Fraction(q - 1, s) for q, s, k in parts if q > k), default=Fraction(-1))
    highest = min((Fraction(q + 1, s) for q, s, _ in parts), default=Fraction(2))
    assert lowest < highest


@each_policy
@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("count", [1, 10, 97])
def test_exact_budget_without_repeats(name: str, count: int, levels: int | None) -> None:
    columns = candidates(count, levels=levels)
    features = features_of(columns[2])
    for budget in range(count + 1):
        positions = choose(name, columns, budget, features=features)
        assert positions.shape == (budget,)
        assert len(set(positions.tolist())) == budget
        assert set(positions.tolist()) <= set(range(count))


@each_policy
@pytest.mark.parametrize("levels", [None, 3, 1])
def test_the_order_of_the_candidates_does_not_matter(name: str, levels: int | None) -> None:
    columns = candidates(97, levels=levels, seed=1)
    ids = columns[2]
    for budget in (1, 20, 50, 96):
        chosen = set(ids[choose(name, columns, budget)].tolist())
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(97)
            shuffled = choose(name, tuple(column[order] for column in columns), budget)
            assert set(ids[order][shuffled].tolist()) == chosen


@each_policy
def test_the_same_arguments_give_the_same_answer_and_change_nothing(name: str) -> None:
    columns = candidates(97, levels=3)
    before = [column.copy() for column in columns]
    for column in columns:
        column.setflags(write=False)
    np.testing.assert_array_equal(choose(name, columns, 40), choose(name, columns, 40))
    for column, copy in zip(columns, before, strict=True):
        np.testing.assert_array_equal(column, copy)


@each_policy
def test_equal_scores_favour_no_ids(name: str) -> None:
    """Features, where a policy looks at them, are equal too: with others it is they that choose, whatever the seed."""
    ids = np.arange(2000)
    labels = np.random.default_rng(0).integers(0, CLASSES, 2000)
    columns, features = (np.ones(2000, np.float32), labels, ids), np.ones((2000, 6), np.float32)
    choices = [ids[choose(name, columns, 1000, seed=seed, features=features)] for seed in range(5)]
    assert all(abs(chosen.mean() - 999.5) < 80 for chosen in choices)
    assert all(abs((chosen % 2).mean() - 0.5) < 0.1 for chosen in choices)
    assert all(400 < len(np.intersect1d(choices[0], chosen)) < 600 for chosen in choices[1:])


@pytest.mark.parametrize("seed", range(20))
def test_the_first_of_an_order_are_those_of_a_sort_by_two_keys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(0, 60))
    scores = rng.choice([0.0, -0.0, 1.0, 2.0, -3.0, np.inf, -np.inf, np.nan, 0.5], size).astype(np.float32)
    ids = rng.permutation(200)[:size]
    wanted = np.lexsort((tie_keys(ids, seed), -scores))
    np.testing.assert_array_equal(best_first(scores, ids, seed), wanted)
    for count in range(size + 2):
        np.testing.assert_array_equal(best_first(scores, ids, seed, count), wanted[:count])


@pytest.mark.parametrize("levels", [1, 3, 100_000])
def test_many_equal_scores_are_told_apart_by_the_whole_key(levels: int) -> None:
    """Of 300,000 hashes, several pairs have the same upper half."""
    rng = np.random.default_rng(levels)
    scores, ids = rng.integers(0, levels, 300_000).astype(np.float32), rng.permutation(300_000)
    keys = tie_keys(ids, 4)
    assert len(np.unique(keys >> np.uint64(32))) < 300_000
    np.testing.assert_array_equal(best_first(scores, ids, 4), np.lexsort((keys, -scores)))


def test_random_does_not_share_its_order_with_the_ties_of_top() -> None:
    columns = np.ones(1000, np.float32), np.zeros(1000, np.int64), np.arange(1000)
    both = np.intersect1d(choose("random", columns, 500), choose("top", columns, 500))
    assert 180 < len(both) < 320


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mix_at_its_ends_does_not_mind_how_many_stages_there_are(share: float) -> None:
    """With scores that stay, what is kept stage by stage is what is kept at once."""
    columns = candidates(97, seed=2)
    given = {"kept_C": np.zeros(CLASSES, np.int64), "seed": 5, "share": share}
    first = select.mix(*columns, 30, **given)
    left = np.setdiff1d(np.arange(97), first)
    then = left[select.mix(*(column[left] for column in columns), 20, **given)]
    assert {*first.tolist(), *then.tolist()} == set(select.mix(*columns, 50, **given).tolist())


@pytest.mark.parametrize("gamma", [-1.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("of", ["rank", "score"])
def test_power_draws_in_proportion_to_the_weights(of: str, gamma: float) -> None:
    """Beside it numpy's own sampling without replacement."""
    rng, count, budget, turns = np.random.default_rng(0), 500, 150, 300
    scores = (0.05 + rng.random(count) ** 3).astype(np.float32)
    weights = ((np.argsort(np.argsort(scores)) + 0.5) / count if of == "rank" else scores.astype(np.float64)) ** gamma
    labels, ids, kept_C = np.zeros(count, np.int64), np.arange(count), np.zeros(1, np.int64)
    wanted, found = np.zeros(count), np.zeros(count)
    for seed in range(turns):
        wanted[rng.choice(count, budget, replace=False, p=weights / weights.sum())] += 1
        found[select.power(scores, labels, ids, budget, kept_C=kept_C, seed=seed, gamma=gamma, of=of)] += 1
    for part in np.array_split(np.argsort(weights), 10):
        assert abs(wanted[part].mean() - found[part].mean()) / turns < 0.02


@repeatable
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.data())
def test_shares_from_nothing_are_the_largest_remainder(sizes: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, sum(sizes)))
    seed = data.draw(st.integers(0, 1000))
    sizes_C = np.array(sizes)
    quota = apportion(target, sizes_C, np.zeros_like(sizes_C), seed)
    assert (quota <= sizes_C).all()
    assert int(quota.sum()) == target
    if target:
        assert_largest_remainder(quota, sizes_C, target)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8), st.data())
def test_no_class_falls_below_its_floor_or_above_its_size(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    sizes = np.array([max(pair) for pair in pairs])
    kept = np.array([min(pair) for pair in pairs])
    target = data.draw(st.integers(int(kept.sum()), int(sizes.sum())))
    quota = apportion(target, sizes, kept, data.draw(st.integers(0, 1000)))
    assert (kept <= quota).all() and (quota <= sizes).all()
    assert int(quota.sum()) == target
    assert_fair_above_the_floor(quota, sizes, kept)


def test_apportion_leaves_its_arguments_alone() -> None:
    sizes, kept = np.array([10, 5, 1]), np.array([0, 5, 0])
    apportion(9, sizes, kept, 0)
    assert sizes.tolist() == [10, 5, 1] and kept.tolist() == [0, 5, 0]


def test_shares_are_exact_at_any_size() -> None:
    sizes = np.array([3 * 10**15 + 1, 10**15, 1, 0])
    assert_largest_remainder(apportion(10**15 + 7, sizes, np.zeros(4, np.int64), 0), sizes, 10**15 + 7)


def test_equal_remainders_are_not_always_given_to_the_first_class() -> None:
    sizes, nothing = np.full(10, 100), np.zeros(10, np.int64)
    winners = {int(apportion(1, sizes, nothing, seed).argmax()) for seed in range(50)}
    assert len(winners) > 5


@repeatable
@given(st.lists(st.integers(0, 30), min_size=2, max_size=6), st.integers(0, 1000), st.data())
def test_class_balanced_totals_over_stages(sizes: list[int], seed: int, data: st.DataObject) -> None:
    sizes_C = np.array(sizes)
    count = int(sizes_C.sum())
    rng = np.random.default_rng(seed)
    labels, left = np.repeat(np.arange(len(sizes)), sizes), np.arange(count)
    kept_C = np.zeros(len(sizes), np.int64)
    targets = sorted(data.draw(st.sets(st.integers(0, count), max_size=4)))
    for target in targets:
        scores = rng.normal(size=len(left)).astype(np.float32)
        budget = target - int(kept_C.sum())
        picked = choose("class_balanced", (scores, labels[left], left), budget, seed=seed, kept=kept_C)
        total_C = kept_C + np.bincount(labels[left[picked]], minlength=len(sizes))
        assert len(set(picked.tolist())) == budget == len(picked)
        assert int(total_C.sum()) == target
        assert_fair_above_the_floor(total_C, sizes_C, kept_C)
        plain = apportion(target, sizes_C, np.zeros_like(sizes_C), seed)
        if (plain >= kept_C).all():
            np.testing.assert_array_equal(total_C, plain)
            if target:
                assert_largest_remainder(total_C, sizes_C, target)
        kept_C, left = total_C, np.delete(left, picked)


def test_class_balanced_shares_by_hand() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    columns = np.zeros(100, np.float32), labels, np.arange(100)
    for kept, added in (([0, 0, 0], [30, 15, 5]), ([30, 0, 0], [18, 24, 8]), ([0, 0, 10], [33, 17, 0])):
        left = np.concatenate([np.flatnonzero(labels == number)[count:] for number, count in enumerate(kept)])
        picked = choose("class_balanced", tuple(c[left] for c in columns), sum(added), kept=np.array(kept))
        assert np.bincount(labels[left][picked], minlength=3).tolist() == added


@pytest.mark.parametrize("budget", [100, 400, 700])
@pytest.mark.parametrize("c", [1.0, 4.0])
def test_beta_draws_by_score_and_density(budget: int, c: float) -> None:
    """Beside it the draw as the paper writes it, with numpy's own sampling without replacement and the gamma function."""
    rng = np.random.default_rng(0)
    ids, labels = np.arange(1000), np.zeros(1000, np.int64)
    scores = rng.random(1000).astype(np.float32)
    p = np.clip(rng.random(1000), 0.01, 0.99).astype(np.float32)
    p[np.argsort(-scores)[:10]] = 0.4
    b = 15 * (1 - 0.4) * (1 - (1 - budget / 1000) ** c)
    a = 16 - b
    norm = math.lgamma(16) - math.lgamma(a) - math.lgamma(b)
    weights = np.exp(norm + (a - 1) * np.log(p) + (b - 1) * np.log1p(-p)) * scores
    turns = 200
    wanted, found = np.zeros(1000), np.zeros(1000)
    for seed in range(turns):
        wanted[rng.choice(1000, budget, replace=False, p=weights / weights.sum())] += 1
        chosen = select.beta(
            scores, labels, ids, budget, kept_C=np.zeros(1, np.int64), seed=seed, p_label_M=p.astype(np.float32), c=c
        )
        found[chosen] += 1
    for part in np.array_split(np.argsort(weights), 10):
        share, other = wanted[part].mean() / turns, found[part].mean() / turns
        assert abs(share - other) < 0.02


@pytest.mark.parametrize("floor", [0.01, 0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58])
def test_class_floor_is_of_the_decimal_number_that_was_given(floor: float) -> None:
    """0.29 * 100 is 28.999999999999996 in binary numbers."""
    labels, no_more = np.repeat([0, 1], 200), np.zeros(2, np.int64)
    scores = np.where(labels == 0, 2.0, 1.0).astype(np.float32)
    chosen = select.class_floor(scores, labels, np.arange(400), 200, kept_C=no_more, seed=0, floor=floor)
    assert np.bincount(labels[chosen]).tolist() == [200 - round(100 * floor), round(100 * floor)]


@pytest.mark.parametrize("budget", [4, 10, 50, 200, 1900])
def test_class_floor_at_0_keeps_one_of_each_class_that_has_an_even_share(budget: int) -> None:
    """A class too small for one sample of an even share is promised none: at 10 of 2,000 that is the one of 40."""
    labels = np.repeat([0, 1, 2, 3], [1200, 560, 200, 40])
    scores = np.linspace(4, 0, 2000, dtype=np.float32)  # class after class: `top` keeps the first alone
    columns, given = (scores, labels, np.arange(2000)), {"kept_C": np.zeros(4, np.int64), "seed": 0}
    even = np.bincount(labels[select.class_balanced(*columns, budget, **given)], minlength=4)
    chosen = select.class_floor(*columns, budget, floor=0.0, **given)
    kept = np.bincount(labels[chosen], minlength=4)
    assert (kept >= np.minimum(even, 1)).all()
    assert ((kept == 0) <= (even == 0)).all()
    missing = np.setdiff1d(select.top(*columns, budget, **given), chosen)
    assert len(missing) <= 3  # but for one sample a class it is `top`
    if budget == 10:
        assert even[3] == kept[3] == 0 < min(kept[:3])


def drop_in_words(sizes: list[int], recalls: list[Fraction], budget: int) -> list[Fraction]:
    """Algorithm 1 of DRoP: shares by size and error, full classes cut off, what is over handed on by the same rule."""
    shares = [Fraction(0)] * len(sizes)
    while (over := budget - sum(shares)) > 0:
        weights = [
            size * (1 - recall) if share < size else Fraction(0)
            for size, recall, share in zip(sizes, recalls, shares, strict=True)
        ]
        shares = [
            min(Fraction(size), share + over * weight / sum(weights))
            for size, share, weight in zip(sizes, shares, weights, strict=True)
        ]
    return shares


@pytest.mark.parametrize("budget", [1, 40, 120, 200])
def test_class_quota_by_recall_is_drop(budget: int) -> None:
    sizes, wrong = [100, 60, 40, 20], [10, 30, 4, 18]
    labels = np.repeat(np.arange(4), sizes)
    pred = labels.copy()
    for number, count in enumerate(wrong):
        pred[np.flatnonzero(labels == number)[:count]] = (number + 1) % 4
    rng = np.random.default_rng(0)
    columns = rng.random(220).astype(np.float32), labels, rng.permutation(220)
    given = {"kept_C": np.zeros(4, np.int64), "seed": 3}
    chosen = select.class_quota(*columns, budget, by="recall", inside="random", pred_M=pred, **given)
    quota = np.bincount(labels[chosen], minlength=4)
    shares = drop_in_words(sizes, [1 - Fraction(w, n) for w, n in zip(wrong, sizes, strict=True)], budget)
    assert all(abs(count - share) < 1 for count, share in zip(quota.tolist(), shares, strict=True))
    order = select.random(*columns, 220, **given)  # a class keeps those that random would keep first
    for number in range(4):
        mine = [place for place in order.tolist() if labels[place] == number]
        assert set(chosen[labels[chosen] == number].tolist()) == set(mine[: quota[number]])


def test_all_right_or_all_wrong_leaves_sizes_to_decide() -> None:
    columns, given = candidates(97), {"kept_C": np.zeros(CLASSES, np.int64), "seed": 0}
    for pred in (columns[1], (columns[1] + 1) % CLASSES):
        chosen = select.class_quota(*columns, 40, by="recall", pred_M=pred, **given)
        assert set(chosen.tolist()) == set(select.class_balanced(*columns, 40, **given).tolist())


@pytest.mark.parametrize("policy", ["class_balanced", "class_quota"])
@pytest.mark.parametrize("inside", [*INSIDE, {"use": "ccs", "cut": 0.2}, {"use": "power", "gamma": -1}])
def test_a_policy_within_classes_keeps_quotas_and_sees_one_class_at_a_time(
    policy: str, inside: str | dict[str, object]
) -> None:
    columns, function = candidates(97, seed=3), getattr(select, policy)
    p_label = np.random.default_rng(0).random(97).astype(np.float32)
    kept_C = np.array([3, 0, 9, 1])
    given = {"seed": 0, "p_label_M": p_label}
    plain, chosen = (function(*columns, 40, kept_C=kept_C, inside=of, **given) for of in ("top", inside))
    quota = np.bincount(columns[1][plain], minlength=CLASSES)
    np.testing.assert_array_equal(np.bincount(columns[1][chosen], minlength=CLASSES), quota)
    use, options = plug_of(inside)
    for number in range(CLASSES):
        its = np.flatnonzero(columns[1] == number)
        only = columns[0][its], np.zeros(len(its), np.int64), columns[2][its]
        more = offered(getattr(select, use), {"p_label_M": p_label[its]})
        alone = getattr(select, use)(
            *only, int(quota[number]), kept_C=kept_C[number : number + 1], seed=0, **more, **options
        )
        assert set(chosen[columns[1][chosen] == number].tolist()) == set(its[alone].tolist())


@repeatable
@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8), st.data()
)
def test_weighted_shares_stay_within_their_bounds(classes: list[tuple[float, int, int]], data: st.DataObject) -> None:
    weights = np.array([weight for weight, *_ in classes])
    low = np.array([min(bounds) for _, *bounds in classes])
    high = np.array([max(bounds) for _, *bounds in classes])
    target = data.draw(st.integers(int(low.sum()), int(high.sum())))
    quota = split_by_weight(target, weights, low, high, data.draw(st.integers(0, 1000)))
    assert (low <= quota).all() and (quota <= high).all()
    assert int(quota.sum()) == target
    free = [(q, w) for q, w, a, b in zip(quota, weights, low, high, strict=True) if a < q < b and w > 0.01]
    for (one, light), (other, heavy) in combinations(sorted(free, key=lambda pair: pair[1]), 2):
        assert one <= other + 1  # the heavier class has no less
        assert abs(one * heavy - other * light) <= 1.01 * (heavy + light)


@pytest.mark.parametrize("sizes", [[10, 30], [50, 30, 15, 5], [10**7, 3 * 10**7], [6 * 10**6, 10**6, 10**6, 4 * 10**6]])
def test_shares_by_size_are_those_by_largest_remainder_whatever_the_size(sizes: list[int]) -> None:
    """Equal remainders are told apart by the class's hash, not by a rounding error."""
    sizes_C, nothing = np.array(sizes), np.zeros(len(sizes), np.int64)
    for target in (sum(sizes) // 2, sum(sizes) // 2 + 2, sum(sizes) // 3, sum(sizes) - 3):
        for seed in range(10):
            by_weight = split_by_weight(target, sizes_C.astype(np.float64), nothing, sizes_C, seed)
            assert by_weight.tolist() == apportion(target, sizes_C, nothing, seed).tolist()


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("ccs", {"strata": 0}, "strata=0 must be a whole number, 1 or more"),
        ("ccs", {"strata": 2.5}, "strata=2.5 must be a whole number"),
        ("ccs", {"cut": 1.0}, r"cut=1.0 is not in \[0, 1\)"),
        ("window", {"start": -0.1}, r"start=-0.1 is not in \[0, 1\)"),
        ("window", {"start": "much"}, r"start='much' is not in \[0, 1\)"),
        ("mix", {"share": 1.5}, r"share=1.5 is not in \[0, 1\]"),
        ("mix", {"share": "half"}, r"share='half' is not in \[0, 1\]"),
        ("power", {"gamma": math.inf}, r"gamma=inf must be a finite number"),
        ("power", {"gamma": "high"}, r"gamma='high' must be a finite number"),
        ("power", {"of": "loss"}, r"of='loss' is not allowed: write rank or score"),
        ("class_quota", {"by": "loss"}, r"by='loss' is neither score nor recall"),
        ("class_quota", {"by": "recall"}, r"by: recall reads pred_M, the predicted classes"),
        (
            "class_quota",
            {"inside": "class_floor"},
            r"inside='class_floor' cannot choose within a class\. Write one of beta, ccs",
        ),
        ("class_balanced", {"inside": {"use": "k_center"}}, r"split the budget over classes themselves do not nest"),
        ("class_balanced", {"inside": {"cut": 0.1}}, r"inside=\{'cut': 0.1\} cannot choose within a class"),
        ("class_balanced", {"inside": {"use": "ccs", "cat": 1}}, r"ccs takes no option 'cat'; it takes strata, cut"),
        ("class_balanced", {"inside": {"use": "ccs", "cut": 2}}, r"cut=2 is not in \[0, 1\)"),
        ("class_balanced", {"inside": {"use": "top", "seed": 2}}, r"top takes no option 'seed'; it takes none"),
        ("class_balanced", {"inside": {"use": "window", "start": "auto"}}, r"window reads no features within a class"),
        ("class_balanced", {"inside": "beta"}, r"inside: beta reads p_label_M, the probability of the true class"),
        ("class_floor", {"floor": 1.5}, r"floor=1.5 is not in \[0, 1\]"),
        ("class_quota", {"strength": -1}, r"strength=-1 must be a number, 0 or more"),
        ("beta", {"mu": 1.5, "p_label_M": np.full(10, 0.5, np.float32)}, r"mu=1.5 is not in \[0, 1\]"),
        ("beta", {"c": 0, "p_label_M": np.full(10, 0.5, np.float32)}, r"c=0 must be a number above 0"),
    ],
)
def test_options_outside_their_range_are_refused(policy: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        getattr(select, policy)(*candidates(10), 5, kept_C=np.zeros(CLASSES, np.int64), seed=0, **options)


def test_beta_over_epochs_reads_the_mean_over_epochs() -> None:
    columns = candidates(97, seed=4)
    rng = np.random.default_rng(4)
    last, doubt = rng.random(97).astype(np.float32), rng.random(97).astype(np.float32)
    given = {"kept_C": np.zeros(CLASSES, np.int64), "seed": 0}
    over = select.beta(*columns, 40, **given, p_label_M=last, consistency_M=doubt, over="epochs")
    np.testing.assert_array_equal(over, select.beta(*columns, 40, **given, p_label_M=1 - doubt))
    np.testing.assert_array_equal(
        select.beta(*columns, 40, **given, p_label_M=last, consistency_M=doubt),
        select.beta(*columns, 40, **given, p_label_M=last),
    )
    with pytest.raises(ConfigError, match="reads the score consistency, as the mean of votes"):
        select.beta(*columns, 40, **given, p_label_M=last, over="epochs")
    with pytest.raises(ConfigError, match="over='all' is neither last nor epochs"):
        select.beta(*columns, 40, **given, p_label_M=last, over="all")
