"""How many rows are held, written and worked on at once: the one place where a short run and a long one part."""

from __future__ import annotations

from dataclasses import dataclass

from unseen_ray.core.arrays import ROWS_OF_A_CHUNK
from unseen_ray.core.folds import ROWS_DEALT_AT_ONCE
from unseen_ray.data.sources.label_columns import ROWS_IN_MEMORY

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in rows; a run is given one such value and hands it to its workers within the `Job`.

    Attributes:
        rows_in_memory: a table of more rows is stored in parts, read by pieces and chosen from by passes, and its tasks
            name their samples by rules. Part of the file format: README promises one file up to this size.
        rows_of_a_part: of each part of such a table. It decides what a merge holds, and where the files are cut.
        rows_merged_at_once: candidates whose votes are laid out together within a part; bounds the memory of a merge.
        rows_of_a_chunk: rows of the source that a set of samples is worked out for at once.
        rows_dealt_at_once: samples that are shuffled together when folds are dealt. Another number gives other folds of a
            source that is longer, so it is a constant of every stored run.
    """

    rows_in_memory: int = ROWS_IN_MEMORY
    rows_of_a_part: int = 2**22
    rows_merged_at_once: int = 2**20
    rows_of_a_chunk: int = ROWS_OF_A_CHUNK
    rows_dealt_at_once: int = ROWS_DEALT_AT_ONCE

    def part_rows(self, rows: int) -> int | None:
        """Rows of each part of a table of that many rows; None where it is one file."""
        return self.rows_of_a_part if rows > self.rows_in_memory else None


DEFAULT_LIMITS = Limits()
