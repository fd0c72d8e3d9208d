"""Near copies: all pairs above the similarity, found in blocks, and what they chain to."""

from __future__ import annotations

import numpy as np
import pytest

from unseen_ray.core.samples import near_copies
from unseen_ray.core.samples.near_copies import group_near


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def literal_groups(features: np.ndarray, similarity: float) -> list[int]:
    """By comparing every pair, and following chains."""
    alike = features @ features.T >= similarity
    root = list(range(len(features)))
    for _ in root:
        root = [min(root[other] for other in [*np.flatnonzero(row).tolist(), at]) for at, row in enumerate(alike)]
    return root


@pytest.mark.parametrize("block", [1, 7, 50, 2048])
@pytest.mark.parametrize("similarity", [0.5, 0.9, 0.99])
def test_the_groups_are_those_of_every_pair(monkeypatch: pytest.MonkeyPatch, similarity: float, block: int) -> None:
    monkeypatch.setattr(near_copies, "_BLOCK", block)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 6))
    features = unit(
        centres[rng.integers(0, 40, 150)] + rng.normal(size=(150, 6)) * rng.choice([0.02, 0.2, 0.6], (150, 1))
    )
    assert group_near(features, similarity).tolist() == literal_groups(features, similarity)


def test_a_long_chain_is_one_group() -> None:
    angles = np.random.default_rng(0).permutation(100) * 0.01
    features = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert group_near(features, 0.9999).tolist() == [0] * 100


def test_a_row_of_zeros_is_like_no_other() -> None:
    features = np.concatenate([np.zeros((3, 4), np.float32), np.eye(4, dtype=np.float32)[[0, 0, 1]]])
    assert group_near(features, 0.9).tolist() == [0, 1, 2, 3, 3, 5]
