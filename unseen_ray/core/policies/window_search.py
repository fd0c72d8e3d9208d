"""The best place of a window in the order: where a ridge regression on the window's features classifies most candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray, Positions
from unseen_ray.core.policies.distances import read_rows

__all__ = ["best_first_place"]

_STARTS = 20  # places that are tried: every 1/20 of the candidates
_RIDGE = 1e-2  # penalty, as a part of the mean variance of the window's features
_LEAST = 1e-9  # the same where a window has no variance, as a part of all candidates'
_BLOCK_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """The candidates in order, hardest first, and how their features are scaled: mean 0, mean variance 1."""

    features_MD: FloatArray
    labels_M: IntArray
    order_M: Positions
    classes: int
    mean_D: NDArray[np.float64]
    scale: float

    def blocks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.float64], IntArray]]:
        """(block, 1 + D) a column of ones and scaled features, and (block,) labels, of a part of the order."""
        width = self.features_MD.shape[1] + max(self.features_MD.shape[1], self.classes)
        step = max(64, _BLOCK_BYTES // (8 * width))
        for begin in range(first, last, step):
            rows = self.order_M[begin : min(begin + step, last)]
            block = np.ones((len(rows), 1 + self.features_MD.shape[1]))
            block[:, 1:] = (read_rows(self.features_MD, rows, np.float64) - self.mean_D) / self.scale
            yield block, self.labels_M[rows]


def best_first_place(
    order_M: Positions, labels_M: IntArray, budget: int, features_MD: FloatArray, *, classes: int
) -> int:
    """Where in the order the best window of `budget` begins, among every 1/20 of the candidates; the first of equally good ones.

    For each place, a ridge regression from the features of the window's samples (with an intercept, targets one-hot) is asked for
    the class of every candidate; the place with most right answers wins. A window's D x D products are those of the window before
    it plus what enters less what leaves, so that each sample is taken in once and out once; features are read by blocks. Costs up to
    2 x M x D^2 multiplications, and for each place M x D x C and a D x D system.

    Args:
        order_M: (M,) positions from the highest score to the lowest.
        labels_M: (M,) int64 classes.
        budget: the window's length.
        features_MD: (M, D) float16 or float32.
        classes: how many there are.

    Returns:
        0 to M - budget.

    Raises:
        FitError: if a feature is not finite.
    """
    size = len(order_M)
    places = sorted({place for i in range(_STARTS) if (place := round(i / _STARTS * size)) <= size - budget})
    if not budget or len(places) < 2:
        return 0
    table = _scaled(order_M, labels_M, features_MD, classes)
    gram, sums = _moments(table, 0, budget)
    best, most, before = 0, -1, 0
    for place in places:
        if place > before:
            entering, leaving = _moments(table, before + budget, place + budget), _moments(table, before, place)
            gram, sums = (now + more - less for now, more, less in zip((gram, sums), entering, leaving, strict=True))
        before = place
        right = _right(table, _weights(gram, sums))
        if right > most:
            best, most = place, right
    return best


def _scaled(order_M: Positions, labels_M: IntArray, features_MD: FloatArray, classes: int) -> _Table:
    """The table, after one pass for mean and variance."""
    # Moments about a value near the mean: otherwise equal features would have a variance made of rounding errors.
    first_D = features_MD[order_M[0]].astype(np.float64)
    raw = _Table(
        features_MD=features_MD,
        labels_M=labels_M,
        order_M=order_M,
        classes=classes,
        mean_D=first_D,
        scale=1.0,
    )
    total, squares = np.zeros(len(first_D)), np.zeros(len(first_D))
    for block, _ in raw.blocks(0, len(order_M)):
        total += block[:, 1:].sum(axis=0)
        squares += np.einsum("bd,bd->d", block[:, 1:], block[:, 1:])
    mean = total / len(order_M)
    variance = float((squares / len(order_M) - mean**2).mean())
    return replace(raw, mean_D=first_D + mean, scale=float(np.sqrt(variance)) if variance > 0 else 1.0)


def _moments(table: _Table, first: int, last: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of a part of the order: (1 + D, 1 + D) X^T X, and (C, 1 + D) the sum of each class, which is X^T Y turned."""
    width = 1 + table.features_MD.shape[1]
    gram, sums = np.zeros((width, width)), np.zeros((table.classes, width))
    for block, labels in table.blocks(first, last):
        gram += block.T @ block
        by_class = np.argsort(labels, kind="stable")
        present, begins = np.unique(labels[by_class], return_index=True)
        sums[present] += np.add.reduceat(block[by_class], begins, axis=0)
    return gram, sums


def _weights(gram: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """(1 + D, C) weights of the regression; the intercept is not penalised."""
    count, width = gram[0, 0], len(gram) - 1
    variance = (np.trace(gram) - count - (gram[0, 1:] ** 2).sum() / count) / (count * max(width, 1))
    penalty = np.full(1 + width, count * _RIDGE * max(variance, _LEAST))
    penalty[0] = 0.0
    return np.linalg.solve(gram + np.diag(penalty), sums.T).astype(np.float32)


def _right(table: _Table, weights: NDArray[np.float32]) -> int:
    """How many of all candidates the regression puts into their class."""
    return sum(
        int(((block.astype(np.float32) @ weights).argmax(axis=1) == labels).sum())
        for block, labels in table.blocks(0, len(table.order_M))
    )
