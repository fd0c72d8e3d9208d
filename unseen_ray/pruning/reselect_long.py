"""Choose again from scores that are too long for memory: by passes over their parts, to a coreset in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.outofcore.selection import IdBits
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.pruning.selection_by_passes import choose_streamed
from unseen_ray.pruning.warnings import check_long_selection
from unseen_ray.runs.entries import Cost
from unseen_ray.runs.layout import CORESET, KEYS, scores_file
from unseen_ray.runs.run import Run, open_selection
from unseen_ray.storage.tables import LongTable, TableWriter, copy_table

__all__ = ["budget_of", "select_long"]


def budget_of(keep: float, samples: int) -> int:
    """How many are kept of so many; ConfigError if that is none or all."""
    budget = round(keep * samples)
    if not 1 <= budget < samples:
        raise ConfigError(f"keep={keep} of {samples} samples is {budget}; it must leave 1 to {samples - 1}.")
    return budget


def select_long(run: Run, config: PruneConfig, scores: LongTable, *, chosen_from_s: float | None) -> Run:
    """Choose from the scores as they are stored, and write the choice; a bit for each id is held, and no column.

    Args:
        run: a finished run.
        config: what is asked for; its policy streams.
        scores: of stage 0.
        chosen_from_s: what the manifest says that the scores took.

    Raises:
        ConfigError: if none or all would be kept, or the folder holds anything.
    """
    known, total = run.manifest.files, scores.num_rows
    budget = budget_of(config.keep, total)
    kept_C = np.zeros(run.manifest.source.num_classes, np.int64)
    chosen, shards = choose_streamed(config, scores.batches, scores.schema.names, budget=budget, kept_C=kept_C)
    bits = IdBits()
    for ids in chosen.ids(shards):
        bits.add(ids)
    about = run.manifest.source
    sizes_C, taken_C = np.asarray(about.class_counts), np.zeros_like(kept_C)
    for batch in scores.batches(["id", "label"]):
        labels = batch.column("label").to_numpy()[bits.has(batch.column("id").to_numpy())]
        taken_C += np.bincount(labels, minlength=len(taken_C))
    check_long_selection(config, scores, bits.has, about.class_names, sizes_C=sizes_C, kept_C=taken_C)
    new = open_selection(run, config)
    writer = TableWriter(new.folder, CORESET, budget)
    name = score_name(config.score)
    keys = _kept(LongTable(run.folder, KEYS, known).verified(), ["id", "key"], bits)
    for some, its_keys in in_step(_kept(scores, ["id", "label", name], bits), keys):
        if not some.column("id").equals(its_keys.column("id")):
            raise StorageError(
                f"{run.folder.path(KEYS)} and {run.folder.path(scores_file(0))} are not of the same samples."
            )
        columns = {
            "id": some.column("id"),
            "key": its_keys.column("key"),
            "label": some.column("label"),
            "stage": pa.array(np.zeros(some.num_rows, np.int32)),
            "score": some.column(name),
        }
        writer.add(pa.table(columns))
    files = {
        **writer.close(),
        **copy_table(new.folder, KEYS, run.folder, known),
        **copy_table(new.folder, scores_file(0), run.folder, known),
    }
    return new.commit(files=files, cost=Cost(seconds=0.0, chosen_from_s=chosen_from_s), finished=True)


def in_step(first: Iterable[pa.Table], second: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Two tables of the same length, each told by pieces of its own, by pieces of the same length."""
    others = iter(second)
    other: pa.Table | None = None
    for table in first:
        while table.num_rows:
            while other is None or not other.num_rows:
                other = next(others, None)
                if other is None:
                    raise StorageError(
                        "two tables of the run are not of the same samples: the keys end before the scores."
                    )
            rows = min(table.num_rows, other.num_rows)
            yield table.slice(0, rows), other.slice(0, rows)
            table, other = table.slice(rows), other.slice(rows)


def _kept(table: LongTable, columns: list[str], bits: IdBits) -> Iterator[pa.Table]:
    for batch in table.batches(columns):
        kept = bits.has(batch.column("id").to_numpy())
        yield pa.Table.from_batches([batch]).filter(pa.array(kept))
