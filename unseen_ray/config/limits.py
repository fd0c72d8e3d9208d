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
        rows_in_memory: longer tables are stored in parts, and their tasks name samples by rules. Part of the file format:
            docs/run_folder.md promises one file up to this size.
        rows_held: longer tables, in one file or in parts, are read in pieces and selected from in several passes.
        rows_of_a_part: rows per part of such a table. It determines where the files are cut and what a merge holds.
        votes_of_a_part: rows per part of a model's votes, where they are more, in short runs as well. A vote takes 24 bytes and 4 a
            score: a part takes 220 MB of memory with the default scores, and less than 400 MB with all.
        rows_merged_at_once: candidates whose votes are merged together within a part; bounds the memory of a merge.
        probs_merged_at_once: probabilities that are merged together, or are in a part of long votes, in numbers; bounds the memory of
            a merge, or of a scoring, with probabilities.
        rows_of_a_chunk: rows of the source for which a set of samples is evaluated at a time.
        rows_dealt_at_once: samples that are shuffled together when folds are planned. Another number would give longer
            sources other folds, so all stored runs have the same.
    """

    rows_in_memory: int = ROWS_IN_MEMORY
    rows_held: int = 2**22
    rows_of_a_part: int = 2**22
    votes_of_a_part: int = 2**22
    rows_merged_at_once: int = 2**20
    probs_merged_at_once: int = 2**25
    rows_of_a_chunk: int = ROWS_OF_A_CHUNK
    rows_dealt_at_once: int = ROWS_DEALT_AT_ONCE

    @property
    def most_held(self) -> int:
        """Rows of the longest table that is held; one in parts never is."""
        return min(self.rows_held, self.rows_in_memory)

    def part_rows(self, rows: int) -> int | None:
        """Rows per part of a table with `rows` rows; None if it is one file."""
        return self.rows_of_a_part if rows > self.rows_in_memory else None

    def vote_rows(self, rows: int, *, batch: int, probs: int) -> int:
        """How many of a model's `rows` votes are scored and stored at a time.

        Args:
            rows: samples that it scores.
            batch: samples that it predicts at once; a part has whole batches, so that no batch depends on what is stored already.
            probs: probabilities kept of each; 0 for none.
        """
        if rows <= self.votes_of_a_part:
            return rows
        most = min(self.votes_of_a_part, self.probs_merged_at_once // probs) if probs else self.votes_of_a_part
        return max(most // batch, 1) * batch


DEFAULT_LIMITS = Limits()
