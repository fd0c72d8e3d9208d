"""Randomness from keys: every draw depends on a seed and a purpose, never on the order of execution."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import IdArray

__all__ = ["derive", "digest_ids", "fit_seed", "rng_for", "tie_keys", "torch_seed_for"]

_TORCH, _PURPOSE, _FIT = 2**31, 2**31 + 1, 2**31 + 2  # first words of spawn keys, beyond any path of `rng_for`
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def rng_for(seed: int, *path: int) -> np.random.Generator:
    """A generator for one purpose: the same (seed, path) gives the same stream, another path an independent one.

    Args:
        seed: the run's seed, or one from `derive` or `fit_seed`; non-negative.
        path: integers from 0 to 2**31 - 1, such as (epoch,).
    """
    # a spawn key, not [seed, *path] as entropy: there [7] and [7, 0] give the same stream
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))


def torch_seed_for(seed: int, *path: int) -> int:
    """A seed for torch's generators (0 <= seed < 2**63), keyed like `rng_for` but independent of it."""
    state = np.random.SeedSequence(seed, spawn_key=(_TORCH, *path)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def derive(seed: int, purpose: str) -> int:
    """A separate seed for a named purpose (`folds`, `holdout`, ...), so that two purposes never share a stream."""
    state = np.random.SeedSequence(seed, spawn_key=(_PURPOSE, *purpose.encode())).generate_state(1, np.uint64)
    return int(state[0])


def digest_ids(ids_M: IdArray) -> str:
    """SHA-256 of sorted ids as little-endian int64, in hexadecimal: the name of a set of samples."""
    return hashlib.sha256(np.ascontiguousarray(ids_M, dtype="<i8").data).hexdigest()


def fit_seed(seed: int, train_digest: str, repeat: int) -> int:
    """The seed of one fit, from its training ids: two fits on the same ids draw the same numbers wherever they run.

    Args:
        seed: the run's seed.
        train_digest: `digest_ids` of the training ids.
        repeat: 0 for the first model trained on these ids, 1 for the next, ...

    Returns:
        A 128-bit integer for `rng_for` and `torch_seed_for`.
    """
    words = np.frombuffer(bytes.fromhex(train_digest), dtype="<u4")
    state = np.random.SeedSequence(seed, spawn_key=(_FIT, *map(int, words), repeat)).generate_state(4, np.uint32)
    return int.from_bytes(state.astype("<u4").tobytes(), "little")


def tie_keys(ids: IdArray, seed: int) -> NDArray[np.uint64]:
    """A seeded hash of each id: the order in which equal scores are kept, lowest key first.

    For a given seed the hash is a bijection of the id (two rounds of the splitmix64 finaliser), so no two ids tie. A
    key depends only on (seed, id), so shards of a data set agree without communication.

    Args:
        ids: (M,) int64 sample ids in any order.
        seed: non-negative integer.

    Returns:
        (M,) uint64.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        z = np.asarray(ids).astype(np.uint64)  # a copy, changed in place: temporary arrays would dominate the time
        room = np.empty_like(z)
        _mix(z, room)
        z ^= key
        _mix(z, room)
    return z


def _mix(z: NDArray[np.uint64], room: NDArray[np.uint64]) -> None:
    """One step of splitmix64 and its finaliser, in place."""
    z += _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(z, np.uint64(shift), out=room)
        z ^= room
        z *= np.uint64(factor)
    np.right_shift(z, np.uint64(31), out=room)
    z ^= room
