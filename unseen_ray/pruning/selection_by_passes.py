"""A choice from a score table that is too long to be sorted in memory: what `core.streaming` is given of a run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.arrays import IntArray
from unseen_ray.core.outofcore.chunks import Chunk, Shards
from unseen_ray.core.outofcore.select import choose, why_not_streamed
from unseen_ray.core.outofcore.selection import Chosen
from unseen_ray.plugins import plug_of
from unseen_ray.pruning.suspects import SUSPECT, warn_of_needed
from unseen_ray.storage import tables as parts

__all__ = ["Batches", "batches_of", "choose_streamed", "is_streamed", "rows_streamed", "warn_of_memory"]

logger = logging.getLogger(__name__)

Batches = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
"""Reads the named columns of a score table anew, by pieces, in the order of the ids."""

_BATCH = 2**18


def is_streamed(config: PruneConfig, rows: int) -> bool:
    """Whether a run's policy chooses from a table of so many rows by passes over it: it is long, and the policy can."""
    return rows > parts.MOST_ROWS and why_not_streamed(*plug_of(config.policy)) is None


def warn_of_memory(config: PruneConfig, rows: int) -> None:
    """Say it where a policy that cannot choose by passes has a long table to choose from."""
    why = why_not_streamed(*plug_of(config.policy)) if rows > parts.MOST_ROWS else None
    if why is not None:
        logger.warning("%s All %d candidates are held in memory for it.", why, rows)


def batches_of(table: pa.Table) -> Batches:
    """Of a table in memory."""
    return lambda columns: iter(table.select(list(columns)).to_batches(max_chunksize=_BATCH))


def rows_streamed(config: PruneConfig, table: pa.Table, *, budget: int, kept_C: IntArray) -> np.ndarray:
    """(budget,) rows of a table that the run's policy picks without its suspects, rising.

    Args:
        config: the run's.
        table: the scores of the candidates.
        budget: how many to pick.
        kept_C: (C,) what earlier stages kept of each class.
    """
    chosen, shards = choose_streamed(config, batches_of(table), table.column_names, budget=budget, kept_C=kept_C)
    picked = [np.empty(0, np.int64), *chosen.ids(shards)]
    rows: np.ndarray = np.searchsorted(table.column("id").to_numpy(), np.concatenate(picked))
    return rows


def choose_streamed(
    config: PruneConfig, batches: Batches, names: Sequence[str], *, budget: int, kept_C: IntArray
) -> tuple[Chosen, Shards]:
    """What the run's policy chooses of a score table without its suspects, and the shards to read it from.

    Args:
        config: the run's.
        batches: the table.
        names: its columns.
        budget: how many to pick.
        kept_C: (C,) what earlier stages kept of each class.

    Raises:
        ConfigError: if the policy cannot choose so.
    """
    policy, options = plug_of(config.policy)
    read = functools.partial(_chunks, batches, {"score": score_name(config.score)})
    shards = read if SUSPECT not in names else _open(config, batches, read, budget)
    assert isinstance(policy, str), "is_streamed says which policies can"
    return choose(policy, shards, budget, kept_C=kept_C, seed=config.seed, options=options), shards


def _chunks(batches: Batches, called: dict[str, str], columns: Sequence[str]) -> Iterator[Chunk]:
    """Chunks of the columns, by the names that policies know them by."""
    for batch in batches([called.get(name, name) for name in columns]):
        yield {name: column.to_numpy(zero_copy_only=False) for name, column in zip(columns, batch.columns, strict=True)}


def _open(config: PruneConfig, batches: Batches, read: Shards, budget: int) -> Shards:
    """The shards without the suspects, but for as many of the likeliest of them as the budget needs."""
    total = suspected = 0
    for chunk in read((SUSPECT,)):
        total, suspected = total + len(chunk[SUSPECT]), suspected + int(chunk[SUSPECT].sum())
    needed = max(budget - (total - suspected), 0)
    let: Chosen | None = None
    if needed:
        warn_of_needed(suspected, total, budget, needed)
        by_label = functools.partial(_chunks, batches, {"score": "p_label"})

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
