"""Policies that choose by features, so that what is kept is diverse.

Features are those of one model for all samples (`save_features`): (M, D) float16 or float32, possibly a memory map that is read in
groups and blocks. More shape suffixes: G samples of one group (a class, or all of them), D features, K samples of earlier stages.

`d2` differs from the code that its authors published in these ways, and computes what it does with `raw` for two options:
- `distances`: Euclidean distances are divided by the median one of the class's edges (zeros left out), so that exp(-d) means the same for
  every model. Theirs are not.
- `negative`: where the lowest score is negative, all are shifted up by it, and a sample kept at a score below 0 leaves its neighbours
  alone. With `raw`, scores stay as they are, messages carry at least 1e-7, and such a sample raises the scores of its neighbours.
- Samples of earlier stages send no messages, because their scores come from other models.

Its graph costs N_c^2 x D multiplications a class, in blocks of rows; no N_c x N_c matrix is held.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.base import Positions, check_choice, check_count, check_number, from_zero
from unseen_ray.core.policies.distances import Points, given_features, nearest_neighbours, points, squared_distances
from unseen_ray.core.policies.quotas import even_quota
from unseen_ray.core.seeds import tie_keys

__all__ = ["d2", "k_center"]

_LEAST_MESSAGE = 1e-7  # of the authors' d2
_FEW = 256  # farthest candidates compared with one another in a round: large enough for BLAS, small enough for a core's cache


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
    """Keep samples that are far from each other: each pick is the farthest from all that are kept.

    The first centre is the highest score or, after earlier stages, the sample farthest from theirs. Distances are Euclidean. Costs
    N_c x budget_c x D multiplications a group. Outliers and wrong labels are far from all others and so are kept: use a guard.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`; the seed also orders equal distances.
        features_MD: (M, D) float16 or float32 features of the candidates.
        kept_features_KD, kept_labels_K: (K, D) features and (K,) classes of samples of earlier stages, centres from the start.
        within: `class` to cover each class, with the shares of `class_balanced`; `all` to cover all classes at once.

    Returns:
        (budget,) positions, group by group; in the order they were picked, except in groups that are kept whole.

    Raises:
        ConfigError: if `within` is neither, or there are no features; FitError if a feature is not finite.

    Source: Gonzalez (1985); Sener and Savarese, Active Learning for CNNs: A Core-Set Approach (ICLR 2018).
    """
    groups = _groups(within, labels_M, ids_M, budget, kept_C, seed)
    features = given_features(features_MD, "k_center")

    def farthest(number: int, members: Positions, quota: int) -> Positions:
        kept = _kept_points(kept_features_KD, kept_labels_K, number)
        return _farthest_first(points(features, members), quota, kept, int(scores_M[members].argmax()))

    return _picked(groups, farthest)


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
    distances: str = "scaled",
    negative: str = "shift",
) -> Positions:
    """Keep high scores in dense regions, and fewer around each kept sample: messages over a nearest-neighbour graph.

    In each class (with its share of `class_balanced`), an edge joins two samples if one is among the nearest of the other. First s_i +=
    sum over j of exp(-d_ij) s_j; then, repeatedly, the highest s_i is kept and its neighbours lose exp(-gamma d_ij) s_i.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed, features_MD: see `k_center`; the seed also orders equal distances.
        neighbours: nearest neighbours of each sample, 1 or more; fewer in a smaller class.
        gamma: how fast the penalty fades with distance, 0 or more; a smaller gamma gives a more diverse choice.
        distances, negative: `scaled`, `shift`; or `raw`, as in the authors' code: see the module.

    Returns:
        (budget,) positions, class by class; in the order they were picked, except in classes that are kept whole.

    Raises:
        ConfigError: if an option is outside its range, or there are no features; FitError if a feature is not finite.

    Source: Maharana, Yadav and Bansal, D2 Pruning (ICLR 2024), graph mode `sum`, sampling mode `weighted`, coreset mode `class`.
    """
    _check_d2(neighbours, gamma, distances, negative)
    features, scores = given_features(features_MD, "d2"), _weights(scores_M, negative)

    def by_messages(_: int, members: Positions, quota: int) -> Positions:
        return _by_messages(scores[members], quota, points(features, members), neighbours, gamma, distances, negative)

    return _picked(_classes(labels_M, ids_M, budget, kept_C, seed), by_messages)


def _check_d2(neighbours: int, gamma: float, distances: str, negative: str) -> None:
    check_count("neighbours", neighbours)
    check_number("gamma", gamma)
    check_choice("distances", distances, ("scaled", "raw"))
    check_choice("negative", negative, ("shift", "raw"))


def _weights(scores_M: FloatArray, negative: str) -> NDArray[np.float64]:
    """(M,) scores that are not negative, so that messages add, all 1 where every score is 0; or the raw ones."""
    if negative == "raw":
        return scores_M.astype(np.float64)
    scores = from_zero(scores_M, float(scores_M.min(initial=0.0)))
    if not scores.any():
        scores += 1.0
    return scores


def _picked(
    groups: Iterator[tuple[int, Positions, int]], pick: Callable[[int, Positions, int], Positions]
) -> Positions:
    """The picks of all groups as positions of candidates; a group that is kept whole is not picked from."""
    chosen = [np.empty(0, np.intp)]
    for number, members, quota in groups:
        if quota == len(members):
            chosen.append(members)
        elif quota:
            chosen.append(members[pick(number, members, quota)])
    return np.concatenate(chosen)


def _groups(
    within: str, labels_M: IntArray, ids_M: IdArray, budget: int, kept_C: IntArray, seed: int
) -> Iterator[tuple[int, Positions, int]]:
    """The classes, or one group of all candidates with the number -1."""
    check_choice("within", within, ("class", "all"))
    if within == "all":
        return iter([(-1, np.argsort(tie_keys(ids_M, seed)), budget)])
    return _classes(labels_M, ids_M, budget, kept_C, seed)


def _classes(
    labels_M: IntArray, ids_M: IdArray, budget: int, kept_C: IntArray, seed: int
) -> Iterator[tuple[int, Positions, int]]:
    """Each class with its candidates, lowest key first, and how many of them to keep.

    Everything that follows works in this order: results do not depend on the order of the candidates, and ties go to the lowest key.
    """
    quota_C = even_quota(labels_M, budget, kept_C, seed)
    by_key = np.argsort(tie_keys(ids_M, seed))
    by_class = by_key[np.argsort(labels_M[by_key], kind="stable")]
    ends_C = np.cumsum(np.bincount(labels_M, minlength=len(kept_C)))
    for number, members in enumerate(np.split(by_class, ends_C[:-1])):
        yield number, members, int(quota_C[number])


def _kept_points(features_KD: FloatArray | None, labels_K: IntArray | None, number: int) -> Points | None:
    """Samples of earlier stages in a class (-1: in all classes); None if there are none."""
    if features_KD is None or labels_K is None:
        return None
    rows = np.flatnonzero(labels_K == number) if number >= 0 else np.arange(len(labels_K))
    return points(features_KD, rows) if len(rows) else None


def _farthest_first(group: Points, budget: int, kept: Points | None, first: int) -> Positions:
    """(budget,) places in a group, each the farthest from the kept samples and from the picks before it.

    A round makes several picks. It keeps the distances of the `_FEW` farthest samples up to date. Distances only fall, so while the
    farthest of the few is farther than every other sample was when the round began, it is the farthest of all. One matrix product
    then updates all samples with the round's picks.
    """
    nearest_G = np.full(len(group), np.inf, np.float32)
    if kept is None:
        picks = [first]
        _approach(nearest_G, group, group.at(np.array(picks)))
        nearest_G[picks] = -1.0  # below every distance: a pick is not picked again, not even among copies at distance 0
    else:
        picks = []
        for begin in range(0, len(kept), _FEW):
            _approach(nearest_G, group, kept.at(slice(begin, begin + _FEW)))
    while len(picks) < budget:
        left = budget - len(picks)
        if nearest_G.max() <= 0:  # the rest are copies of kept samples: any order is right, take that of the keys
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
    """The next picks that the farthest few decide among themselves, at most `most` and at least one."""
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
        if not nearest[place] > max(bound, 0):  # another sample may be as far: leave it to the next round
            break
    chosen: Positions = few[np.array(picks)]
    return chosen


def _joined(group: Points, neighbours: int, *, scaled: bool) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """The graph of a class: (G + 1,) where each sample's edges begin, (E,) their other ends, (E,) distances, over the median if scaled."""
    size = len(group)
    near_GK, squared_GK = nearest_neighbours(group, min(neighbours, size - 1))
    ends = np.repeat(np.arange(size), near_GK.shape[1]), near_GK.ravel()
    edges, where = np.unique(np.concatenate([ends[0] * size + ends[1], ends[1] * size + ends[0]]), return_index=True)
    distances = np.sqrt(np.tile(squared_GK.ravel(), 2)[where].astype(np.float64))
    if scaled and distances.any():
        distances /= np.median(distances[distances > 0])
    ones, others = np.divmod(edges, size)
    return np.searchsorted(ones, np.arange(size + 1)), others, distances


def _by_messages(
    scores_G: NDArray[np.float64],
    budget: int,
    group: Points,
    neighbours: int,
    gamma: float,
    distances: str,
    negative: str,
) -> Positions:
    """(budget,) places in a class by their scores after messages, in the order they were picked."""
    begins, others_E, distances_E = _joined(group, neighbours, scaled=distances == "scaled")
    raw = negative == "raw"
    ones_E = np.repeat(np.arange(len(scores_G)), np.diff(begins))
    messages_E = np.exp(-distances_E) * np.maximum(scores_G[others_E], _LEAST_MESSAGE if raw else 0.0)
    sums_G = scores_G + np.bincount(ones_E, weights=messages_E, minlength=len(scores_G))
    fading_E = np.exp(-gamma * distances_E)
    heap = [(-score, place) for place, score in enumerate(sums_G.tolist())]
    heapq.heapify(heap)
    picks: dict[int, None] = {}
    while len(picks) < budget:
        known, place = heapq.heappop(heap)
        if place in picks:
            continue
        score = float(sums_G[place])
        # A score that falls leaves an entry that is too high, and is renewed when it reaches the top; one that rises gets another entry.
        if -known != score:
            heapq.heappush(heap, (-score, place))
            continue
        picks[place] = None
        if score > 0 or raw:
            edges = slice(begins[place], begins[place + 1])
            sums_G[others_E[edges]] -= fading_E[edges] * score
        if score < 0 and raw:
            for other in others_E[edges].tolist():
                heapq.heappush(heap, (-float(sums_G[other]), other))
    return np.array(list(picks), np.intp)
