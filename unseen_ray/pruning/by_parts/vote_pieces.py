"""The votes of a stage, combined a few candidates at a time: by pieces of the candidates' ids, and by the ranks among all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unseen_ray.core.arrays import positions_of
from unseen_ray.core.combine_votes import VoteCombiner
from unseen_ray.core.outofcore.ranks import add_mean_ranks
from unseen_ray.errors import IncompleteScoreError
from unseen_ray.runs.vote_ranges import check_votes, open_votes
from unseen_ray.runs.votes import read_votes
from unseen_ray.storage.tables import joined

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unseen_ray.config.limits import Limits
    from unseen_ray.core.tasks import VotePart
    from unseen_ray.pruning.by_parts.scratch import Scratch, ScratchColumn
    from unseen_ray.storage.filesystem import Folder
    from unseen_ray.storage.tables import StoredTable

__all__ = [
    "Reader",
    "VotePiece",
    "pieces_of_table",
    "rank_means",
    "readers_of",
    "rows_at_once",
    "whole_reader",
    "with_votes",
]

_VOTES_AT_ONCE = 2**22  # of a long stage; candidates with more votes are merged in smaller groups
_LEAST_ROWS = 2**16  # candidates of a group: with fewer, opening the vote files takes longer than reading them

Reader = Callable[["int | None", "int | None"], "VotePart"]
"""Reads a model's votes of the ids from the first number up to, but without, the second; None is no bound."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VotePiece:
    """Some candidates that follow each other.

    Attributes:
        combiner: for their votes, which it does not hold yet.
        low, high: the ids that a reader is asked for; None before the first and after the last candidate, so that strangers are found.
    """

    combiner: VoteCombiner
    low: int | None
    high: int | None


def rows_at_once(limits: Limits, votes_each: int) -> int:
    """Candidates of a piece, if so many votes of each are read."""
    return min(limits.rows_merged_at_once, max(_VOTES_AT_ONCE // votes_each, _LEAST_ROWS))


def pieces_of_table(scores: StoredTable, num_parts: int, rows: int) -> Iterator[VotePiece]:
    """The candidates of a table of scores.

    Args:
        scores: their ids, labels and numbers of votes.
        num_parts: models that vote.
        rows: of a piece, about.
    """
    low, tables = None, joined(scores.batches(["id", "label", "votes"]), rows)
    for table, following in itertools.pairwise(itertools.chain(tables, [None])):
        ids_M, labels_M, votes_M = (column.to_numpy() for column in table.columns)
        high = None if following is None else int(following.column("id")[0].as_py())
        combiner = VoteCombiner(
            ids_M=ids_M, labels_M=labels_M, num_parts=num_parts, votes_each=votes_M.astype(np.int64)
        )
        yield VotePiece(combiner=combiner, low=low, high=high)
        low = high


def readers_of(
    folder: Folder, stage: int, num_parts: int, files: Mapping[str, str], *, is_long: bool
) -> Iterator[Reader]:
    """The votes of each model, checked: of a long stage to be read by ranges, else read whole.

    Raises:
        StorageError: if they are missing or damaged.
    """
    for index in range(num_parts):
        if is_long:
            check_votes(folder, stage, index)
            yield open_votes(folder, stage, index).part
        else:
            yield whole_reader(read_votes(folder, stage, index, files, probs=False))


def whole_reader(part: VotePart) -> Reader:
    """A reader of votes in memory, of which one piece holds all candidates."""
    return lambda _low, _high: part


def with_votes(pieces: Iterable[VotePiece], readers: Sequence[Reader]) -> Iterator[VoteCombiner]:
    """The pieces with the votes of all models."""
    for piece in pieces:
        for read in readers:
            piece.combiner.add(read(piece.low, piece.high))
        yield piece.combiner


def rank_means(
    pieces: Callable[[], Iterable[VotePiece]], readers: Iterable[Reader], rows: int, scratch: Scratch
) -> dict[str, ScratchColumn]:
    """The scores by `rank_mean`, as `VoteCombiner.combine` gives them; at once, it needs one piece of one model's votes.

    A score takes two columns of `rows` numbers, of 4 and 8 bytes, and of each model a pass over them and two for each group of
    `core.outofcore.ranks`; its votes are read once.

    Args:
        pieces: begins to give the candidates.
        readers: one a model, in the order of the tasks.
        rows: candidates.
        scratch: makes the columns.

    Raises:
        IncompleteScoreError: if votes are missing or doubled, or models scored by different scores.
    """
    readers = list(readers)
    values = {name: scratch.column(rows, np.float32) for name in scores_of_reader(readers[0])}
    totals = {name: scratch.column(rows, np.float64) for name in values}
    votes = scratch.column(rows, np.int32)
    for read in readers:
        for at, piece in _placed(pieces()):
            _take(read(piece.low, piece.high), piece.combiner, at, values, votes)
        for name, column in values.items():
            add_mean_ranks(column, totals[name])
    for at, piece in _placed(pieces()):
        counts_M = votes[at].astype(np.int64)
        piece.combiner.check_votes(counts_M)
        for name, column in values.items():
            column[at] = (totals[name][at] / counts_M).astype(np.float32)
    return values


def scores_of_reader(read: Reader) -> list[str]:
    """The scores by which a model scored."""
    return [*read(0, 0).scores]


def _take(
    part: VotePart, combiner: VoteCombiner, at: slice, values: Mapping[str, ScratchColumn], votes: ScratchColumn
) -> None:
    """Put a model's scores of a piece in their places, NaN where it has none, and count its votes."""
    combiner.add(part)
    if part.scores.keys() != values.keys():
        raise IncompleteScoreError("the tasks of one stage delivered different scores.")
    where = positions_of(part.ids_M, combiner.ids_M)
    votes[at] = votes[at] + np.bincount(where, minlength=len(combiner.ids_M))
    for name, scores_M in part.scores.items():
        block = np.full(len(combiner.ids_M), np.nan, np.float32)
        block[where] = scores_M
        values[name][at] = block


def _placed(pieces: Iterable[VotePiece]) -> Iterator[tuple[slice, VotePiece]]:
    start = 0
    for piece in pieces:
        at = slice(start, start := start + len(piece.combiner.ids_M))
        yield at, piece
