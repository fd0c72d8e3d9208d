"""The policies that can choose from shards, in passes: first what they need to know of all candidates, then where to cut the order.

Shapes: M rows of a chunk, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.core.outofcore.by_class import choose_balanced, choose_floor, choose_quota
from unseen_ray.core.outofcore.chunks import Chunk, spread
from unseen_ray.core.outofcore.request import Request, score_keys
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.core.outofcore.sort_keys import Keys, best_first_keys, value_of_key
from unseen_ray.core.outofcore.threshold_search import Order
from unseen_ray.core.policies.base import best_first, from_zero
from unseen_ray.core.policies.beta import HARDEST, beta_draws, beta_shape
from unseen_ray.core.policies.ccs import filled, strata_of
from unseen_ray.core.policies.power import power_draws
from unseen_ray.core.seeds import derive

__all__ = ["POLICIES"]


def _between(request: Request, first: Callable[[int], int]) -> Chosen:
    """A window of the order, from a place that depends on the number of candidates."""

    def ranks(sizes_G: IntArray) -> IntArray:
        begin = first(request.checked(sizes_G))
        return np.array([[begin], [begin + request.budget]])

    # Both ends in one search: each pass over the shards narrows both.
    out, within = request.cuts(request.order(), ranks)
    return Chosen(
        count=within.count - out.count,
        columns=("score",),
        takes=lambda chunk: within.before(chunk) & ~out.before(chunk),
    )


def _top(request: Request) -> Chosen:
    return request.first(request.order())


def _random(request: Request) -> Chosen:
    return request.first(request.by_hash("random"))


def _mix(request: Request) -> Chosen:
    count = round(request.options["share"] * request.budget)
    return request.filled_up(
        request.before(request.order(), lambda sizes_G: np.array([count])), request.by_hash("random")
    )


def _power(request: Request) -> Chosen:
    low, gamma = _survey(request, probs=False).low, request.options["gamma"]

    def keys(chunk: Chunk) -> Keys:
        score_keys(chunk)
        return best_first_keys(power_draws(from_zero(chunk["score"], low), chunk["id"], gamma, request.seed))

    return request.first(Order(columns=("score", "id"), keys=keys, bits=64, seed=derive(request.seed, "random")))


def _window(request: Request) -> Chosen:
    start = request.options["start"]
    return _between(request, lambda size: min(round(start * size), size - request.budget))


def _moderate(request: Request) -> Chosen:
    return _between(request, lambda size: (size - request.budget) // 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """Number of scores, the lowest and the highest one, and (10,) probabilities of the true class of the hardest samples."""

    count: int
    low: float
    high: float
    hardest: FloatArray


def _survey(request: Request, *, probs: bool) -> _Survey:
    def look(chunk: Chunk) -> tuple[int, FloatArray, Chunk]:
        score_keys(chunk)  # checks them
        scores = chunk["score"]
        ends = np.array([scores.min(), scores.max()]) if len(scores) else scores
        return len(scores), ends, _best(chunk, request.seed) if probs else {}

    columns = ("score", "p_label", "id") if probs else ("score",)
    parts = list(spread(request.shards(columns), look, request.memory.threads))
    ends = np.concatenate([ends for _, ends, _ in parts]) if parts else np.empty(0, np.float32)
    hardest = np.empty(0, np.float32)
    if probs and parts:
        every = {name: np.concatenate([best[name] for _, _, best in parts]) for name in ("score", "id", "p_label")}
        hardest = _best(every, request.seed)["p_label"]
    return _Survey(
        count=sum(count for count, _, _ in parts),
        low=float(ends.min()) if len(ends) else 0.0,
        high=float(ends.max()) if len(ends) else 0.0,
        hardest=hardest,
    )


def _best(chunk: Chunk, seed: int) -> Chunk:
    """The hardest rows of a chunk, in order."""
    rows = best_first(chunk["score"], chunk["id"], seed, HARDEST)
    return {name: chunk[name][rows] for name in ("score", "id", "p_label")}


def _ccs(request: Request) -> Chosen:
    survey = _survey(request, probs=False)
    request.checked(np.array([survey.count]))
    strata, out = request.options["strata"], None
    first = min(round(request.options["cut"] * survey.count), survey.count - request.budget)
    high = survey.high
    if 0 < first < survey.count:
        (out,) = request.cuts(request.order(), lambda sizes_G: np.array([[first]]))
        high = value_of_key(int(out.keys_G[0]), np.float32)  # a cut lies at the first row that is left

    def left(chunk: Chunk) -> NDArray[np.bool_]:
        score_keys(chunk)
        return np.ones(len(chunk["score"]), bool) if out is None else ~out.before(chunk)

    order = request.by_hash(
        "strata",
        columns=("score", "id"),
        groups=strata,
        group=lambda chunk: strata_of(chunk["score"], survey.low, high, strata),
        among=left if out is not None else None,
    )
    return request.before(order, lambda sizes_G: filled(sizes_G, request.budget))


def _beta(request: Request) -> Chosen:
    mu = request.options["mu"]
    survey = _survey(request, probs=mu is None)
    request.checked(np.array([survey.count]))
    if not survey.count:
        return Chosen(count=0, columns=("score",), takes=lambda chunk: np.zeros(len(chunk["score"]), bool))
    kept, c = int(request.kept_C.sum()), request.options["c"]
    hardest = survey.hardest if mu is None else np.array([mu])
    b = beta_shape(hardest, candidates=survey.count, budget=request.budget, kept=kept, c=c)

    def keys(chunk: Chunk) -> Keys:
        ends = {"low": survey.low, "high": survey.high}
        draws = beta_draws(chunk["score"], chunk["p_label"], chunk["id"], b=b, **ends, seed=request.seed)
        return best_first_keys(draws)

    return request.first(
        Order(columns=("score", "p_label", "id"), keys=keys, bits=64, seed=derive(request.seed, "beta"))
    )


POLICIES: dict[str, Callable[[Request], Chosen]] = {
    "beta": _beta,
    "ccs": _ccs,
    "class_balanced": choose_balanced,
    "class_floor": choose_floor,
    "class_quota": choose_quota,
    "mix": _mix,
    "moderate": _moderate,
    "power": _power,
    "random": _random,
    "top": _top,
    "window": _window,
}
