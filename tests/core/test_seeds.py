"""Laws of keyed randomness: a stream or a key for each purpose, and nothing but its arguments decides it."""

from __future__ import annotations

import hashlib
import struct
from itertools import combinations

import numpy as np
import pytest

from unseen_ray.core.seeds import derive, digest_ids, fit_seed, rng_for, tie_keys, torch_seed_for

IDS = np.arange(100_000, dtype=np.int64)


def draws(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 2**63, 4).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**40, 2**100])
def test_tie_keys_are_distinct_uint64(seed: int) -> None:
    keys = tie_keys(IDS, seed)
    assert keys.dtype == np.uint64
    assert keys.shape == IDS.shape
    assert len(np.unique(keys)) == len(IDS)


def test_tie_keys_of_large_ids_are_distinct_too() -> None:
    ids = np.concatenate([IDS, IDS + 2**32, IDS + 2**53, 2**63 - 1 - IDS])
    assert len(np.unique(tie_keys(ids, 0))) == len(ids)


def test_tie_keys_depend_on_the_seed() -> None:
    orders = [np.argsort(tie_keys(IDS[:1000], seed)) for seed in (0, 1, 2)]
    assert all((one == other).mean() < 0.05 for one, other in combinations(orders, 2))


def test_tie_keys_follow_their_ids() -> None:
    order = np.random.default_rng(0).permutation(len(IDS))
    np.testing.assert_array_equal(tie_keys(IDS[order], 7), tie_keys(IDS, 7)[order])
    shards = [tie_keys(shard, 7) for shard in np.array_split(IDS, 7)]
    np.testing.assert_array_equal(np.concatenate(shards), tie_keys(IDS, 7))
    np.testing.assert_array_equal(tie_keys(IDS[:9].astype(np.int32), 7), tie_keys(IDS[:9], 7))


def test_tie_keys_leave_their_ids_alone_and_do_not_follow_them() -> None:
    ids = IDS.copy()
    keys = tie_keys(ids, 3)
    np.testing.assert_array_equal(ids, IDS)
    assert abs(np.corrcoef(ids, keys.astype(np.float64))[0, 1]) < 0.02
    assert abs((keys >> np.uint64(63)).mean() - 0.5) < 0.01
    assert abs((keys & np.uint64(1)).mean() - 0.5) < 0.01


def test_tie_keys_of_nothing() -> None:
    assert tie_keys(np.empty(0, np.int64), 0).shape == (0,)


def test_tie_keys_are_what_they_were() -> None:
    """Runs are resumed and selected from by later versions: the keys are part of the files' meaning."""
    assert tie_keys(np.array([0, 1, 2**40]), 0).tolist() == PINNED


PINNED = [9435251084215121563, 2984018783733378627, 7982956306017501879]


def test_every_path_has_a_stream_of_its_own() -> None:
    paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (7,), (0, 7), (0, 0, 0)]
    streams = {draws(rng_for(seed, *path)) for seed in (0, 7) for path in paths}
    assert len(streams) == 2 * len(paths)
    assert draws(rng_for(7)) != draws(rng_for(7, 0))


def test_the_same_path_gives_the_same_stream() -> None:
    assert draws(rng_for(7, 3, 1)) == draws(rng_for(7, 3, 1))
    assert torch_seed_for(7, 3, 1) == torch_seed_for(7, 3, 1)


def test_torch_seeds_are_distinct_and_in_range() -> None:
    seeds = [torch_seed_for(seed, *path) for seed in range(50) for path in ((), (0,), (1,), (0, 0))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derive_gives_each_purpose_a_seed_of_its_own() -> None:
    purposes = ["folds", "holdout", "random", "remainders", "fold", ""]
    derived = {derive(seed, purpose) for seed in (0, 1, 2) for purpose in purposes}
    assert len(derived) == 3 * len(purposes)
    assert derive(5, "folds") == derive(5, "folds")
    assert 5 not in {derive(5, purpose) for purpose in purposes}


@pytest.mark.parametrize("ids", [[], [0], [0, 1, 5], [2**40, 2**62]])
def test_digest_is_the_sha256_of_little_endian_int64(ids: list[int]) -> None:
    wanted = hashlib.sha256(b"".join(struct.pack("<q", id) for id in ids)).hexdigest()
    assert digest_ids(np.array(ids, np.int64)) == wanted
    assert digest_ids(np.array(ids, ">i8")) == wanted


def test_a_digest_looks_at_values_not_at_memory() -> None:
    assert (
        digest_ids(np.arange(20)[::2]) == digest_ids(np.arange(0, 20, 2)) == digest_ids(np.arange(0, 20, 2, np.int32))
    )
    assert digest_ids(np.arange(20)) != digest_ids(np.arange(21))


def test_a_fit_seed_depends_on_each_of_seed_ids_and_repeat() -> None:
    digests = [digest_ids(ids) for ids in (np.arange(5), np.arange(6), np.arange(1, 6))]
    seeds = {fit_seed(seed, digest, repeat) for seed in (0, 1) for digest in digests for repeat in (0, 1)}
    assert len(seeds) == 12
    assert fit_seed(0, digests[0], 1) == fit_seed(0, digests[0], 1)
    assert all(0 <= seed < 2**128 for seed in seeds)


def test_a_fit_seed_depends_on_every_part_of_the_digest() -> None:
    digest = digest_ids(np.arange(5))
    changed = [digest[:place] + ("1" if digest[place] == "0" else "0") + digest[place + 1 :] for place in range(64)]
    assert len({fit_seed(0, other, 0) for other in [digest, *changed]}) == 65


def test_a_fit_seed_serves_both_generators() -> None:
    seed = fit_seed(0, digest_ids(np.arange(5)), 0)
    assert draws(rng_for(seed, 0)) != draws(rng_for(seed, 1))
    assert torch_seed_for(seed) != torch_seed_for(seed, 0)
