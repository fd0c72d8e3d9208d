"""Ids from the highest score to the lowest, of more rows than can be sorted: a pass for each band of neighbouring scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.outofcore.chunks import Shards
from unseen_ray.core.outofcore.ranks import HALF, key_groups
from unseen_ray.core.outofcore.sort_keys import best_first_keys
from unseen_ray.core.policies.base import best_first

__all__ = ["ids_best_first"]


def ids_best_first(shards: Shards, stages: int, seed: int, *, most_sorted: int = 2**23) -> Iterator[IdArray]:
    """The ids in the order in which they were picked, in pieces: by stage, then by score, ties by the seeded hash of the id.

    Args:
        shards: rows with the columns id, stage and score, float32.
        stages: the number of stages.
        seed: of the hash.
        most_sorted: rows of a band, unless more of them share the upper 16 bits of their scores.
    """
    for stage in range(stages):
        counts_H = np.zeros(1 << HALF, np.int64)
        for _, _, halves in _rows(shards, stage):
            counts_H += np.bincount(halves, minlength=len(counts_H))
        for first, last in key_groups(counts_H, most_sorted):
            found = [
                (ids[inside], scores[inside])
                for ids, scores, halves in _rows(shards, stage)
                for inside in [(halves >= first) & (halves < last)]
            ]
            ids_M, scores_M = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
            yield ids_M[best_first(scores_M, ids_M, seed)]


def _rows(shards: Shards, stage: int) -> Iterator[tuple[IdArray, FloatArray, IntArray]]:
    """Ids and scores of a stage, and the upper halves of the scores' keys."""
    for chunk in shards(("id", "stage", "score")):
        of_stage = chunk["stage"] == stage
        scores = chunk["score"][of_stage]
        yield chunk["id"][of_stage], scores, (best_first_keys(scores) >> HALF).astype(np.int64)
