"""Combines two tables that are read in pieces of different sizes: merged by id, or row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from unseen_ray.errors import StorageError

__all__ = ["in_id_order", "in_step"]


def in_id_order(first: Iterable[pa.Table], second: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Merge two streams of tables with the same columns, each sorted by id, into one stream sorted by id."""
    streams = [(table for table in tables if table.num_rows) for tables in (first, second)]
    held = [next(stream, None) for stream in streams]
    while held[0] is not None and held[1] is not None:
        ids = [table.column("id").to_numpy() for table in held if table is not None]
        # no later piece of either stream can hold an id up to the lower of the two last ids, so these rows are final
        ends = [int(np.searchsorted(each, min(ids[0][-1], ids[1][-1]), side="right")) for each in ids]
        taken = [table.slice(0, end) for table, end in zip(held, ends, strict=True) if table is not None]
        yield pa.concat_tables(taken).sort_by("id")
        for place, (table, end) in enumerate(zip(held, ends, strict=True)):
            if table is not None:
                held[place] = table.slice(end) if end < table.num_rows else next(streams[place], None)
    for table, stream in zip(held, streams, strict=True):
        if table is not None:
            yield table
            yield from stream


def in_step(first: Iterable[pa.Table], second: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Cut two streams of tables with the same rows into pairs of pieces of the same length.

    Raises:
        StorageError: if one stream ends before the other, or the ids of a pair differ.
    """
    others = (table for table in second if table.num_rows)
    other = next(others, None)
    for table in first:
        while table.num_rows:
            if other is None:
                raise StorageError(_OTHER_SAMPLES)
            rows = min(table.num_rows, other.num_rows)
            pair = table.slice(0, rows), other.slice(0, rows)
            if not pair[0].column("id").equals(pair[1].column("id")):
                raise StorageError(_OTHER_SAMPLES)
            yield pair
            table = table.slice(rows)
            other = other.slice(rows) if rows < other.num_rows else next(others, None)
    if other is not None:
        raise StorageError(_OTHER_SAMPLES)


_OTHER_SAMPLES = (
    "the keys and the scores of the run name different samples: a file was replaced. Prune again in a new folder."
)
