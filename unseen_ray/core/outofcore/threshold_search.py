"""Finds the first n rows of an order that is too long to sort, by counting in a few passes over its chunks.

Each pass counts, in equal bins, the keys in the interval that contains the threshold, and narrows the interval to one bin, until
the rows left in it are few enough to sort. If a single key is left, its ties are narrowed in the same way by their seeded hash.
Shapes: M rows of a chunk, G groups that are cut independently, L places at which each is cut.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Chunk, Memory, Shards, spread
from unseen_ray.core.outofcore.sort_keys import Keys
from unseen_ray.core.seeds import tie_keys

__all__ = ["Cut", "Order", "Ranks", "find_cuts"]

Ranks = Callable[[IntArray], IntArray]
"""Takes the (G,) sizes of the groups and returns (L, G) ranks: how many rows of each group come before each cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order of rows within groups: by ascending key, then by the seeded hash of the id.

    Attributes:
        columns: the columns that it reads.
        keys: (M,) uint32 or uint64 keys of a chunk.
        bits: 32 or 64, the bits of a key.
        seed: the seed of the hash.
        groups: G.
        group: (M,) group of each row of a chunk; None for a single group.
        among: (M,) bool, the rows of a chunk that take part; None for all.
    """

    columns: tuple[str, ...]
    keys: Callable[[Chunk], Keys]
    bits: int
    seed: int
    groups: int = 1
    group: Callable[[Chunk], IntArray] | None = None
    among: Callable[[Chunk], NDArray[np.bool_]] | None = None

    def part(self, chunk: Chunk) -> Chunk:
        """The rows that take part."""
        if self.among is None:
            return chunk
        rows = self.among(chunk)
        return {name: column[rows] for name, column in chunk.items()}

    def groups_of(self, chunk: Chunk) -> IntArray | None:
        """(M,) group of each row; None for a single group."""
        return None if self.group is None else self.group(chunk)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """A threshold in each group, given by the first row that is not before it.

    Attributes:
        order: the order that it cuts.
        keys_G, ties_G: (G,) uint64 key and tie key of that row.
        all_G: (G,) whether the whole group is before it, so that there is no such row.
        count: number of rows before it, over all groups.
    """

    order: Order
    keys_G: NDArray[np.uint64]
    ties_G: NDArray[np.uint64]
    all_G: NDArray[np.bool_]
    count: int

    def before(self, chunk: Chunk) -> NDArray[np.bool_]:
        """(M,) whether each row of a chunk is before it; False for rows that do not take part."""
        if self.order.among is not None:
            rows = self.order.among(chunk)
            found = np.zeros(len(rows), bool)
            found[rows] = self._before({name: column[rows] for name, column in chunk.items()})
            return found
        return self._before(chunk)

    def _before(self, chunk: Chunk) -> NDArray[np.bool_]:
        keys, groups = self.order.keys(chunk), self.order.groups_of(chunk)
        at = 0 if groups is None else groups
        places: Any = self.keys_G.astype(keys.dtype)[at]
        found: NDArray[np.bool_] = keys < places
        if (tied := np.flatnonzero(keys == places)).size:
            ties = tie_keys(chunk["id"][tied], self.order.seed)
            found[tied] = ties < (self.ties_G[0] if groups is None else self.ties_G[groups[tied]])
        return found | self.all_G[at] if self.all_G.any() else found


def find_cuts(shards: Shards, order: Order, ranks: Ranks, memory: Memory) -> list[Cut]:
    """Find the cuts that have given numbers of each group's rows before them.

    Args:
        shards: the rows.
        order: the order to cut.
        ranks: computes these numbers from the sizes of the groups.
        memory: limits of what is held at once.

    Returns:
        L cuts.
    """
    first = _Search(order, np.zeros(order.groups, np.int64), memory)
    counts_GB = _counted(shards, order, [first], memory)[0]
    sizes_G = counts_GB.sum(axis=1)
    ranks_LG = ranks(sizes_G)
    searches = [_Search(order, ranks_G, memory) for ranks_G in ranks_LG]
    for search in searches:
        search.active_G = (search.rank_G > 0) & (search.rank_G < sizes_G)
        search.narrow(counts_GB)
    while open_ := [search for search in searches if search.too_many(memory.buffer // len(searches))]:
        for search, counts in zip(open_, _counted(shards, order, open_, memory), strict=True):
            search.narrow(counts)
    if any(search.held for search in searches):
        _collect(shards, order, searches, memory)
    return [search.cut(sizes_G) for search in searches]


class _Search:
    """The interval of one cut per group: the `2**width` keys from `low_G` on, or the `2**tie_width` tie keys of one key."""

    def __init__(self, order: Order, rank_G: IntArray, memory: Memory) -> None:
        self.order, self.rank_G = order, rank_G.astype(np.int64)
        self.low_G = np.zeros(order.groups, np.uint64)
        self.tie_low_G = np.zeros(order.groups, np.uint64)
        self.before_G = np.zeros(order.groups, np.int64)
        self.active_G = np.ones(order.groups, bool)
        self.width, self.tie_width = order.bits, 64
        self.by_tie, self.held = False, 0
        # all groups share 2**bins bins, or up to 16 times as many rather than fewer than 2**12 per group
        bits = (order.groups - 1).bit_length()
        self._most = max(1, memory.bins - bits, min(12, memory.bins + 4 - bits))
        self.found_G: tuple[NDArray[np.uint64], NDArray[np.uint64]] = (self.low_G, self.tie_low_G)

    @property
    def step(self) -> int:
        """Number of bits by which the next pass narrows the interval."""
        return min(self._most, self.tie_width if self.by_tie else self.width)

    def too_many(self, buffer: int) -> bool:
        """Whether more rows are left than can be sorted, and the interval can still be narrowed."""
        return self.held > buffer and not (self.by_tie and self.tie_width == 0)

    def inside(self, keys: Keys, groups: IntArray | None, chunk: Chunk) -> tuple[Any, Keys]:
        """Rows within the intervals, and their distance from the start of the interval."""
        unsigned, at = keys.dtype.type, 0 if groups is None else groups
        whole = self.width == self.order.bits
        behind = keys if whole else keys - self.low_G.astype(keys.dtype)[at]  # keys below wrap around to large numbers
        rows: Any = np.flatnonzero(behind <= unsigned((1 << self.width) - 1)) if not whole else slice(None)
        if groups is not None and not self.active_G.all():
            rows = np.arange(len(keys))[rows]
            rows = rows[self.active_G[groups[rows]]]
        if not self.by_tie:
            return rows, behind[rows]
        low = self.tie_low_G[at] if groups is None else self.tie_low_G[groups[rows]]
        behind_tie = tie_keys(chunk["id"][rows], self.order.seed) - low
        within = behind_tie <= np.uint64((1 << self.tie_width) - 1)
        return np.arange(len(keys))[rows][within], behind_tie[within]

    def narrow(self, counts_GB: IntArray) -> None:
        """Narrow the interval of each group to the bin that contains its cut."""
        bits = self.step
        ends_GB = np.cumsum(counts_GB, axis=1)
        left_G = self.rank_G - self.before_G
        bins_G = np.minimum((ends_GB <= left_G[:, None]).sum(axis=1), counts_GB.shape[1] - 1)
        each = np.arange(len(bins_G))
        held_G = counts_GB[each, bins_G]
        self.before_G = self.before_G + np.where(self.active_G, ends_GB[each, bins_G] - held_G, 0)
        shift = np.uint64((self.tie_width if self.by_tie else self.width) - bits)
        offset_G = np.where(self.active_G, bins_G, 0).astype(np.uint64) << shift
        if self.by_tie:
            self.tie_low_G, self.tie_width = self.tie_low_G + offset_G, self.tie_width - bits
        else:
            self.low_G, self.width = self.low_G + offset_G, self.width - bits
            self.by_tie = self.width == 0
        self.held = int(held_G[self.active_G].sum())

    def settle(self, keys: NDArray[np.uint64], ties: NDArray[np.uint64], groups: IntArray) -> None:
        """Sort the rows left in the intervals and look up the cuts."""
        order = np.lexsort((ties, keys, groups))
        sizes_G = np.bincount(groups, minlength=self.order.groups)
        starts_G = np.cumsum(sizes_G) - sizes_G
        live = np.flatnonzero(self.active_G)
        rows = order[starts_G[live] + (self.rank_G - self.before_G)[live]]
        low_G, tie_low_G = np.zeros_like(self.low_G), np.zeros_like(self.low_G)
        low_G[live], tie_low_G[live] = keys[rows], ties[rows]
        self.found_G = low_G, tie_low_G

    def cut(self, sizes_G: IntArray) -> Cut:
        """The cut that was found."""
        keys_G, ties_G = self.found_G
        return Cut(
            order=self.order,
            keys_G=keys_G,
            ties_G=ties_G,
            all_G=(self.rank_G == sizes_G) & (sizes_G > 0),
            count=int(self.rank_G.sum()),
        )


def _counted(shards: Shards, order: Order, searches: list[_Search], memory: Memory) -> list[IntArray]:
    """One pass: for each search (G, bins), the number of rows of each group in each bin of its interval."""
    totals = [np.zeros((order.groups, 1 << search.step), np.int64) for search in searches]
    lock = threading.Lock()

    def count(chunk: Chunk) -> None:
        chunk = order.part(chunk)
        keys, groups = order.keys(chunk), order.groups_of(chunk)
        for search, total in zip(searches, totals, strict=True):
            rows, behind = search.inside(keys, groups, chunk)
            left = (search.tie_width if search.by_tie else search.width) - search.step
            cells = (behind >> behind.dtype.type(left)).astype(np.intp)
            if groups is not None:
                cells += groups[rows] << search.step
            with lock:
                if total.size > 4 * cells.size:  # bincount would allocate all bins for a few rows
                    np.add.at(total.reshape(-1), cells, 1)
                else:
                    total += np.bincount(cells, minlength=total.size).reshape(total.shape)

    for _ in spread(
        shards(_with_ids(order) if any(search.by_tie for search in searches) else order.columns), count, memory.threads
    ):
        pass
    return totals


def _collect(shards: Shards, order: Order, searches: list[_Search], memory: Memory) -> None:
    """One pass: collect the rows in the intervals and sort them."""

    def collect(chunk: Chunk) -> list[tuple[Any, ...]]:
        chunk = order.part(chunk)
        keys, groups = order.keys(chunk), order.groups_of(chunk)
        found = []
        for search in searches:
            rows, _ = search.inside(keys, groups, chunk)
            some = keys[rows].astype(np.uint64)
            its = np.zeros(len(some), np.int64) if groups is None else groups[rows]
            found.append((some, tie_keys(chunk["id"][rows], order.seed), its))
        return found

    parts = list(spread(shards(_with_ids(order)), collect, memory.threads))
    for place, search in enumerate(searches):
        if search.held:
            keys, ties, groups = (np.concatenate([part[place][i] for part in parts]) for i in range(3))
            search.settle(keys, ties, groups)


def _with_ids(order: Order) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*order.columns, "id")))
