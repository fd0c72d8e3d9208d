"""The samples that take part in a run: the source's rows without the holdout and without unreadable rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from unseen_ray.core.arrays import ROWS_OF_A_CHUNK, IdArray, IntArray, LabelArray, first_of_each_class, labels_by_chunk
from unseen_ray.core.outofcore.chunks import Chunk, Memory
from unseen_ray.core.outofcore.threshold_search import Order, find_cuts
from unseen_ray.core.samples.dealing import draw_groups
from unseen_ray.core.samples.groups import NO_GROUPS, Groups
from unseen_ray.core.seeds import derive, digest_ids, tie_keys

__all__ = ["Population", "make_population"]

_DRAWN_ROWS = 2**20  # rows per chunk when drawing the holdout: each thread holds 64-bit keys of its chunk


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """The ids of a run and their labels, stored as the rows that do not take part.

    Attributes:
        labels_R: (R,) integer classes of all rows of the source, in the type in which they are stored.
        holdout_ids: (H,) int64 sorted rows set aside: never trained on, scored or kept.
        skipped_ids: (S,) int64 sorted rows that cannot be read.
        copy_ids: (P,) int64 sorted rows that are left out because another one of their group takes part.
        num_classes: C.
        groups_R: (R,) int64 the group of each row; None if no two rows belong together.
        chunk_rows: rows that are processed at a time.
    """

    labels_R: LabelArray
    holdout_ids: IdArray
    skipped_ids: IdArray
    num_classes: int
    copy_ids: IdArray = field(default_factory=lambda: np.empty(0, np.int64))
    groups_R: IntArray | None = None
    chunk_rows: int = ROWS_OF_A_CHUNK

    def __len__(self) -> int:
        return len(self.labels_R) - len(self.excluded_ids)

    @cached_property
    def excluded_ids(self) -> IdArray:
        """(H + S + P,) int64 sorted rows that do not take part."""
        others = [ids for ids in (self.skipped_ids, self.copy_ids) if len(ids)]
        return np.unique(np.concatenate([self.holdout_ids, *others])) if others else self.holdout_ids

    @cached_property
    def excluded_digest(self) -> str:
        """`digest_ids` of `excluded_ids`."""
        return digest_ids(self.excluded_ids)

    @cached_property
    def groups_digest(self) -> str:
        """`digest_ids` of `groups_R`; empty without groups."""
        return "" if self.groups_R is None else digest_ids(self.groups_R)

    @cached_property
    def ids_N(self) -> IdArray:
        """(N,) int64 row numbers of the source, strictly increasing."""
        return self.ids_within(0, len(self.labels_R))

    @cached_property
    def labels_N(self) -> IntArray:
        """(N,) int64 classes of `ids_N`."""
        return self._labels_at(self.ids_N)

    def ids_within(self, low: int, high: int) -> IdArray:
        """(M,) the ids in [low, high)."""
        low, high = max(low, 0), min(high, len(self.labels_R))
        if low >= high:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self.excluded_ids, (low, high))
        inside = np.ones(high - low, bool)
        inside[self.excluded_ids[first:last] - low] = False
        return np.flatnonzero(inside).astype(np.int64) + low

    def id_at(self, place: int) -> int:
        """The id at a position of `ids_N`, without building that array; the number of rows beyond its end."""
        if place >= len(self):
            return len(self.labels_R)
        excluded = self.excluded_ids  # excluded[at] - at ids come before excluded[at], which bisection searches
        return place + bisect_right(range(len(excluded)), place, key=lambda at: int(excluded[at]) - at)

    def place_of(self, number: int) -> int:
        """The number of ids below `number`."""
        return number - int(np.searchsorted(self.excluded_ids, number))

    def labels_of(self, ids_M: IdArray) -> IntArray:
        """(M,) int64 labels of ids; ValueError if one does not take part."""
        ids = np.asarray(ids_M)
        strange = (ids < 0) | (ids >= len(self.labels_R))
        if len(self.excluded_ids):
            places = np.minimum(np.searchsorted(self.excluded_ids, ids), len(self.excluded_ids) - 1)
            strange |= self.excluded_ids[places] == ids
        if strange.any():
            missing = ids[strange]
            raise ValueError(
                f"{len(missing)} ids are not among the {len(self)} allowed ones; the first is {missing[0]}."
            )
        return self._labels_at(ids)

    def class_counts(self, ids_M: IdArray | None = None) -> IntArray:
        """(C,) number of samples per class, among all or the given ids."""
        if ids_M is not None:
            return np.bincount(self.labels_of(ids_M), minlength=self.num_classes)
        counts_C = np.zeros(self.num_classes, np.int64)
        for _, labels in labels_by_chunk(self.labels_R, self.chunk_rows):
            counts_C += np.bincount(labels, minlength=self.num_classes)
        return counts_C - np.bincount(self._labels_at(self.excluded_ids), minlength=self.num_classes)

    def _labels_at(self, ids_M: IdArray) -> IntArray:
        return self.labels_R[ids_M].astype(np.int64, copy=False)


def make_population(
    labels_N: LabelArray,
    num_classes: int,
    *,
    holdout: float = 0.0,
    seed: int = 0,
    skipped: IdArray | None = None,
    groups: Groups = NO_GROUPS,
    chunk_rows: int = ROWS_OF_A_CHUNK,
) -> Population:
    """Set the holdout aside and leave out the skipped rows.

    Each class gives `round(holdout * N_c)` samples to the holdout, but never its last one; the seeded hash of the id
    decides which ones. With groups it gives whole ones, and so at most as many.

    Args:
        labels_N: (rows of the source,) integer classes.
        num_classes: C.
        holdout: fraction in [0, 1).
        seed: the run's seed.
        skipped: ids of rows that cannot be read.
        groups: which rows belong together, and which are left out as copies.
        chunk_rows: rows that are processed at a time.
    """
    everything = Population(
        labels_R=labels_N,
        holdout_ids=np.empty(0, np.int64),
        skipped_ids=np.empty(0, np.int64) if skipped is None else np.unique(skipped).astype(np.int64),
        num_classes=num_classes,
        groups_R=None if groups.drop else groups.of_R,
        chunk_rows=chunk_rows,
    )
    if groups.drop:
        everything = _without_copies(everything, groups)
    if holdout <= 0:
        return everything
    set_aside = _drawn_by_passes if len(labels_N) > chunk_rows and everything.groups_R is None else _drawn
    return replace(everything, holdout_ids=set_aside(everything, holdout, derive(seed, "holdout")))


def _without_copies(population: Population, groups: Groups) -> Population:
    # Whatever the run's seed: all seeds choose from the same samples.
    keys_N = tie_keys(population.ids_N, derive(0, "copies"))
    return replace(population, copy_ids=groups.left_out(population.ids_N, keys_N))


def _quota(counts_C: IntArray, holdout: float) -> IntArray:
    return np.minimum(np.round(holdout * counts_C).astype(np.int64), np.maximum(counts_C - 1, 0))


def _drawn(population: Population, holdout: float, seed: int) -> IdArray:
    ids, labels, keys = population.ids_N, population.labels_N, tie_keys(population.ids_N, seed)
    quota_C = _quota(np.bincount(labels, minlength=population.num_classes), holdout)
    if population.groups_R is not None:
        return ids[draw_groups(population.groups_R[ids], labels, quota_C, keys)]
    return np.sort(ids[first_of_each_class(np.argsort(keys), labels, quota_C)])


def _drawn_by_passes(population: Population, holdout: float, seed: int) -> IdArray:
    """The same ids as `_drawn`, without an array of all rows: each class is cut at its quota in hash order."""

    def shards(columns: Sequence[str]) -> Iterator[Chunk]:
        for start, labels in labels_by_chunk(population.labels_R, min(population.chunk_rows, _DRAWN_ROWS)):
            ids = population.ids_within(start, start + len(labels))
            yield {"id": ids, "label": labels[ids - start].astype(np.int64)}

    order = Order(
        columns=("id", "label"),
        keys=lambda chunk: tie_keys(chunk["id"], seed),
        bits=64,
        seed=seed,
        groups=population.num_classes,
        group=lambda chunk: chunk["label"],
    )
    (cut,) = find_cuts(shards, order, lambda sizes_C: _quota(sizes_C, holdout)[None], Memory())
    return np.concatenate([chunk["id"][cut.before(chunk)] for chunk in shards(order.columns)])
