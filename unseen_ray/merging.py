"""The votes of a stage become its score table, `stage-NN/scores.parquet`."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from unseen_ray.config import PruneConfig
from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.core.scorebook import ScoreBook, ScoreTable
from unseen_ray.guarding import SUSPECT, suspects_of
from unseen_ray.job import Job
from unseen_ray.parts import write_table
from unseen_ray.scoring import of_probabilities, stored_scores
from unseen_ray.storage import Folder
from unseen_ray.votes import probs_file, read_votes, scores_file

__all__ = ["MergeRequest", "merge_stage", "score_columns"]


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
    folder = Folder(job.out)
    book = ScoreBook(
        ids_M=request.ids_M,
        labels_M=labels_N[request.ids_M],
        num_parts=request.num_parts,
        votes_each=request.votes_each,
    )
    for index in range(request.num_parts):
        book.add(read_votes(folder, request.stage, index))
    single = stored_scores(job.config).single
    told = {name: function for name, function in single.items() if of_probabilities(function)}
    table = book.merge(job.config.combine, told)
    return _write_score_table(folder, request.stage, table, job.config)


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
    files = write_table(folder, scores_file(stage), columns)
    if config.save_probs and table.probs_MC is not None:
        files[probs_file(stage)] = folder.write_array(probs_file(stage), table.probs_MC)
    return columns, files
