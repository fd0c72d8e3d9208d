"""Policies that look at features: what is like what is kept already is kept later. See `core.select` for what they take.

Features are those of one model for all samples (`save_features`), (M, D) float16 or float32, possibly a memory map; they are read
by groups and blocks. More shape suffixes: G the samples of one group (a class, or all), D features, K what earlier stages kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.by_class import even_quota
from unseen_ray.core.policies.distances import Points, given_features, nearest_neighbours, points, squared_distances
from unseen_ray.core.policies.ranking import Positions
from unseen_ray.core.seeds import tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["d2", "k_center"]

_FEW = 256  # of the farthest candidates that are looked at together


def k_center(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    features_MD: FloatArray,
    kept_features_KD: FloatArray | None = None,
    kept_labels_K: IntArray | None = None,
    within: str = "class",
) -> Positions:
    """Keep samples far from each other: the next one is always the farthest from all that are kept.

    The first centre is the highest score, or, where earlier stages kept some, the farthest from those. Distances are Euclidean.
    Costs N_c x budget_c x D multiplications a class, or N x budget x D over all; held are a group's features and, of the distances,
    the running minimum alone. Wrong labels and outliers are far from everything, so they are kept: use a guard with it.

    Args:
        scores_M: (M,) scores; the highest is the first centre.
        labels_M: (M,) int64 classes.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class.
        seed: orders the ties: equal distances, equal remainders.
        features_MD: (M, D) float16 or float32 features of the candidates.
        kept_features_KD: (K, D) features of what earlier stages kept; these are centres from the start.
        kept_labels_K: (K,) their classes.
        within: `class` to cover each class, with shares as `class_balanced` has them, or `all` to cover everything at once.

    Returns:
        (budget,) positions, group by group; the first kept first, where not all of a group is kept.

    Raises:
        ConfigError: if `within` is something else, or there are no features.
        FitError: if a feature is not finite.

    Source: Gonzalez (1985); Sener and Savarese, Active Learning for CNNs: A Core-Set Approach (ICLR 2018).
    """
    if within not in ("class", "all"):
        raise ConfigError(f"policy option within={within!r} is not allowed: write class or all.")
    features = given_features(features_MD, "k_center")
    groups: Iterator[tuple[int, Positions, int]] = _classes(labels_M, ids_M, budget, kept_C, seed)
    if within == "all":
        groups = iter([(-1, np.argsort(tie_keys(ids_M, seed)), budget)])
    chosen = [np.empty(0, np.intp)]
    for number, members, quota in groups:
        if quota == len(members):
            chosen.append(members)
        elif quota:
            kept = _kept_points(kept_features_KD, kept_labels_K, number)
            picks = _farthest_first(points(features, members), quota, kept, int(scores_M[members].argmax()))
            chosen.append(members[picks])
    return np.concatenate(chosen)


def d2(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    features_MD: FloatArray,
    neighbours: int = 10,
    gamma: float = 1.0,
) -> Positions:
    """Keep high scores in dense places, and less around each that is kept: messages over a graph of nearest neighbours.

    In each class, two samples are joined where one is among the nearest of the other. First s_i += sum over j of exp(-d_ij) s_j; then
    again and again the highest s_i is kept, and those joined to it lose exp(-gamma d_ij) s_i. Shares of classes are those of
    `class_balanced`. Costs N_c^2 x D multiplications a class, in blocks of rows: no N_c x N_c matrix is held.

    Unlike the published code: d is the Euclidean distance over the median of the joined ones of the class (those above 0), not of the
    raw features, so that exp(-d) means the same whatever the model; scores that are not positive count from the lowest one, not as
    0; and a sample that is kept at a score below 0 takes nothing from its neighbours, where it would have added to them. What
    earlier stages kept sends no messages, for its scores are other models'.

    Args:
        scores_M: (M,) scores, higher kept first.
        labels_M: (M,) int64 classes.
        ids_M: (M,) int64 sample ids.
        budget: how many to keep, 0 to M.
        kept_C: (C,) what earlier stages kept of each class.
        seed: orders the ties: equal scores, equal distances, equal remainders.
        features_MD: (M, D) float16 or float32 features of the candidates.
        neighbours: nearest ones of each sample, 1 or more; fewer where its class is smaller.
        gamma: how fast what a kept sample takes fades with distance, 0 or more; the less it is, the more diverse.

    Returns:
        (budget,) positions, class by class; the first kept first, where not all of a class is kept.

    Raises:
        ConfigError: if `neighbours` or `gamma` is outside its range, or there are no features.
        FitError: if a feature is not finite.

    Source: Maharana, Yadav and Bansal, D2 Pruning (ICLR 2024), graph mode `sum`, sampling mode `weighted`, coreset mode `class`.
    """
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
        raise ConfigError(f"policy option neighbours={neighbours!r} must be a whole number, 1 or more.")
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 <= gamma < np.inf:
        raise ConfigError(f"policy option gamma={gamma!r} must be a number, 0 or more.")
    features = given_features(features_MD, "d2")
    scores = scores_M.astype(np.float64)
    scores -= min(scores.min(initial=0.0), 0.0)
    if not scores.any():
        scores += 1.0
    chosen = [np.empty(0, np.intp)]
    for _, members, quota in _classes(labels_M, ids_M, budget, kept_C, seed):
        if quota == len(members):
            chosen.append(members)
        elif quota:
            graph = _joined(points(features, members), neighbours)
            chosen.append(members[_by_messages(scores[members], quota, *graph, gamma)])
    return np.concatenate(chosen)


def _classes(
    labels_M: IntArray, ids_M: IdArray, budget: int, kept_C: IntArray, seed: int
) -> Iterator[tuple[int, Positions, int]]:
    """Each class, its candidates from the lowest key to the highest, and how many of them are kept.

    All that follows works in this order: the same bits whatever the order of the candidates, and ties to the lowest key.
    """
    quota_C = even_quota(labels_M, budget, kept_C, seed)
    by_key = np.argsort(tie_keys(ids_M, seed))
    by_class = by_key[np.argsort(labels_M[by_key], kind="stable")]
    ends_C = np.cumsum(np.bincount(labels_M, minlength=len(kept_C)))
    for number, members in enumerate(np.split(by_class, ends_C[:-1])):
        yield number, members, int(quota_C[number])


def _kept_points(features_KD: FloatArray | None, labels_K: IntArray | None, number: int) -> Points | None:
    """What earlier stages kept of a class (-1: of all); None if that is nothing."""
    if features_KD is None or labels_K is None:
        return None
    rows = np.flatnonzero(labels_K == number) if number >= 0 else np.arange(len(labels_K))
    return points(features_KD, rows) if len(rows) else None


def _farthest_first(group: Points, budget: int, kept: Points | None, first: int) -> Positions:
    """(budget,) places in a group, each the farthest from the kept ones and from those before it.

    Several picks a round: among the farthest few, distances to the round's picks are kept up to date; as long as the farthest of
    them is farther than all others were when the round began, it is the farthest of all. Then the round's picks are applied to all
    in one product.
    """
    nearest_G = np.full(len(group), np.inf, np.float32)
    if kept is None:
        picks = [first]
        _approach(nearest_G, group, group.at(np.array(picks)))
        nearest_G[picks] = -1.0
    else:
        picks = []
        for begin in range(0, len(kept), _FEW):
            _approach(nearest_G, group, kept.at(slice(begin, begin + _FEW)))
    while len(picks) < budget:
        left = budget - len(picks)
        if nearest_G.max() <= 0:  # the rest are copies of what is kept
            picks += np.flatnonzero(nearest_G == 0)[:left].tolist()
            break
        new = _round(group, nearest_G, left)
        _approach(nearest_G, group, group.at(new))
        nearest_G[new] = -1.0
        picks += new.tolist()
    return np.array(picks, np.intp)


def _approach(nearest_G: NDArray[np.float32], group: Points, centres: Points) -> None:
    """Lower the running minimum to the distances to more centres."""
    for part, squared in squared_distances(centres, group):
        np.minimum(nearest_G[part], squared.min(axis=0), out=nearest_G[part])


def _round(group: Points, nearest_G: NDArray[np.float32], most: int) -> Positions:
    """The next picks that can be told from the farthest few alone: one at the least."""
    best, bound = int(nearest_G.argmax()), np.float32(-1.0)
    few = np.arange(len(nearest_G))
    if len(few) > _FEW:
        order = np.argpartition(-nearest_G, _FEW)
        few, bound = np.union1d(order[:_FEW], best), nearest_G[order[_FEW]]
    among, nearest = group.at(few), nearest_G[few]
    place, picks = int(np.searchsorted(few, best)), []
    while True:
        picks.append(place)
        if len(picks) == most:
            break
        for part, squared in squared_distances(among.at(slice(place, place + 1)), among):
            np.minimum(nearest[part], squared[0], out=nearest[part])
        nearest[place] = -1.0
        place = int(nearest.argmax())
        if not nearest[place] > max(bound, 0):  # as far as one of the others: the next round tells
            break
    chosen: Positions = few[np.array(picks)]
    return chosen


def _joined(group: Points, neighbours: int) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """The graph of a class: (G + 1,) where each one's edges begin, (E,) the other end, (E,) distance over the median one."""
    size = len(group)
    near_GK, squared_GK = nearest_neighbours(group, min(neighbours, size - 1))
    ends = np.repeat(np.arange(size), near_GK.shape[1]), near_GK.ravel()
    edges, where = np.unique(np.concatenate([ends[0] * size + ends[1], ends[1] * size + ends[0]]), return_index=True)
    distances = np.sqrt(np.tile(squared_GK.ravel(), 2)[where].astype(np.float64))
    if distances.any():
        distances /= np.median(distances[distances > 0])
    ones, others = np.divmod(edges, size)
    return np.searchsorted(ones, np.arange(size + 1)), others, distances


def _by_messages(
    scores_G: NDArray[np.float64],
    budget: int,
    begins: IntArray,
    others_E: IntArray,
    distances_E: NDArray[np.float64],
    gamma: float,
) -> Positions:
    """(budget,) places in a class by scores after messages.

    Scores only fall, so that what stands in the heap is never too low: an entry is renewed when it comes to the top.
    """
    ones_E = np.repeat(np.arange(len(scores_G)), np.diff(begins))
    messages_E = np.exp(-distances_E) * scores_G[others_E]
    sums_G = scores_G + np.bincount(ones_E, weights=messages_E, minlength=len(scores_G))
    fading_E = np.exp(-gamma * distances_E)
    heap = [(-score, place) for place, score in enumerate(sums_G.tolist())]
    heapq.heapify(heap)
    picks: list[int] = []
    while len(picks) < budget:
        known, place = heap[0]
        score = float(sums_G[place])
        if -known != score:
            heapq.heapreplace(heap, (-score, place))
            continue
        heapq.heappop(heap)
        picks.append(place)
        if score > 0:
            edges = slice(begins[place], begins[place + 1])
            sums_G[others_E[edges]] -= fading_E[edges] * score
    return np.array(picks, np.intp)
