"""Sets of samples as values: an array, or a rule that each process evaluates.

Tasks name what they train on and score by such values, so that the size of a task does not grow with N: fold k of a
plan is four numbers for any data set. A range of a set is found without the rest of it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, IntArray, LabelArray
from unseen_ray.core.folds import ROWS_DEALT_AT_ONCE, begin_dealing, blocks_of
from unseen_ray.core.samples.dealing import deal_groups
from unseen_ray.core.samples.population import Population
from unseen_ray.core.seeds import digest_ids

__all__ = [
    "AllIds",
    "ArrayIds",
    "ByRange",
    "FoldIds",
    "FoldSpec",
    "IdSet",
    "Outside",
    "Union",
    "are_in",
    "digest_of_rule",
    "fold_sizes",
    "grouped_folds",
]

_HELD_BLOCKS = 8  # of 2^24 samples, a byte each


class IdSet(Protocol):
    """A set of ids of a population."""

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """(M,) int64 its ids in [low, high), strictly increasing."""
        ...

    def pieces(self, population: Population) -> Iterator[IdArray]:
        """All its ids, strictly increasing, in pieces whose size is bounded."""
        ...

    def resolve(self, population: Population) -> IdArray:
        """(M,) int64 all its ids, strictly increasing."""
        ...

    def rule(self) -> str:
        """A text that determines it, given the population; it is hashed into the names of stored work."""
        ...


class ByRange:
    """What a set whose ranges are found one by one is as a whole."""

    __slots__ = ()

    def pieces(self: IdSet, population: Population) -> Iterator[IdArray]:
        """All ids in pieces, each of a range of the rows."""
        rows = population.chunk_rows
        for start in range(0, len(population.labels_R), rows):
            yield self.within(population, start, start + rows)

    def resolve(self: IdSet, population: Population) -> IdArray:
        """All ids."""
        return np.concatenate([np.empty(0, np.int64), *self.pieces(population)])


def are_in(ids_M: IdArray, of: IdSet, population: Population) -> NDArray[np.bool_]:
    """(M,) whether each number, which may be no row of the source, is an id of a set."""
    found = (ids_M >= 0) & (ids_M < len(population.labels_R))
    rows = ids_M if found.all() else ids_M[found]
    if len(rows):
        low, high = int(rows.min()), int(rows.max())
        inside = np.zeros(high - low + 1, bool)
        inside[of.within(population, low, high + 1) - low] = True
        found[found] = inside[rows - low]
    return found


def digest_of_rule(ids: IdSet, population: Population) -> str:
    """The name of a set of samples by its rule, for sets too large to hash their ids."""
    groups = f" in groups {population.groups_digest}" if population.groups_digest else ""
    return f"{ids.rule()} of {len(population)} without {population.excluded_digest}{groups}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec:
    """What determines a fold plan, given the population; its `repr` names stored work, so it must not change.

    Attributes:
        num_folds: K.
        seed: the seed of the plan.
        stratify: whether each class is spread evenly over the folds.
        block_rows: see `plan_folds`; not in the `repr`, because all stored runs have the same.
    """

    num_folds: int
    seed: int
    stratify: bool = True
    block_rows: int = field(default=ROWS_DEALT_AT_ONCE, repr=False)


@dataclass(frozen=True, slots=True)
class AllIds(ByRange):
    """Everything in the population."""

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """Ids of a range."""
        return population.ids_within(low, high)

    def resolve(self, population: Population) -> IdArray:
        """All ids."""
        return population.ids_N

    def rule(self) -> str:
        """The constant `all`."""
        return "all"


@dataclass(frozen=True, slots=True)
class FoldIds(ByRange):
    """The samples of one fold of a plan."""

    spec: FoldSpec
    fold: int

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """The fold's ids in a range; only the blocks in this range are assigned to folds."""
        ids = population.ids_within(low, high)
        if not len(ids):
            return ids
        first, rows, found = population.place_of(int(ids[0])), self.spec.block_rows, []
        for number in range(first // rows, (first + len(ids) - 1) // rows + 1):
            start = number * rows
            folds_M = _folds(population, self.spec, number)[max(first - start, 0) : first + len(ids) - start]
            begin = max(start - first, 0)
            found.append(ids[begin : begin + len(folds_M)][folds_M == self.fold])
        return np.concatenate(found)

    def rule(self) -> str:
        """The plan and the fold's number."""
        return f"fold {self.fold} of {self.spec}"


@dataclass(frozen=True, slots=True, eq=False)
class ArrayIds(ByRange):
    """The ids of an array."""

    ids_M: IdArray

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """The ids of the array in a range."""
        first, last = np.searchsorted(self.ids_M, (low, high))
        return self.ids_M[first:last]

    def resolve(self, population: Population) -> IdArray:
        """The array itself."""
        return self.ids_M

    def rule(self) -> str:
        """The digest of the array."""
        return digest_ids(self.ids_M)


@dataclass(frozen=True, slots=True)
class Outside(ByRange):
    """Everything in the population that is not in another set."""

    other: IdSet

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """The ids of a range that are not in the other set."""
        ids = population.ids_within(low, high)
        return ids[~are_in(ids, self.other, population)]

    def rule(self) -> str:
        """The rule of the other set, negated."""
        return f"outside {self.other.rule()}"


@dataclass(frozen=True, slots=True)
class Union(ByRange):
    """Everything in any of several disjoint sets."""

    sets: tuple[IdSet, ...]

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """The ids of a range that are in one of the sets."""
        return np.sort(np.concatenate([each.within(population, low, high) for each in self.sets]))

    def rule(self) -> str:
        """The rules of the sets."""
        return f"any of ({', '.join(each.rule() for each in self.sets)})"


# populations hash by identity, so an entry never serves another run; blocks are gone through in order
@lru_cache(maxsize=_HELD_BLOCKS)
def _folds(population: Population, spec: FoldSpec, block: int) -> LabelArray:
    """The fold of each sample of a block."""
    if population.groups_R is not None:
        return grouped_folds(population, spec)[0][block * spec.block_rows :][: spec.block_rows]
    return _dealt(population, spec).folds_of(block)


@lru_cache(maxsize=4)
def grouped_folds(population: Population, spec: FoldSpec) -> tuple[LabelArray, IntArray]:
    """(N,) the fold of each sample of a population with groups, and (K,) the sizes of the folds."""
    assert population.groups_R is not None
    labels_N = population.labels_N if spec.stratify else np.zeros(len(population), np.int64)
    return deal_groups(population.groups_R[population.ids_N], labels_N, spec.num_folds, spec.seed)


def fold_sizes(population: Population, spec: FoldSpec) -> list[int]:
    """How many samples each of the K folds has."""
    if population.groups_R is not None:
        return [int(size) for size in grouped_folds(population, spec)[1]]
    each, left = divmod(len(population), spec.num_folds)
    return [each + (fold < left) for fold in range(spec.num_folds)]


@lru_cache(maxsize=4)
def _dealt(population: Population, spec: FoldSpec) -> _DealtBlocks:
    return _DealtBlocks(population, spec)


class _DealtBlocks:
    """The folds of a population by blocks. Dealing one takes seconds, so those of a long population wait in a file without a name."""

    def __init__(self, population: Population, spec: FoldSpec) -> None:
        blocks = range(len(blocks_of(len(population), spec.block_rows)))
        self._population, self._spec, self._in_file = population, spec, set[int]()
        classes = (_classes(population, spec, block) for block in blocks)
        self._dealing = begin_dealing(spec.num_folds, spec.seed, classes, spec.block_rows)
        self._file: IO[bytes] | None = None
        if len(blocks) > _HELD_BLOCKS:
            with contextlib.suppress(OSError):  # a disk without room costs time alone
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this
                weakref.finalize(self, self._file.close)

    def folds_of(self, block: int) -> LabelArray:
        """(M,) the fold of each sample of a block."""
        place = block * self._spec.block_rows
        if self._file is not None and block in self._in_file:
            rows = min(self._spec.block_rows, len(self._population) - place)
            return np.frombuffer(os.pread(self._file.fileno(), rows, place), np.uint8)
        folds_M = self._dealing.folds_of(block, _classes(self._population, self._spec, block))
        if self._file is not None and folds_M.dtype == np.uint8:
            with contextlib.suppress(OSError):
                if os.pwrite(self._file.fileno(), folds_M.data, place) == len(folds_M):
                    self._in_file.add(block)
        return folds_M


def _classes(population: Population, spec: FoldSpec, block: int) -> LabelArray:
    start = block * spec.block_rows
    low, high = population.id_at(start), population.id_at(min(start + spec.block_rows, len(population)))
    ids = population.ids_within(low, high)
    return population.labels_R[ids] if spec.stratify else np.zeros(len(ids), np.uint8)
