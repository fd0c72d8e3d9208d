"""The arguments of a policy that chooses from shards, the orders that it cuts, and how a choice is made of cuts.

Shapes: M rows of a chunk, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Chunk, Memory, Shards
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.core.outofcore.sort_keys import Keys, best_first_keys
from unseen_ray.core.outofcore.threshold_search import Cut, Order, Ranks, find_cuts
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import DataError

__all__ = ["Request", "score_keys"]


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
        plain = Order(columns=("score",), keys=score_keys, bits=32, seed=self.seed)
        return replace(plain, **changes)

    def by_hash(self, purpose: str, **changes: Any) -> Order:
        """A random order, by the seeded hash of the id."""
        seed = derive(self.seed, purpose)
        plain = Order(columns=("id",), keys=lambda chunk: tie_keys(chunk["id"], seed), bits=64, seed=seed)
        return replace(plain, **changes)

    def in_classes(self, order: Order) -> Order:
        """The same order within each class."""
        return replace(order, columns=(*order.columns, "label"), groups=len(self.kept_C), group=self.labels)

    def labels(self, chunk: Chunk) -> IntArray:
        """(M,) classes of a chunk."""
        labels = chunk["label"]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.kept_C):
            raise DataError(
                f"the score shards hold labels from {labels.min()} to {labels.max()}; kept_C counts {len(self.kept_C)} classes."
            )
        return labels

    def checked(self, sizes_G: IntArray) -> int:
        """The number of candidates; DataError if there are fewer than the budget."""
        if not 0 <= self.budget <= sizes_G.sum():
            raise DataError(f"the score shards hold {sizes_G.sum()} candidates, and {self.budget} are to be chosen.")
        return int(sizes_G.sum())

    def cuts(self, order: Order, ranks: Ranks) -> list[Cut]:
        """Where `ranks` cuts an order."""
        return find_cuts(self.shards, order, ranks, self.memory)

    def before(self, order: Order, ranks: Callable[[IntArray], IntArray]) -> Chosen:
        """The candidates before the single cut of an order: (G,) ranks, from (G,) sizes.

        Raises:
            DataError: if the candidates are fewer than the budget.
        """

        def checked(sizes_G: IntArray) -> IntArray:
            self.checked(sizes_G)
            return ranks(sizes_G)[None]

        (cut,) = self.cuts(order, checked)
        return Chosen(count=cut.count, columns=order.columns, takes=cut.before)

    def first(self, order: Order) -> Chosen:
        """The first candidates of an order, as many as the budget."""
        return self.before(order, lambda sizes_G: np.array([self.budget]))

    def filled_up(self, some: Chosen, order: Order) -> Chosen:
        """A choice, and the first others of an order that fill the budget."""
        # Which rows are left for the second search is known only once the first has made its cut.
        columns = tuple(dict.fromkeys((*some.columns, *order.columns, "id")))
        others = replace(order, columns=columns, among=lambda chunk: ~some.takes(chunk))
        (rest,) = self.cuts(others, lambda sizes_G: np.array([[self.budget - some.count]]))
        return Chosen(count=self.budget, columns=columns, takes=lambda chunk: some.takes(chunk) | rest.before(chunk))


def score_keys(chunk: Chunk) -> Keys:
    """(M,) keys of a chunk's scores, the lowest for the highest score; DataError if they are not finite float32."""
    scores = chunk["score"]
    if scores.dtype != np.float32:
        raise DataError(f"the score shards hold scores of type {scores.dtype}; they must be float32.")
    if not np.isfinite(scores).all():
        bad = scores[~np.isfinite(scores)][0]
        raise DataError(
            f"the score shards hold a score that is {bad}; all must be finite numbers. Score these samples again."
        )
    return best_first_keys(scores)
