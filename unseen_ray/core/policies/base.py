"""What the policies share: the order of the candidates, and the checks of their options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, Positions
from unseen_ray.core.seeds import tie_keys
from unseen_ray.errors import ConfigError

__all__ = [
    "Positions",
    "best_first",
    "check_choice",
    "check_count",
    "check_finite",
    "check_number",
    "check_share",
    "filled_up",
    "from_zero",
    "weighted_draws",
]


def best_first(scores_M: FloatArray, ids_M: IdArray, seed: int, count: int | None = None) -> Positions:
    """Positions from the highest score to the lowest, ties by the seeded hash of the id: all (M,), or the first `count`."""
    if count is not None and 0 < count < len(scores_M):
        falling = -scores_M
        # Not `<=`, which is false for NaN: it comes last in the order, but it is in it.
        rows = np.flatnonzero(~(falling > np.partition(falling, count - 1)[count - 1]))
        return rows[best_first(scores_M[rows], ids_M[rows], seed)][:count]
    order = np.argsort(-scores_M)
    begins = _begins(scores_M[order])
    if (tied := _repeated(begins)).any():
        rows, runs = order[tied], np.cumsum(begins, dtype=np.int64)[tied]
        order[tied] = rows[_by_run_and_key(runs, tie_keys(ids_M[rows], seed))]
    return order[:count]


def _begins(sorted_M: NDArray[Any]) -> NDArray[np.bool_]:
    """(M,) where a run of equal values begins; NaN, which come last, are one run."""
    begins = np.ones(len(sorted_M), bool)
    begins[1:] = (sorted_M[1:] != sorted_M[:-1]) & ~np.isnan(sorted_M[:-1])
    return begins


def _repeated(begins: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(M,) whether a run has more than one value."""
    single: NDArray[np.bool_] = begins & np.append(begins[1:], True)
    return ~single


def _by_run_and_key(runs_R: IntArray, keys_R: NDArray[np.uint64]) -> Positions:
    """(R,) places by the number of the run and, within it, by the key: as a lexsort, several times as fast."""
    half = np.uint64(32)
    packed = (runs_R.astype(np.uint64) << half) | (keys_R >> half)
    places = np.argsort(packed)
    halves_alike = _repeated(_begins(packed[places]))
    rest = places[halves_alike]
    places[halves_alike] = rest[np.lexsort((keys_R[rest], packed[rest]))]
    return places


def filled_up(first: Positions, order_M: Positions, budget: int) -> Positions:
    """(budget,) the first positions, and the first others of an order of all (M,) candidates."""
    free = np.ones(len(order_M), bool)
    free[first] = False
    return np.concatenate([first, order_M[free[order_M]][: budget - len(first)]])


def from_zero(scores_M: FloatArray, low: float) -> NDArray[np.float64]:
    """(M,) scores that are not negative: shifted up by the lowest of all candidates, `low`, where that is below 0."""
    shifted: NDArray[np.float64] = scores_M.astype(np.float64) - min(low, 0.0)
    return shifted


def weighted_draws(log_weights_M: FloatArray, keys_M: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(M,) draws, of which the highest are a choice without replacement in proportion to weights; highest first.

    Args:
        log_weights_M: (M,) natural logarithms of the weights; -inf comes last, +inf first.
        keys_M: (M,) seeded hashes of the ids; with equal weights, the highest key has the highest draw.

    Source: Efraimidis and Spirakis, Weighted random sampling with a reservoir (2006).
    """
    uniform = (keys_M.astype(np.float64) + 0.5) / 2.0**64
    # They take the largest u^(1/w); log w - log(-log u) has the same order, and no power underflows to 0.
    # The clip keeps u off 0 and 1, where its logarithms are infinite and would tie.
    draws: NDArray[np.float64] = log_weights_M.astype(np.float64) - np.log(
        -np.log(np.clip(uniform, 2.0**-60, 1 - 2.0**-53))
    )
    return draws


def check_share(name: str, value: float, *, closed: bool = False) -> None:
    """ConfigError unless an option lies between 0 and 1; `closed` also allows 1 itself."""
    if not _is_number(value) or not (0 <= value <= 1 if closed else 0 <= value < 1):
        raise ConfigError(f"policy option {name}={value!r} is not in [0, 1{']' if closed else ')'}: it is a share.")


def check_number(name: str, value: float, *, positive: bool = False) -> None:
    """ConfigError unless an option is finite and at least 0; `positive` refuses 0 itself."""
    if not _is_number(value) or not (0 < value < np.inf or (value == 0 and not positive)):
        raise ConfigError(
            f"policy option {name}={value!r} must be a number{' above 0' if positive else ', 0 or more'}."
        )


def check_finite(name: str, value: float) -> None:
    """ConfigError unless an option is a finite number."""
    if not _is_number(value) or not -np.inf < value < np.inf:
        raise ConfigError(f"policy option {name}={value!r} must be a finite number.")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """ConfigError unless an option is one of some words."""
    if value not in allowed:
        raise ConfigError(f"policy option {name}={value!r} is not allowed: write {' or '.join(allowed)}.")


def check_count(name: str, value: int) -> None:
    """ConfigError unless an option is a whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"policy option {name}={value!r} must be a whole number, 1 or more.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
