"""The policies that choose within each class, by passes over shards."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Chunk, spread
from unseen_ray.core.outofcore.exact_sums import ExactSums
from unseen_ray.core.outofcore.request import Request, score_keys
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.core.outofcore.threshold_search import Order
from unseen_ray.core.policies.quotas import even_share, least_quota, misses_of, quota_by_mean

__all__ = ["choose_balanced", "choose_floor", "choose_quota"]


def choose_balanced(request: Request) -> Chosen:
    """See `core.select.class_balanced`."""
    return request.before(
        _inside(request), lambda sizes_C: even_share(sizes_C, request.budget, request.kept_C, request.seed)
    )


def choose_floor(request: Request) -> Chosen:
    """See `core.select.class_floor`."""
    given, floor = (request.budget, request.kept_C, request.seed), request.options["floor"]
    granted = request.before(
        request.in_classes(request.order()), lambda sizes_C: least_quota(sizes_C, *given, floor=floor)
    )
    return request.filled_up(granted, request.order())


def choose_quota(request: Request) -> Chosen:
    """See `core.select.class_quota`."""
    sums, lowest = (_misses if request.options["by"] == "recall" else _scores)(request)
    given, strength = (request.budget, request.kept_C, request.seed), request.options["strength"]
    return request.before(
        _inside(request), lambda sizes_C: quota_by_mean(sums, lowest, sizes_C, *given, strength=strength)
    )


def _scores(request: Request) -> tuple[list[Fraction], float]:
    """The exact sum of the scores of each class, and the lowest score."""
    # Exact sums do not depend on how rows are split into chunks, and so equal those of the whole table.
    sums, lowest = ExactSums(len(request.kept_C)), 0.0

    def add(chunk: Chunk) -> tuple[ExactSums, float]:
        score_keys(chunk)
        part = ExactSums(len(request.kept_C))
        part.add(request.labels(chunk), chunk["score"])
        return part, float(chunk["score"].min(initial=0.0))

    for part, low in spread(request.shards(("score", "label")), add, request.memory.threads):
        sums.merge(part)
        lowest = min(lowest, low)
    return sums.totals(), lowest


def _misses(request: Request) -> tuple[list[Fraction], float]:
    """How many of each class are predicted as another one, and 0."""
    classes = len(request.kept_C)

    def count(chunk: Chunk) -> IntArray:
        return misses_of(request.labels(chunk), chunk["pred"], classes)

    parts = spread(request.shards(("label", "pred")), count, request.memory.threads)
    misses_C = sum(parts, np.zeros(classes, np.int64))
    return [Fraction(number) for number in misses_C.tolist()], 0.0


def _inside(request: Request) -> Order:
    """The order within each class that the option `inside` names: `top` or `random`."""
    inside = request.options["inside"]
    use = inside["use"] if isinstance(inside, Mapping) else inside
    return request.in_classes(request.order() if use == "top" else request.by_hash("random"))
