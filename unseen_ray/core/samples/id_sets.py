"""A set of samples as a value: an array, or a rule that each process works out for itself.

A task names what it trains on and what it may score by such values, so that a task's size need not grow with N: fold k
of a plan is four numbers, whatever the size of the data set. A range of a set is found without the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray, LabelArray
from unseen_ray.core.folds import ROWS_DEALT_AT_ONCE, Dealing, begin_dealing, blocks_of
from unseen_ray.core.samples.population import Population
from unseen_ray.core.seeds import digest_ids

__all__ = ["AllIds", "ArrayIds", "FoldIds", "FoldSpec", "IdSet", "Outside", "are_in", "digest_of_rule"]


class IdSet(Protocol):
    """A set of ids of a population."""

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """(M,) int64, strictly rising: its ids from `low` up to, but without, `high`."""
        ...

    def resolve(self, population: Population) -> IdArray:
        """(M,) int64, strictly rising: all of them."""
        ...

    def rule(self) -> str:
        """What determines it, beside the population."""
        ...


def are_in(ids_M: IdArray, of: IdSet, population: Population) -> NDArray[np.bool_]:
    """(M,) whether each number, a row of the source or not, is an id of a set."""
    found = (ids_M >= 0) & (ids_M < len(population.labels_R))
    rows = ids_M if found.all() else ids_M[found]
    if len(rows):
        low, high = int(rows.min()), int(rows.max())
        inside = np.zeros(high - low + 1, bool)
        inside[of.within(population, low, high + 1) - low] = True
        found[found] = inside[rows - low]
    return found


def digest_of_rule(ids: IdSet, population: Population) -> str:
    """The name of a set of samples by its rule, where there are too many to be named by a digest of the ids themselves."""
    return f"{ids.rule()} of {len(population)} without {population.excluded_digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec:
    """What determines a fold plan, beside the population; its `repr` names stored work, so it must not change.

    Attributes:
        num_folds: K.
        seed: of the plan.
        stratify: whether each class is spread evenly.
        block_rows: see `plan_folds`; not named, because all stored runs have the same.
    """

    num_folds: int
    seed: int
    stratify: bool = True
    block_rows: int = field(default=ROWS_DEALT_AT_ONCE, repr=False)


@dataclass(frozen=True, slots=True)
class AllIds:
    """Everything in the population."""

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """Ids of a range."""
        return population.ids_within(low, high)

    def resolve(self, population: Population) -> IdArray:
        """All ids."""
        return population.ids_N

    def rule(self) -> str:
        """That it is everything."""
        return "all"


@dataclass(frozen=True, slots=True)
class FoldIds:
    """The samples of one fold of a plan."""

    spec: FoldSpec
    fold: int

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """Those of the fold in a range; the blocks that it touches are dealt out."""
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

    def resolve(self, population: Population) -> IdArray:
        """The fold's ids."""
        return self.within(population, 0, len(population.labels_R))

    def rule(self) -> str:
        """The plan and the fold's number."""
        return f"fold {self.fold} of {self.spec}"


@dataclass(frozen=True, slots=True, eq=False)
class ArrayIds:
    """The ids of an array."""

    ids_M: IdArray

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """Its part in a range."""
        first, last = np.searchsorted(self.ids_M, (low, high))
        return self.ids_M[first:last]

    def resolve(self, population: Population) -> IdArray:
        """The array itself."""
        return self.ids_M

    def rule(self) -> str:
        """The digest of the array."""
        return digest_ids(self.ids_M)


@dataclass(frozen=True, slots=True)
class Outside:
    """Everything in the population that is not in another set."""

    other: IdSet

    def within(self, population: Population, low: int, high: int) -> IdArray:
        """What the other set leaves of a range."""
        ids = population.ids_within(low, high)
        return ids[~are_in(ids, self.other, population)]

    def resolve(self, population: Population) -> IdArray:
        """The complement."""
        rows = population.chunk_rows
        starts = range(0, len(population.labels_R), rows)
        return np.concatenate([self.within(population, start, start + rows) for start in starts])

    def rule(self) -> str:
        """That it is outside the other."""
        return f"outside {self.other.rule()}"


@lru_cache(maxsize=64)
def _folds(population: Population, spec: FoldSpec, block: int) -> LabelArray:
    """The fold of each sample of a block."""
    return _dealing(population, spec).folds_of(block, _classes(population, spec, block))


@lru_cache(maxsize=4)
def _dealing(population: Population, spec: FoldSpec) -> Dealing:
    blocks = range(len(blocks_of(len(population), spec.block_rows)))
    classes = (_classes(population, spec, block) for block in blocks)
    return begin_dealing(spec.num_folds, spec.seed, classes, spec.block_rows)


def _classes(population: Population, spec: FoldSpec, block: int) -> LabelArray:
    start = block * spec.block_rows
    low, high = population.id_at(start), population.id_at(min(start + spec.block_rows, len(population)))
    ids = population.ids_within(low, high)
    return population.labels_R[ids] if spec.stratify else np.zeros(len(ids), np.uint8)
