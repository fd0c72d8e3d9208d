"""Near copies: samples whose feature vectors point in almost the same direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray
from unseen_ray.core.samples.groups import first_of_groups

__all__ = ["group_near"]

_BLOCK = 2048


def group_near(features_ND: FloatArray, similarity: float) -> IntArray:
    """(N,) the first sample of each sample's group, where pairs of at least this cosine similarity, and what they chain to, are one group.

    Exact, in blocks: unit vectors with a cosine of s are at most sqrt(2 - 2s) apart, along any direction. So samples are sorted along
    the direction in which they vary most, and only blocks that close are compared. The time still grows with the square of N.

    Args:
        features_ND: (N, D) rows of length 1; a row of zeros is like no other.
        similarity: above 0, below 1.
    """
    order_N, along_N = _sorted_by_spread(features_ND)
    reach = np.sqrt(2 - 2 * similarity) + 1e-5  # float32
    root_N = np.arange(len(features_ND))
    for start in range(0, len(order_N), _BLOCK):
        rows = order_N[start : start + _BLOCK]
        end = int(np.searchsorted(along_N, along_N[start + len(rows) - 1] + reach, side="right"))
        for other in range(start, end, _BLOCK):
            others = order_N[other : min(other + _BLOCK, end)]
            left, right = np.nonzero(features_ND[rows] @ features_ND[others].T >= similarity)
            _join(root_N, rows[left], others[right])
    return first_of_groups(root_N)


def _sorted_by_spread(features_ND: FloatArray) -> tuple[IntArray, FloatArray]:
    """(N,) an order along the first principal direction, and (N,) the places along it."""
    mean_D, spread_DD = features_ND.mean(axis=0), np.zeros((features_ND.shape[1],) * 2)
    for start in range(0, len(features_ND), _BLOCK):
        centred = features_ND[start : start + _BLOCK] - mean_D
        spread_DD += centred.T @ centred
    _, directions = np.linalg.eigh(spread_DD)
    along_N = features_ND @ directions[:, -1].astype(features_ND.dtype)
    order_N = np.argsort(along_N, kind="stable")
    return order_N, along_N[order_N]


def _join(root_N: IntArray, left_P: IntArray, right_P: IntArray) -> None:
    """Give the samples of P pairs, and all that share a root with them, the lowest root among them."""
    while True:
        low, high = np.minimum(root_N[left_P], root_N[right_P]), np.maximum(root_N[left_P], root_N[right_P])
        if (low == high).all():
            return
        np.minimum.at(root_N, high, low)
        root_N[:] = _followed(root_N)


def _followed(root_N: IntArray) -> NDArray[np.int64]:
    """(N,) where the roots lead in the end."""
    while not (root_N == (further := root_N[root_N])).all():
        root_N = further
    return root_N
