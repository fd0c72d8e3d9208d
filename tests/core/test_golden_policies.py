"""Every policy beside a slow one that is written from its formula: plain loops, exact fractions, no numpy.

What the formulas leave open is taken from what `core.select` documents: ties and draws go by the seeded hash of the id, lowest first.
The laws that hold whatever the formula are in test_select.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from unseen_ray.core import select
from unseen_ray.core.policies import by_features as diversity
from unseen_ray.core.seeds import derive as derived
from unseen_ray.plugins import offered

CLASSES = 4
MASK = 2**64 - 1
derive = functools.cache(derived)
exactly = functools.cache(Fraction)


@dataclass(frozen=True)
class Case:
    """What a policy is given, as plain lists."""

    scores: list[float]
    labels: list[int]
    ids: list[int]
    p_label: list[float]
    budget: int
    pred: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=lambda: [0] * CLASSES)
    seed: int = 0

    @property
    def members(self) -> list[list[int]]:
        """Positions of each class."""
        return [[i for i, label in enumerate(self.labels) if label == c] for c in range(CLASSES)]

    @property
    def sizes(self) -> list[int]:
        """Samples of each class, chosen or not."""
        return [len(its) + kept for its, kept in zip(self.members, self.kept, strict=True)]

    @property
    def target(self) -> int:
        """How many there are to be of all classes, what is kept already included."""
        return self.budget + sum(self.kept)


@functools.cache
def key_of(number: int, seed: int) -> int:
    """The seeded hash of an id: two rounds of splitmix64's finaliser, by Python's integers."""

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return mixed(((mixed((number + 0x9E3779B97F4A7C15) & MASK) ^ key) + 0x9E3779B97F4A7C15) & MASK)


def hardest_first(case: Case, among: Sequence[int] | None = None) -> list[int]:
    positions = range(len(case.ids)) if among is None else among
    return sorted(positions, key=lambda i: (-case.scores[i], key_of(case.ids[i], case.seed)))


def drawn(case: Case, among: Sequence[int], purpose: str) -> list[int]:
    """Positions in an order that is random, but a function of seed and id alone."""
    seed = derive(case.seed, purpose)
    return sorted(among, key=lambda i: key_of(case.ids[i], seed))


def ref_top(case: Case) -> list[int]:
    return hardest_first(case)[: case.budget]


def ref_random(case: Case) -> list[int]:
    return drawn(case, range(len(case.ids)), "random")[: case.budget]


def ref_mix(case: Case, *, share: float = 0.5) -> list[int]:
    """The hardest up to a share of the budget; then whoever comes next in the order of `random`."""
    chosen = hardest_first(case)[: round(share * case.budget)]
    for i in drawn(case, range(len(case.ids)), "random"):
        if len(chosen) < case.budget and i not in chosen:
            chosen.append(i)
    return chosen


def ref_ccs(case: Case, *, strata: int = 50, cut: float = 0.0) -> list[int]:
    """Algorithm 1 of its paper: prune the hardest, split the range of scores evenly, take of the smallest stratum first."""
    left = hardest_first(case)
    for _ in range(round(cut * len(left))):
        if len(left) > case.budget:
            left.pop(0)
    if not left:
        return []
    low, high = (exactly(end(case.scores[i] for i in left)) for end in (min, max))
    bins: dict[int, list[int]] = {number: [] for number in range(strata)}
    for i in left:
        number = 0 if low == high else int((exactly(case.scores[i]) - low) * strata / (high - low))
        bins[min(number, strata - 1)].append(i)  # the last one is closed
    chosen: list[int] = []
    for smallest in sorted(bins, key=lambda number: (len(bins[number]), number)):
        share = (case.budget - len(chosen)) // len(bins)
        chosen += drawn(case, bins.pop(smallest), "strata")[:share]
    return chosen


def ref_window(case: Case, *, start: float = 0.1) -> list[int]:
    """A window of the order: slid down from the hardest, as far as it still lies within."""
    order, first = hardest_first(case), 0
    while first < round(start * len(order)) and first + case.budget < len(order):
        first += 1
    return [order[first + place] for place in range(case.budget)]


def ref_moderate(case: Case) -> list[int]:
    """The middle of the order: what is left when both ends lose one in turn, the easiest end first."""
    order, turn = hardest_first(case), 0
    while len(order) > case.budget:
        order.pop(-1 if turn % 2 == 0 else 0)
        turn += 1
    return order


def ref_beta(case: Case, *, c: float = 4.0, mu: float | None = None) -> list[int]:
    """Drawn without replacement, in proportion to score * Beta(a, b).pdf(p_y): the largest u^(1/w), u from the id's hash."""
    if not case.budget:
        return []
    hardest = hardest_first(case)[:10]
    # 1e-7 and 1 - 1e-7 stand for 0 and 1, where a density may be infinite
    p = [min(max(value, 1e-7), 1 - 1e-7) for value in case.p_label]
    mean = sum(p[i] for i in hardest) / len(hardest) if mu is None else min(max(mu, 1e-7), 1 - 1e-7)
    pruned = 1 - case.target / (len(case.ids) + sum(case.kept))
    b = 15 * (1 - mean) * (1 - pruned**c)
    a = 16 - b
    lowest = min(0.0, *case.scores)
    gains = [score - lowest for score in case.scores]
    if not any(gains):
        gains = [1.0] * len(gains)
    seed = derive(case.seed, "beta")
    log_norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)

    def order(i: int) -> tuple[float, int]:
        key = key_of(case.ids[i], seed)
        log_pdf = log_norm + (a - 1) * math.log(p[i]) + (b - 1) * math.log(1 - p[i])
        log_u = math.log((key + 0.5) / 2**64)
        weight = gains[i] * math.exp(log_pdf)
        return (-log_u / weight if weight else math.inf, key)

    return sorted(range(len(case.ids)), key=order)[: case.budget]


def ref_power(case: Case, *, gamma: float = 1.0, of: str = "rank") -> list[int]:
    """Drawn without replacement in proportion to w^gamma: the smallest -log(u) / w^gamma, u falling as the hash of `random` rises."""
    count, seed = len(case.ids), derive(case.seed, "random")
    if of == "rank":
        below = [sum(other < score for other in case.scores) for score in case.scores]
        alike = [case.scores.count(score) for score in case.scores]
        weights = [(low + (same + 1) / 2 - 0.5) / count for low, same in zip(below, alike, strict=True)]
    else:
        weights = [score - min(0.0, *case.scores) for score in case.scores]

    def order(i: int) -> tuple[float, int]:
        key = key_of(case.ids[i], seed)
        if weights[i] == 0 and gamma:
            return (math.inf if gamma > 0 else -math.inf, key)
        # the logarithm as the policy reads it, whose first digits a weight of 1e6 to a power would drown
        return (math.log(-math.log(1 - (key + 0.5) / 2**64)) - gamma * math.log(weights[i] or 1.0), key)

    return sorted(range(count), key=order)[: case.budget]


def even_shares(case: Case) -> list[int]:
    """Largest remainder over the sizes; a class that has more than its share keeps it, and the others divide the rest."""
    shares, free = list(case.kept), [c for c in range(CLASSES) if case.sizes[c]]
    while free:
        rest = case.target - sum(shares[c] for c in range(CLASSES) if c not in free)
        exact = {c: Fraction(rest * case.sizes[c], sum(case.sizes[d] for d in free)) for c in free}
        rounded = {c: math.floor(exact[c]) for c in free}
        by_remainder = sorted(free, key=lambda c: (rounded[c] - exact[c], key_of(c, derive(case.seed, "remainders"))))
        for c in by_remainder[: rest - sum(rounded.values())]:
            rounded[c] += 1
        over = [c for c in free if rounded[c] < case.kept[c]]
        if not over:
            return [rounded.get(c, shares[c]) for c in range(CLASSES)]
        free = [c for c in free if c not in over]
    return shares


def best_of_each(case: Case, shares: Sequence[int]) -> list[int]:
    return [i for its, share in zip(case.members, shares, strict=True) for i in hardest_first(case, its)[:share]]


def alone(case: Case, number: int, quota: int) -> tuple[Case, list[int]]:
    """A class as a policy sees it that chooses within it, and the positions of its samples."""
    its = case.members[number]
    columns = ([column[i] for i in its] for column in (case.scores, case.labels, case.ids, case.p_label))
    return Case(*columns, quota, kept=[case.kept[number], 0, 0, 0], seed=case.seed), its


def within_each(case: Case, shares: Sequence[int], inside: str | dict[str, Any]) -> list[int]:
    """What the policy of that name keeps of each class when there is no other class."""
    options = dict(inside) if isinstance(inside, dict) else {"use": inside}
    reference = REFERENCES[options.pop("use")]
    picked = []
    for number, (share, kept) in enumerate(zip(shares, case.kept, strict=True)):
        only, its = alone(case, number, share - kept)
        picked += [its[i] for i in reference(only, **options)] if its else []
    return picked


def ref_class_balanced(case: Case, *, inside: str | dict[str, Any] = "top") -> list[int]:
    return within_each(case, even_shares(case), inside)


def ref_class_floor(case: Case, *, floor: float = 0.5) -> list[int]:
    least = [max(math.floor(floor * share), min(share, 1)) for share in even_shares(case)]
    chosen = best_of_each(case, [max(share - kept, 0) for share, kept in zip(least, case.kept, strict=True)])
    for i in hardest_first(case):
        if len(chosen) < case.budget and i not in chosen:
            chosen.append(i)
    return chosen


def ref_class_quota(
    case: Case, *, strength: int = 1, by: str = "score", inside: str | dict[str, Any] = "top"
) -> list[int]:
    """The shares are size * difficulty^strength times one level, cut off at what a class has and at what there is of it."""
    hard = list(map(exactly, case.scores))
    if by == "recall":
        hard = [Fraction(pred != label) for pred, label in zip(case.pred, case.labels, strict=True)]
    lowest = min([Fraction(0), *hard])
    means = [sum((hard[i] - lowest for i in its), Fraction(0)) / max(len(its), 1) for its in case.members]
    if not any(means):
        means = [Fraction(1)] * CLASSES
    weights = [size * mean**strength for size, mean in zip(case.sizes, means, strict=True)]
    weights = [weight or Fraction(1, 10**300) for weight in weights]  # a class without weight comes last, not never
    bounds = list(zip(weights, case.kept, case.sizes, strict=True))

    def at(level: Fraction) -> list[Fraction]:
        return [min(max(level * weight, Fraction(low)), Fraction(high)) for weight, low, high in bounds]

    knees = {Fraction(0)} | {Fraction(end) / weight for weight, *ends in bounds for end in ends}
    below = max(knee for knee in knees if sum(at(knee)) <= case.target)
    rising = sum(weight for weight, low, high in bounds if low <= below * weight < high)
    level = below + (case.target - sum(at(below))) / rising if rising else below
    exact = at(level)
    shares = [math.floor(share) for share in exact]
    order = sorted(range(CLASSES), key=lambda c: (shares[c] - exact[c], key_of(c, derive(case.seed, "remainders"))))
    for c in order[: case.target - sum(shares)]:
        shares[c] += 1
    return within_each(case, shares, inside)


def ref_auto(case: Case) -> list[int]:
    """The hardest where the models are right often enough for the share that is kept, else strata, half of them, or none."""
    right = sum(pred == label for pred, label in zip(case.pred, case.labels, strict=True)) / len(case.labels)
    largest = max(map(case.labels.count, range(CLASSES))) / len(case.labels)
    sizes = sorted(count for c in range(CLASSES) if (count := case.labels.count(c) + case.kept[c]))
    if case.target < 25 * len(sizes) or right < min(2 * largest, 0.9 * largest + 0.1):
        return ref_random(case)
    keep = (case.target + 0.5) / (len(case.labels) + sum(case.kept))
    least = [share for accuracy, share in ((0.95, 0.4), (0.85, 0.55), (0.75, 0.75)) if right >= accuracy]
    if least and keep >= min(least):
        return ref_top(case)
    if right >= 0.75:
        return ref_ccs(case)
    if sizes[-1] >= 10 * sizes[(len(sizes) - 1) // 4] and right >= 0.5 and keep >= 0.3:
        return ref_top(case)
    return ref_mix(case) if keep >= 0.6 else ref_random(case)


REFERENCES: dict[str, Callable[..., list[int]]] = {
    "auto": ref_auto,
    "top": ref_top,
    "random": ref_random,
    "mix": ref_mix,
    "ccs": ref_ccs,
    "window": ref_window,
    "moderate": ref_moderate,
    "beta": ref_beta,
    "power": ref_power,
    "class_balanced": ref_class_balanced,
    "class_floor": ref_class_floor,
    "class_quota": ref_class_quota,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ccs": [{"strata": n, "cut": cut} for n, cut in product((1, 3, 50), (0.0, 0.3, 0.9))],
    "mix": [{"share": share} for share in (0.0, 0.3, 1.0)],
    "window": [{"start": start} for start in (0.0, 0.25, 0.9)],
    "power": [{"gamma": g, "of": of} for g, of in product((-1.0, 0.0, 0.5, 2.0), ("rank", "score"))],
    "beta": [{"c": 1.0}, {"c": 11.0}, {"mu": 0.5}, {"mu": 0}],
    "class_floor": [{"floor": 0.0}, {"floor": 0.25}, {"floor": 1.0}],
    "class_balanced": [{"inside": "random"}, {"inside": {"use": "ccs", "strata": 3, "cut": 0.3}}],
    "class_quota": [
        {"strength": 0},
        {"strength": 2},
        {"by": "recall"},
        {"by": "recall", "inside": "random"},
        {"by": "recall", "strength": 2, "inside": {"use": "beta", "c": 2}},
        {"inside": {"use": "mix", "share": 0.25}},
    ],
}
SCORES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, count: rng.normal(size=count),
    "all above": lambda rng, count: 5 + rng.random(count),
    "all below": lambda rng, count: -5 - rng.random(count),
    "ties": lambda rng, count: rng.integers(0, 4, count),
    "ties below": lambda rng, count: rng.integers(-3, 1, count),
    "tenths": lambda rng, count: rng.integers(0, 51, count) / 10,
    "zero": lambda rng, count: np.zeros(count),
    "constant": lambda rng, count: np.full(count, -2.5),
    "one apart": lambda rng, count: np.where(np.arange(count) == count // 2, 1e6, 0.0),
}


def cases(kind: str, *more: int) -> Iterator[Case]:
    for count, seed in product((1, 2, 9, 40, *more), (0, 7)):
        rng = np.random.default_rng((count, seed))
        values = SCORES[kind](rng, count).astype(np.float32).tolist()
        labels = rng.choice(CLASSES, count, p=[0.6, 0.25, 0.15, 0.0]).tolist()  # unequal classes, and an empty one
        ids = rng.permutation(5 * count)[:count].tolist()
        p_label = np.concatenate([rng.random(count), [0.0, 1.0]])[-count:].astype(np.float32).tolist()
        is_right = rng.random(count) < (0.9 if seed else 0.2)
        pred = np.where(is_right, labels, rng.integers(0, CLASSES, count)).tolist()
        for kept in ([0, 0, 0, 0], [3, 0, 9, 0], [0, 40, 0, 2]):
            for budget in sorted({0, 1, count // 3, count // 2, count - 1, count}):
                yield Case(values, labels, ids, p_label, budget, pred, kept, seed)


def chosen(name: str, case: Case, **options: Any) -> list[int]:
    columns = np.array(case.scores, np.float32), np.array(case.labels), np.array(case.ids)
    policy = getattr(select, name)
    more = offered(
        policy, {"p_label_M": np.array(case.p_label, np.float32), "pred_M": np.array(case.pred or case.labels)}
    )
    picked: list[int] = policy(
        *columns, case.budget, kept_C=np.array(case.kept), seed=case.seed, **more, **options
    ).tolist()
    return picked


def test_every_policy_has_a_reference() -> None:
    over_features = set(diversity.__all__)  # whose references are in test_diversity.py
    assert over_features == {"d2", "k_center"}
    assert set(select.__all__) == set(REFERENCES) | over_features
    assert set(OPTIONS) < set(REFERENCES)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_policy_keeps_what_its_formula_keeps(name: str, kind: str) -> None:
    done = 0
    for case in cases(kind, *([240] if name == "auto" else [])):  # it draws at random where there are few
        for options in [{}, *OPTIONS.get(name, [])]:
            assert sorted(chosen(name, case, **options)) == sorted(REFERENCES[name](case, **options)), (case, options)
            done += 1
    assert done > 100
