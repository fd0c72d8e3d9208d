"""The votes of a stage become its score table, `stage-NN/scores.parquet`."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from unseen_ray import parts
from unseen_ray.config import PruneConfig
from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.core.scorebook import ScoreBook, ScoreFunction, ScoreTable
from unseen_ray.guarding import SUSPECT, suspects_of
from unseen_ray.job import Job
from unseen_ray.scoring import of_probabilities, stored_scores
from unseen_ray.storage import Folder
from unseen_ray.vote_ranges import open_votes
from unseen_ray.votes import probs_file, read_votes, scores_file

__all__ = ["MergeRequest", "merge_stage", "merges_by_range", "score_columns"]

RANGE_ROWS = 2**20
"""Candidates whose votes are merged at once, where a stage is long."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeRequest:
    """What a merge of a stage's votes needs to know.

    Attributes:
        stage: which.
        ids_M: (M,) int64 candidates, strictly rising.
        num_parts: models that vote.
        votes_each: votes that every candidate must get.
    """

    stage: int
    ids_M: IdArray
    num_parts: int
    votes_each: int


def merge_stage(job: Job, labels_N: IntArray, request: MergeRequest) -> tuple[pa.Table, dict[str, str]]:
    """Read the votes of a stage in the order of its tasks, merge them and put the scores on storage.

    Args:
        job: the run.
        labels_N: labels of all rows of the source.
        request: which stage, and what it must hold.

    Returns:
        The scores, and the SHA-256 of each file written.

    Raises:
        IncompleteScoreError: if votes are missing, doubled or damaged.
    """
    if merges_by_range(job, request):
        return _merge_ranges(job, labels_N, request)
    folder = Folder(job.out)
    book = ScoreBook(
        ids_M=request.ids_M,
        labels_M=labels_N[request.ids_M],
        num_parts=request.num_parts,
        votes_each=request.votes_each,
    )
    for index in range(request.num_parts):
        book.add(read_votes(folder, request.stage, index))
    table = book.merge(job.config.combine, _told(job.config))
    return _write_score_table(folder, request.stage, table, job.config)


def merges_by_range(job: Job, request: MergeRequest) -> bool:
    """Whether a stage is merged range by range of its ids: it is long, and nothing is asked for that needs all of them at once.

    Ranks are of all that a model scored, a guard judges all candidates, and the file of mean probabilities is one.
    """
    config = job.config
    whole = config.combine == "rank_mean" or config.save_probs or (request.stage == 0 and config.guard != "none")
    return len(request.ids_M) > parts.MOST_ROWS and not whole


def _merge_ranges(job: Job, labels_N: IntArray, request: MergeRequest) -> tuple[pa.Table, dict[str, str]]:
    """The same merge with the votes of one range in memory at a time; each file of votes is checked once, as a whole."""
    folder, ids_M, told = Folder(job.out), request.ids_M, _told(job.config)
    votes = [open_votes(folder, request.stage, index) for index in range(request.num_parts)]
    writer = parts.TableWriter(folder, scores_file(request.stage), len(ids_M))
    starts = range(0, len(ids_M), RANGE_ROWS)
    ends = [None, *(int(ids_M[start]) for start in starts[1:]), None]  # so that no vote is left out
    for start, low, high in zip(starts, ends[:-1], ends[1:], strict=True):
        ids = ids_M[start : start + RANGE_ROWS]
        book = ScoreBook(ids_M=ids, labels_M=labels_N[ids], num_parts=request.num_parts, votes_each=request.votes_each)
        for file in votes:
            book.add(file.part(low, high))
        writer.add(score_columns(book.merge(job.config.combine, told)))
    files = writer.close()
    return parts.read_table(folder, scores_file(request.stage), files), files


def _told(config: PruneConfig) -> dict[str, ScoreFunction]:
    """The scores that probabilities tell."""
    single = stored_scores(config).single
    return {name: function for name, function in single.items() if of_probabilities(function)}


def score_columns(table: ScoreTable) -> pa.Table:
    """A score table as the columns of scores.parquet."""
    return pa.table(
        {
            "id": pa.array(table.ids_M),
            "label": pa.array(table.labels_M),
            "votes": pa.array(table.votes_M),
            "pred": pa.array(table.pred_M),
            "p_label": pa.array(table.p_label_M, pa.float32()),
            **{name: pa.array(values, pa.float32()) for name, values in table.scores.items()},
            **{f"std_{name}": pa.array(values, pa.float32()) for name, values in table.stds.items()},
        }
    )


def _write_score_table(
    folder: Folder, stage: int, table: ScoreTable, config: PruneConfig
) -> tuple[pa.Table, dict[str, str]]:
    columns = score_columns(table)
    suspects = suspects_of(config, columns, table.probs_MC) if stage == 0 else None
    if suspects is not None:
        columns = columns.append_column(SUSPECT, pa.array(suspects))
    files = parts.write_table(folder, scores_file(stage), columns)
    if config.save_probs and table.probs_MC is not None:
        files[probs_file(stage)] = folder.write_array(probs_file(stage), table.probs_MC)
    return columns, files
