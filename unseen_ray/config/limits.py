"""How many rows are held, written and processed at once: the only difference between short and long runs."""

from __future__ import annotations

from dataclasses import dataclass

from unseen_ray.core.arrays import ROWS_OF_A_CHUNK
from unseen_ray.core.folds import ROWS_DEALT_AT_ONCE
from unseen_ray.data.sources.label_columns import ROWS_IN_MEMORY

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in rows; a run gets one such value and passes it to its workers in the `Job`.

    Attributes:
        rows_in_memory: longer tables are stored in parts, read in pieces and selected from in several passes, and their
            tasks name samples by rules. Part of the file format: README promises one file up to this size.
        rows_of_a_part: rows per part of such a table. It determines where the files are cut and what a merge holds.
        rows_merged_at_once: candidates whose votes are merged together within a part; bounds the memory of a merge.
        probs_merged_at_once: probabilities that are merged together, in numbers; bounds the memory of a merge with probabilities.
        rows_of_a_chunk: rows of the source for which a set of samples is evaluated at a time.
        rows_dealt_at_once: samples that are shuffled together when folds are planned. Another number would give longer
            sources other folds, so all stored runs have the same.
    """

    rows_in_memory: int = ROWS_IN_MEMORY
    rows_of_a_part: int = 2**22
    rows_merged_at_once: int = 2**20
    probs_merged_at_once: int = 2**25
    rows_of_a_chunk: int = ROWS_OF_A_CHUNK
    rows_dealt_at_once: int = ROWS_DEALT_AT_ONCE

    def part_rows(self, rows: int) -> int | None:
        """Rows per part of a table with `rows` rows; None if it is one file."""
        return self.rows_of_a_part if rows > self.rows_in_memory else None


DEFAULT_LIMITS = Limits()
