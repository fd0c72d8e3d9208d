"""The policies that choose within each class, by passes over shards."""

from __future__ import annotations

from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Chunk, spread
from unseen_ray.core.outofcore.exact_sums import ExactSums
from unseen_ray.core.outofcore.request import Request, score_keys
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.core.policies.by_class import even_share, least_quota, quota_by_mean

__all__ = ["choose_balanced", "choose_floor", "choose_quota"]


def choose_balanced(request: Request) -> Chosen:
    """See `core.select.class_balanced`."""

    def ranks(sizes_C: IntArray) -> IntArray:
        request.checked(sizes_C)
        return even_share(sizes_C, request.budget, request.kept_C, request.seed)[None]

    return request.before(request.in_classes(request.order()), ranks)


def choose_floor(request: Request) -> Chosen:
    """See `core.select.class_floor`."""

    def ranks(sizes_C: IntArray) -> IntArray:
        request.checked(sizes_C)
        return least_quota(sizes_C, request.budget, request.kept_C, request.seed, floor=request.options["floor"])[None]

    granted = request.before(request.in_classes(request.order()), ranks)
    return request.filled_up(granted, request.order())


def choose_quota(request: Request) -> Chosen:
    """See `core.select.class_quota`."""
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

    def ranks(sizes_C: IntArray) -> IntArray:
        request.checked(sizes_C)
        strength = request.options["strength"]
        given = (sizes_C, request.budget, request.kept_C, request.seed)
        return quota_by_mean(sums.totals(), lowest, *given, strength=strength)[None]

    return request.before(request.in_classes(request.order()), ranks)
