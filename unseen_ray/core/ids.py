"""A set of samples as a value: an array, or a rule that each process works out for itself.

A task names what it trains on and what it may score by such values, so that a task's size need not grow with N: fold k
of a plan is four numbers, whatever the size of the data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from unseen_ray.core.arrays import IdArray
from unseen_ray.core.folds import FoldPlan, plan_folds
from unseen_ray.core.population import Population

__all__ = ["AllIds", "ArrayIds", "FoldIds", "FoldSpec", "IdSet", "Outside"]


class IdSet(Protocol):
    """A set of ids of a population."""

    def resolve(self, population: Population) -> IdArray:
        """(M,) int64, strictly rising."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec:
    """What determines a fold plan, beside the population."""

    num_folds: int
    seed: int
    stratify: bool = True


@dataclass(frozen=True, slots=True)
class AllIds:
    """Everything in the population."""

    def resolve(self, population: Population) -> IdArray:
        """All ids."""
        return population.ids_N


@dataclass(frozen=True, slots=True)
class FoldIds:
    """The samples of one fold of a plan."""

    spec: FoldSpec
    fold: int

    def resolve(self, population: Population) -> IdArray:
        """The fold's ids."""
        inside: IdArray = population.ids_N[_plan(population, self.spec).fold_of_N == self.fold]
        return inside


@dataclass(frozen=True, slots=True, eq=False)
class ArrayIds:
    """The ids of an array."""

    ids_M: IdArray

    def resolve(self, population: Population) -> IdArray:
        """The array itself."""
        return self.ids_M


@dataclass(frozen=True, slots=True)
class Outside:
    """Everything in the population that is not in another set."""

    other: IdSet

    def resolve(self, population: Population) -> IdArray:
        """The complement."""
        return np.setdiff1d(population.ids_N, self.other.resolve(population), assume_unique=True)


@lru_cache(maxsize=4)
def _plan(population: Population, spec: FoldSpec) -> FoldPlan:
    labels = population.labels_N if spec.stratify else None
    return plan_folds(len(population), spec.num_folds, spec.seed, labels=labels)
