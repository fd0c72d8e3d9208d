"""A choice from a score table that is too long to be sorted in memory: what `core.outofcore` is given of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Chunk, Shards
from unseen_ray.core.outofcore.select import choose
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.plugins import plug_of
from unseen_ray.pruning.suspects import SUSPECT, warn_of_needed
from unseen_ray.storage.tables import StoredTable

__all__ = ["choose_by_passes"]


def choose_by_passes(
    config: PruneConfig, scores: StoredTable, *, budget: int, kept_C: IntArray
) -> Callable[[], Iterator[pa.Table]]:
    """Pick rows of a score table without its suspects, and read them anew with each call; see `selection.choose`.

    Args:
        config: the run's; its policy is one that chooses from shards.
        scores: the table.
        budget: how many to pick.
        kept_C: (C,) what earlier stages kept of each class.
    """
    policy, options = plug_of(config.policy)
    assert isinstance(policy, str), "why_not_streamed refuses functions"
    read = functools.partial(_chunks, scores, {"score": score_name(config.score)})
    shards = _without_suspects(config, scores, read, budget) if SUSPECT in scores.schema.names else read
    chosen = choose(policy, shards, budget, kept_C=kept_C, seed=config.seed, options=options)
    return lambda: (pa.table(dict(chunk)) for chunk in chosen.rows(shards, ("id", "label", "score")))


def _chunks(scores: StoredTable, called: dict[str, str], columns: Sequence[str]) -> Iterator[Chunk]:
    """Chunks of the columns, by the names that policies know them by."""
    for batch in scores.batches([called.get(name, name) for name in columns]):
        yield {name: column.to_numpy(zero_copy_only=False) for name, column in zip(columns, batch.columns, strict=True)}


def _without_suspects(config: PruneConfig, scores: StoredTable, read: Shards, budget: int) -> Shards:
    """The shards without the suspects, but for as many of the likeliest of them as the budget needs."""
    total = suspected = 0
    for chunk in read((SUSPECT,)):
        total, suspected = total + len(chunk[SUSPECT]), suspected + int(chunk[SUSPECT].sum())
    needed = max(budget - (total - suspected), 0)
    let: Chosen | None = None
    if needed:
        warn_of_needed(suspected, total, budget, needed)
        by_label = functools.partial(_chunks, scores, {"score": "p_label"})

        def suspects(columns: Sequence[str]) -> Iterator[Chunk]:
            for chunk in by_label((*columns, SUSPECT)):
                yield {name: chunk[name][chunk[SUSPECT]] for name in columns}

        let = choose("top", suspects, needed, kept_C=np.zeros(1, np.int64), seed=config.seed)

    def shards(columns: Sequence[str]) -> Iterator[Chunk]:
        more = (SUSPECT,) if let is None else (SUSPECT, "id", "p_label")
        for chunk in read(tuple(dict.fromkeys((*columns, *more)))):
            rows: Any = ~chunk[SUSPECT]
            if let is not None:
                rows |= chunk[SUSPECT] & let.takes({"id": chunk["id"], "score": chunk["p_label"]})
            yield {name: chunk[name][rows] for name in columns}

    return shards
