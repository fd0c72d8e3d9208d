"""Integers that must never change: which samples a seed puts where. A user's old runs depend on them."""

from __future__ import annotations

import numpy as np

import unseen_ray as ur
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.seeds import derive, digest_ids, fit_seed, tie_keys, torch_seed_for

KEYS = [9435251084215121563, 2984018783733378627, 5444093267513676548]
FOLDS = 13912922704338078653
DIGEST = "23c379d6c0f22ef64cdef873fd530df1f1419b4a3935e9323d5f1d82ca697b6a"
FIT = 284245732792931583969101263983460033760
TORCH = 5001815731156076096
PLAIN = [1, 1, 0, 1, 0, 2, 2, 0, 2, 0, 1, 0, 1, 0, 2, 1, 2, 2, 1, 0]
STRATIFIED = [0, 0, 2, 0, 2, 1, 2, 1, 0, 0, 1, 2, 1, 2, 0, 2, 0, 1, 1, 1]
HOLDOUT = [3, 6, 13, 14, 17, 19]


def test_keys_and_seeds() -> None:
    assert tie_keys(np.arange(3), 0).tolist() == KEYS
    assert derive(0, "folds") == FOLDS
    digest = digest_ids(np.arange(10))
    assert digest == DIGEST
    assert fit_seed(0, digest, 1) == FIT
    assert torch_seed_for(7, 2) == TORCH


def test_folds_and_holdout() -> None:
    labels = np.arange(20) % 3
    assert ur.plan_folds(20, 3, 5).fold_of_N.tolist() == PLAIN
    assert ur.plan_folds(20, 3, 5, labels=labels).fold_of_N.tolist() == STRATIFIED
    assert make_population(labels, 3, holdout=0.3, seed=5).holdout_ids.tolist() == HOLDOUT
