"""The policies that can choose from shards, in passes: first what they need to know of all candidates, then where to cut the order.

Shapes: M rows of a chunk, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.core.outofcore.chunks import Chunk, Memory, Shards, spread
from unseen_ray.core.outofcore.exact_sums import ExactSums
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.core.outofcore.sort_keys import Keys, best_first_keys, value_of_key
from unseen_ray.core.outofcore.threshold_search import Cut, Order, Ranks, find_cuts
from unseen_ray.core.policies.beta import HARDEST, beta_draws, beta_shape
from unseen_ray.core.policies.by_class import even_share, least_quota, quota_by_mean
from unseen_ray.core.policies.ccs import filled, strata_of
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import DataError

__all__ = ["POLICIES", "Request"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """The arguments of a policy, with the shards in place of the candidates' arrays."""

    shards: Shards
    budget: int
    kept_C: IntArray
    seed: int
    memory: Memory
    options: Mapping[str, Any] = field(default_factory=dict)

    def order(self, **changes: Any) -> Order:
        """The order from the highest score to the lowest."""
        plain = Order(columns=("score",), keys=_score_keys, bits=32, seed=self.seed)
        return replace(plain, **changes)

    def classes(self, **changes: Any) -> Order:
        """The same order within each class."""
        return self.order(columns=("score", "label"), groups=len(self.kept_C), group=self.labels, **changes)

    def labels(self, chunk: Chunk) -> IntArray:
        """(M,) classes of a chunk."""
        labels = chunk["label"]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.kept_C):
            raise DataError(
                f"the score shards hold labels from {labels.min()} to {labels.max()}; kept_C counts {len(self.kept_C)} classes."
            )
        return labels

    def cuts(self, order: Order, ranks: Ranks) -> list[Cut]:
        """Where `ranks` cuts an order."""
        return find_cuts(self.shards, order, ranks, self.memory)


def _score_keys(chunk: Chunk) -> Keys:
    scores = chunk["score"]
    if scores.dtype != np.float32:
        raise DataError(f"the score shards hold scores of type {scores.dtype}; they must be float32.")
    if not np.isfinite(scores).all():
        bad = scores[~np.isfinite(scores)][0]
        raise DataError(
            f"the score shards hold a score that is {bad}; all must be finite numbers. Score these samples again."
        )
    return best_first_keys(scores)


def _checked(budget: int, sizes_G: IntArray) -> int:
    """The number of candidates; DataError if there are fewer than `budget`."""
    if not 0 <= budget <= sizes_G.sum():
        raise DataError(f"the score shards hold {sizes_G.sum()} candidates, and {budget} are to be chosen.")
    return int(sizes_G.sum())


def _of_cut(cut: Cut) -> Chosen:
    return Chosen(count=cut.count, columns=cut.order.columns, takes=cut.before)


def _between(request: Request, first: Callable[[int], int]) -> Chosen:
    """A window of the order, from a place that depends on the number of candidates."""

    def ranks(sizes_G: IntArray) -> IntArray:
        begin = first(_checked(request.budget, sizes_G))
        return np.array([[begin], [begin + request.budget]])

    # Both ends in one search: each pass over the shards narrows both.
    out, within = request.cuts(request.order(), ranks)
    return Chosen(
        count=within.count - out.count,
        columns=("score",),
        takes=lambda chunk: within.before(chunk) & ~out.before(chunk),
    )


def _first(request: Request, order: Order) -> Chosen:
    """The first `budget` candidates of an order."""

    def ranks(sizes_G: IntArray) -> IntArray:
        _checked(request.budget, sizes_G)
        return np.array([[request.budget]])

    return _of_cut(request.cuts(order, ranks)[0])


def _top(request: Request) -> Chosen:
    return _first(request, request.order())


def _random(request: Request) -> Chosen:
    return _first(request, _by_hash(request, "random"))


def _by_hash(request: Request, purpose: str, **changes: Any) -> Order:
    """A random order, by the seeded hash of the id."""
    seed = derive(request.seed, purpose)
    plain = Order(columns=("id",), keys=lambda chunk: tie_keys(chunk["id"], seed), bits=64, seed=seed)
    return replace(plain, **changes)


def _filled_up(request: Request, first: Order, ranks: Ranks, order: Order) -> Chosen:
    """What `ranks` cuts of one order, and the first others of another one."""
    # Which rows are left for the second search is known only once the first has made its cut.
    (granted,) = request.cuts(first, ranks)
    left = request.budget - granted.count
    columns = tuple(dict.fromkeys((*first.columns, *order.columns, "id")))
    others = replace(order, columns=columns, among=lambda chunk: ~granted.before(chunk))
    (rest,) = request.cuts(others, lambda sizes_G: np.array([[left]]))
    return Chosen(count=request.budget, columns=columns, takes=lambda chunk: granted.before(chunk) | rest.before(chunk))


def _mix(request: Request) -> Chosen:
    def ranks(sizes_G: IntArray) -> IntArray:
        _checked(request.budget, sizes_G)
        return np.array([[round(request.options["share"] * request.budget)]])

    return _filled_up(request, request.order(), ranks, _by_hash(request, "random"))


def _window(request: Request) -> Chosen:
    start = request.options["start"]
    return _between(request, lambda size: min(round(start * size), size - request.budget))


def _moderate(request: Request) -> Chosen:
    return _between(request, lambda size: (size - request.budget) // 2)


def _class_balanced(request: Request) -> Chosen:
    def ranks(sizes_C: IntArray) -> IntArray:
        _checked(request.budget, sizes_C)
        return even_share(sizes_C, request.budget, request.kept_C, request.seed)[None]

    return _of_cut(request.cuts(request.classes(), ranks)[0])


def _class_floor(request: Request) -> Chosen:
    def ranks(sizes_C: IntArray) -> IntArray:
        _checked(request.budget, sizes_C)
        return least_quota(sizes_C, request.budget, request.kept_C, request.seed, floor=request.options["floor"])[None]

    return _filled_up(request, request.classes(), ranks, request.order())


def _class_quota(request: Request) -> Chosen:
    # Exact sums do not depend on how rows are split into chunks, and so equal those of the whole table.
    sums, lowest = ExactSums(len(request.kept_C)), 0.0

    def add(chunk: Chunk) -> tuple[ExactSums, float]:
        _score_keys(chunk)
        part = ExactSums(len(request.kept_C))
        part.add(request.labels(chunk), chunk["score"])
        return part, float(chunk["score"].min(initial=0.0))

    for part, low in spread(request.shards(("score", "label")), add, request.memory.threads):
        sums.merge(part)
        lowest = min(lowest, low)

    def ranks(sizes_C: IntArray) -> IntArray:
        _checked(request.budget, sizes_C)
        strength = request.options["strength"]
        given = (sizes_C, request.budget, request.kept_C, request.seed)
        return quota_by_mean(sums.totals(), lowest, *given, strength=strength)[None]

    return _of_cut(request.cuts(request.classes(), ranks)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """Number of scores, the lowest and the highest one, and (10,) probabilities of the true class of the hardest samples."""

    count: int
    low: float
    high: float
    hardest: FloatArray


def _survey(request: Request, *, probs: bool) -> _Survey:
    def look(chunk: Chunk) -> dict[str, NDArray[Any]]:
        keys = _score_keys(chunk)
        found = {"count": np.array([len(keys)]), "ends": keys[:0]}
        if len(keys):
            found["ends"] = np.array([keys.min(), keys.max()])
        if probs:
            found |= _best(keys, chunk, request.seed)
        return found

    columns = ("score", "p_label", "id") if probs else ("score",)
    parts = list(spread(request.shards(columns), look, request.memory.threads))
    ends = np.concatenate([part["ends"] for part in parts]) if parts else np.empty(0, np.uint32)
    hardest = np.empty(0, np.float32)
    if probs and parts:
        every = {name: np.concatenate([part[name] for part in parts]) for name in ("keys", "id", "p_label")}
        hardest = _best(every["keys"], every, request.seed)["p_label"]
    return _Survey(
        count=int(sum(part["count"][0] for part in parts)),
        low=value_of_key(int(ends.max()), np.float32) if len(ends) else 0.0,
        high=value_of_key(int(ends.min()), np.float32) if len(ends) else 0.0,
        hardest=hardest,
    )


def _best(keys: Keys, chunk: Chunk, seed: int) -> dict[str, NDArray[Any]]:
    """The hardest rows of a chunk, in order."""
    rows = np.arange(len(keys))
    if len(keys) > HARDEST:
        # All ties of the last place, so that their hashes decide, as they do in a whole table.
        rows = np.flatnonzero(keys <= np.partition(keys, HARDEST - 1)[HARDEST - 1])
    order = rows[np.lexsort((tie_keys(chunk["id"][rows], seed), keys[rows]))][:HARDEST]
    return {"keys": keys[order], "id": chunk["id"][order], "p_label": chunk["p_label"][order]}


def _ccs(request: Request) -> Chosen:
    survey = _survey(request, probs=False)
    _checked(request.budget, np.array([survey.count]))
    strata, out = request.options["strata"], None
    first = min(round(request.options["cut"] * survey.count), survey.count - request.budget)
    high = survey.high
    if 0 < first < survey.count:
        (out,) = request.cuts(request.order(), lambda sizes_G: np.array([[first]]))
        high = value_of_key(int(out.keys_G[0]), np.float32)  # a cut lies at the first row that is left
    elif first == survey.count:
        return Chosen(count=0, columns=("score",), takes=lambda chunk: np.zeros(len(chunk["score"]), bool))

    def left(chunk: Chunk) -> NDArray[np.bool_]:
        _score_keys(chunk)
        return np.ones(len(chunk["score"]), bool) if out is None else ~out.before(chunk)

    order = _by_hash(
        request,
        "strata",
        columns=("score", "id"),
        groups=strata,
        group=lambda chunk: strata_of(chunk["score"], survey.low, high, strata),
        among=left if out is not None else None,
    )
    return _of_cut(request.cuts(order, lambda sizes_G: filled(sizes_G, request.budget)[None])[0])


def _beta(request: Request) -> Chosen:
    survey = _survey(request, probs=True)
    _checked(request.budget, np.array([survey.count]))
    if not survey.count:
        return Chosen(count=0, columns=("score",), takes=lambda chunk: np.zeros(len(chunk["score"]), bool))
    kept, c = int(request.kept_C.sum()), request.options["c"]
    b = beta_shape(survey.hardest, candidates=survey.count, budget=request.budget, kept=kept, c=c)

    def keys(chunk: Chunk) -> Keys:
        ends = {"low": survey.low, "high": survey.high}
        draws, _ = beta_draws(chunk["score"], chunk["p_label"], chunk["id"], b=b, **ends, seed=request.seed)
        return best_first_keys(draws)

    return _first(
        request, Order(columns=("score", "p_label", "id"), keys=keys, bits=64, seed=derive(request.seed, "beta"))
    )


POLICIES: dict[str, Callable[[Request], Chosen]] = {
    "beta": _beta,
    "ccs": _ccs,
    "class_balanced": _class_balanced,
    "class_floor": _class_floor,
    "class_quota": _class_quota,
    "mix": _mix,
    "moderate": _moderate,
    "random": _random,
    "top": _top,
    "window": _window,
}
