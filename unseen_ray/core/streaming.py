"""Policies on score tables that are too long for memory: the same ids as those of `core.select`, from shards read a few times over.

Held at once are some chunks for each thread, the bins and the buffer of `core.cuts.Memory`, and where ids do not rise a bit for each
number up to the highest of them. Shapes: M rows of a chunk, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core import select
from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.classwise import even_share, least_quota, quota_by_mean
from unseen_ray.core.cuts import Chunk, Cut, Memory, Order, Ranks, Shards, find_cuts, spread
from unseen_ray.core.exact import ExactSums
from unseen_ray.core.formulas import beta_draws, beta_shape, filled, strata_of
from unseen_ray.core.idbits import IdBits
from unseen_ray.core.ordered import Keys, best_first_keys, value_of_key
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError, DataError

__all__ = ["STREAMED", "Chosen", "choose", "why_not_streamed"]

STREAMED = ("beta", "ccs", "class_balanced", "class_floor", "class_quota", "moderate", "random", "top", "window")
"""Policies that choose from shards."""

_HARDEST = 10  # scores whose p_y `beta` asks for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """What a policy chose of shards.

    Attributes:
        count: how many.
        columns: what `takes` reads.
        takes: which rows of a chunk are chosen, (M,) bool.
    """

    count: int
    columns: tuple[str, ...]
    takes: Callable[[Chunk], NDArray[np.bool_]]

    def ids(self, shards: Shards, *, rising: bool = True, threads: int = 1) -> Iterator[IdArray]:
        """The chosen ids in rising order, by arrays, after one more pass.

        Args:
            shards: what was chosen from.
            rising: whether ids rise from row to row; else a mask of bits puts them in order.
            threads: how many work side by side.

        Raises:
            DataError: if the ids do not rise, or the shards do not hold what was chosen, once each.
        """
        found = self._found(shards, rising, threads)
        count = 0
        for ids in found if rising else _in_order(found):
            count += len(ids)
            if len(ids):
                yield ids
        if count != self.count:
            raise DataError(
                f"the score shards hold {count} of the {self.count} samples that were chosen: they have changed since, or an id stands in "
                "them twice. Let nothing write to them, and choose again."
            )

    def _found(self, shards: Shards, rising: bool, threads: int) -> Iterator[IdArray]:
        def chosen(chunk: Chunk) -> tuple[IdArray, tuple[int, int] | None]:
            ids = chunk["id"]
            if not len(ids):
                return ids, None
            if rising and (falls := np.flatnonzero(ids[1:] <= ids[:-1])).size:
                raise DataError(_fall(ids[falls[0]], ids[falls[0] + 1]))
            return ids[self.takes(chunk)], (int(ids[0]), int(ids[-1]))

        last = -1
        for ids, ends in spread(shards(tuple(dict.fromkeys((*self.columns, "id")))), chosen, threads):
            if rising and ends is not None:
                if ends[0] <= last:
                    raise DataError(_fall(last, ends[0]))
                last = ends[1]
            yield ids


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """What a choice is made by."""

    shards: Shards
    budget: int
    kept_C: IntArray
    seed: int
    memory: Memory
    options: Mapping[str, Any] = field(default_factory=dict)

    def order(self, **changes: Any) -> Order:
        """From the highest score to the lowest."""
        plain = Order(columns=("score",), keys=_score_keys, bits=32, seed=self.seed)
        return replace(plain, **changes)

    def classes(self, **changes: Any) -> Order:
        """The same within each class."""
        return self.order(columns=("score", "label"), groups=len(self.kept_C), group=self.labels, **changes)

    def labels(self, chunk: Chunk) -> IntArray:
        """(M,) classes of a chunk."""
        labels = chunk["label"]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.kept_C):
            raise DataError(
                f"the score shards hold labels from {labels.min()} to {labels.max()}; kept_C counts {len(self.kept_C)} classes."
            )
        return labels

    def cuts(self, order: Order, ranks: Ranks) -> list[Cut]:
        """Where an order is cut."""
        return find_cuts(self.shards, order, ranks, self.memory)


def why_not_streamed(policy: Any, options: Mapping[str, Any]) -> str | None:
    """Why a policy cannot choose from shards, and which can; None if it can.

    Args:
        policy: a name of `core.select`, or a function.
        options: its keyword options.
    """
    allowed = f"Allowed are {', '.join(STREAMED)} (window with a number as start, beta with over: last)."
    if policy not in STREAMED:
        name = policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
        return f"policy {name} needs all candidates at once and cannot choose from score shards. {allowed}"
    for name, value in (("start", "auto"), ("over", "epochs")):
        if options.get(name) == value:
            return f"policy {policy} with {name}: {value} reads more than score shards hold. {allowed}"
    return None


def choose(
    policy: str,
    shards: Shards,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    options: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
) -> Chosen:
    """Choose from score shards what the policy of that name chooses from the whole table, bit for bit.

    Args:
        policy: one of `STREAMED`.
        shards: reads the columns `id`, `label`, `score` (float32) and for `beta` `p_label`, as often as it is called.
        budget: how many to keep, 0 to all.
        kept_C: (C,) what earlier stages kept of each class.
        seed: the policy's.
        options: the policy's own.
        memory: what may be held.

    Raises:
        ConfigError: if the policy cannot choose from shards, or an option is outside its range.
        DataError: if a score is not finite, a label is no class, or there are fewer candidates than `budget`.
    """
    options = dict(options or {})
    if (why := why_not_streamed(policy, options)) is not None:
        raise ConfigError(why)
    _check_options(policy, options, kept_C, seed)
    asked = _Asked(shards=shards, budget=budget, kept_C=kept_C, seed=seed, memory=memory or Memory(), options=options)
    return _POLICIES[policy](asked)


def _check_options(policy: str, options: dict[str, Any], kept_C: IntArray, seed: int) -> None:
    """Have the policy say itself what its options may be."""
    function = getattr(select, policy)
    none: dict[str, Any] = {"p_label_M": np.empty(0, np.float32)} if policy == "beta" else {}
    nothing = np.empty(0, np.int64)
    function(np.empty(0, np.float32), nothing, nothing, 0, kept_C=kept_C, seed=seed, **none, **options)


def _score_keys(chunk: Chunk) -> Keys:
    scores = chunk["score"]
    if scores.dtype != np.float32:
        raise DataError(f"the score shards hold scores of type {scores.dtype}; they must be float32.")
    if not np.isfinite(scores).all():
        bad = scores[~np.isfinite(scores)][0]
        raise DataError(
            f"the score shards hold a score that is {bad}; all must be finite numbers. Score these samples again."
        )
    return best_first_keys(scores)


def _fall(before: int, after: int) -> str:
    return f"the ids of the score shards do not rise: {after} comes after {before}. Sort the shards by id, or say rising=False."


def _in_order(found: Iterator[IdArray]) -> Iterator[IdArray]:
    bits = IdBits()
    for ids in found:
        bits.add(ids)
    yield from bits.ids()


def _checked(budget: int, sizes_G: IntArray) -> int:
    """How many candidates there are."""
    if not 0 <= budget <= sizes_G.sum():
        raise DataError(f"the score shards hold {sizes_G.sum()} candidates, and {budget} are to be chosen.")
    return int(sizes_G.sum())


def _of_cut(cut: Cut) -> Chosen:
    return Chosen(count=cut.count, columns=cut.order.columns, takes=cut.before)


def _between(asked: _Asked, first: Callable[[int], int]) -> Chosen:
    """A window of the order, from a place that depends on how many there are."""

    def ranks(sizes_G: IntArray) -> IntArray:
        begin = first(_checked(asked.budget, sizes_G))
        return np.array([[begin], [begin + asked.budget]])

    out, within = asked.cuts(asked.order(), ranks)
    return Chosen(
        count=within.count - out.count,
        columns=("score",),
        takes=lambda chunk: within.before(chunk) & ~out.before(chunk),
    )


def _first(asked: _Asked, order: Order) -> Chosen:
    """The first of an order."""

    def ranks(sizes_G: IntArray) -> IntArray:
        _checked(asked.budget, sizes_G)
        return np.array([[asked.budget]])

    return _of_cut(asked.cuts(order, ranks)[0])


def _top(asked: _Asked) -> Chosen:
    return _first(asked, asked.order())


def _random(asked: _Asked) -> Chosen:
    return _first(asked, _by_hash(asked, "random"))


def _by_hash(asked: _Asked, purpose: str, **changes: Any) -> Order:
    """A random order, by the seeded hash of the id."""
    seed = derive(asked.seed, purpose)
    plain = Order(columns=("id",), keys=lambda chunk: tie_keys(chunk["id"], seed), bits=64, seed=seed)
    return replace(plain, **changes)


def _window(asked: _Asked) -> Chosen:
    start = _option(asked, "start")
    return _between(asked, lambda size: min(round(start * size), size - asked.budget))


def _moderate(asked: _Asked) -> Chosen:
    return _between(asked, lambda size: (size - asked.budget) // 2)


def _option(asked: _Asked, name: str) -> Any:
    """An option, or its default in the policy that it is of."""
    (policy,) = (policy for policy in STREAMED if name in inspect.signature(getattr(select, policy)).parameters)
    return asked.options.get(name, inspect.signature(getattr(select, policy)).parameters[name].default)


def _class_balanced(asked: _Asked) -> Chosen:
    def ranks(sizes_C: IntArray) -> IntArray:
        _checked(asked.budget, sizes_C)
        return even_share(sizes_C, asked.budget, asked.kept_C, asked.seed)[None]

    return _of_cut(asked.cuts(asked.classes(), ranks)[0])


def _class_floor(asked: _Asked) -> Chosen:
    def ranks(sizes_C: IntArray) -> IntArray:
        _checked(asked.budget, sizes_C)
        return least_quota(sizes_C, asked.budget, asked.kept_C, asked.seed, floor=_option(asked, "floor"))[None]

    (granted,) = asked.cuts(asked.classes(), ranks)
    left = asked.budget - granted.count
    others = asked.order(columns=("score", "label", "id"), among=lambda chunk: ~granted.before(chunk))
    (rest,) = asked.cuts(others, lambda sizes_G: np.array([[left]]))
    return Chosen(
        count=asked.budget,
        columns=others.columns,
        takes=lambda chunk: granted.before(chunk) | rest.before(chunk),
    )


def _class_quota(asked: _Asked) -> Chosen:
    sums, lowest = ExactSums(len(asked.kept_C)), 0.0

    def add(chunk: Chunk) -> tuple[ExactSums, float]:
        _score_keys(chunk)
        part = ExactSums(len(asked.kept_C))
        part.add(asked.labels(chunk), chunk["score"])
        return part, float(chunk["score"].min(initial=0.0))

    for part, low in spread(asked.shards(("score", "label")), add, asked.memory.threads):
        sums.merge(part)
        lowest = min(lowest, low)

    def ranks(sizes_C: IntArray) -> IntArray:
        _checked(asked.budget, sizes_C)
        strength = _option(asked, "strength")
        given = (sizes_C, asked.budget, asked.kept_C, asked.seed)
        return quota_by_mean(sums.totals(), lowest, *given, strength=strength)[None]

    return _of_cut(asked.cuts(asked.classes(), ranks)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """Of all scores: how many, the lowest, the highest, and (10,) probabilities of the true class of the hardest."""

    count: int
    low: float
    high: float
    hardest: FloatArray


def _survey(asked: _Asked, *, probs: bool) -> _Survey:
    def look(chunk: Chunk) -> dict[str, NDArray[Any]]:
        keys = _score_keys(chunk)
        found = {"count": np.array([len(keys)]), "ends": keys[:0]}
        if len(keys):
            found["ends"] = np.array([keys.min(), keys.max()])
        if probs:
            found |= _best(keys, chunk, asked.seed)
        return found

    columns = ("score", "p_label", "id") if probs else ("score",)
    parts = list(spread(asked.shards(columns), look, asked.memory.threads))
    ends = np.concatenate([part["ends"] for part in parts]) if parts else np.empty(0, np.uint32)
    hardest = np.empty(0, np.float32)
    if probs and parts:
        every = {name: np.concatenate([part[name] for part in parts]) for name in ("keys", "id", "p_label")}
        hardest = _best(every["keys"], every, asked.seed)["p_label"]
    return _Survey(
        count=int(sum(part["count"][0] for part in parts)),
        low=value_of_key(int(ends.max()), np.float32) if len(ends) else 0.0,
        high=value_of_key(int(ends.min()), np.float32) if len(ends) else 0.0,
        hardest=hardest,
    )


def _best(keys: Keys, chunk: Chunk, seed: int) -> dict[str, NDArray[Any]]:
    """The hardest rows of a chunk, in order."""
    rows = np.arange(len(keys))
    if len(keys) > _HARDEST:
        rows = np.flatnonzero(keys <= np.partition(keys, _HARDEST - 1)[_HARDEST - 1])
    order = rows[np.lexsort((tie_keys(chunk["id"][rows], seed), keys[rows]))][:_HARDEST]
    return {"keys": keys[order], "id": chunk["id"][order], "p_label": chunk["p_label"][order]}


def _ccs(asked: _Asked) -> Chosen:
    survey = _survey(asked, probs=False)
    _checked(asked.budget, np.array([survey.count]))
    strata, out = _option(asked, "strata"), None
    first = min(round(_option(asked, "cut") * survey.count), survey.count - asked.budget)
    high = survey.high
    if 0 < first < survey.count:
        (out,) = asked.cuts(asked.order(), lambda sizes_G: np.array([[first]]))
        high = value_of_key(int(out.keys_G[0]), np.float32)
    elif first == survey.count:
        return Chosen(count=0, columns=("score",), takes=lambda chunk: np.zeros(len(chunk["score"]), bool))

    def left(chunk: Chunk) -> NDArray[np.bool_]:
        _score_keys(chunk)
        return np.ones(len(chunk["score"]), bool) if out is None else ~out.before(chunk)

    order = _by_hash(
        asked,
        "strata",
        columns=("score", "id"),
        groups=strata,
        group=lambda chunk: strata_of(chunk["score"], survey.low, high, strata),
        among=left if out is not None else None,
    )
    return _of_cut(asked.cuts(order, lambda sizes_G: filled(sizes_G, asked.budget)[None])[0])


def _beta(asked: _Asked) -> Chosen:
    survey = _survey(asked, probs=True)
    _checked(asked.budget, np.array([survey.count]))
    if not survey.count:
        return Chosen(count=0, columns=("score",), takes=lambda chunk: np.zeros(len(chunk["score"]), bool))
    kept, c = int(asked.kept_C.sum()), _option(asked, "c")
    b = beta_shape(survey.hardest, candidates=survey.count, budget=asked.budget, kept=kept, c=c)

    def keys(chunk: Chunk) -> Keys:
        ends = {"low": survey.low, "high": survey.high}
        draws, _ = beta_draws(chunk["score"], chunk["p_label"], chunk["id"], b=b, **ends, seed=asked.seed)
        return best_first_keys(draws)

    return _first(asked, Order(columns=("score", "p_label", "id"), keys=keys, bits=64, seed=derive(asked.seed, "beta")))


_POLICIES: dict[str, Callable[[_Asked], Chosen]] = {
    "beta": _beta,
    "ccs": _ccs,
    "class_balanced": _class_balanced,
    "class_floor": _class_floor,
    "class_quota": _class_quota,
    "moderate": _moderate,
    "random": _random,
    "top": _top,
    "window": _window,
}
