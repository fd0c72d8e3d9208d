"""The votes of a stage become its score table, `stage-NN/scores.parquet`: at once, or range by range of the ids where it is long.

A range takes the votes of its ids alone, always in the order of the tasks, so that ranges can be merged by whoever is free, in any
order, and hold together what one merge of all would hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import of_probabilities
from unseen_ray.core.arrays import IntArray, LabelArray
from unseen_ray.core.samples.id_sets import AllIds, IdSet, Outside
from unseen_ray.core.samples.population import Population
from unseen_ray.core.scorebook import ScoreBook, ScoreFunction, ScoreTable
from unseen_ray.pruning.suspects import SUSPECT, suspects_of
from unseen_ray.runs.layout import probs_file, scores_file
from unseen_ray.runs.tasks import Job
from unseen_ray.runs.vote_ranges import check_votes, open_votes
from unseen_ray.runs.votes import read_votes
from unseen_ray.storage import tables as parts
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import LongTable

__all__ = [
    "MergeRequest",
    "Merged",
    "Merger",
    "StageSummary",
    "ask_merge",
    "join_ranges",
    "score_columns",
    "scores_of",
    "summary_of",
]

RANGE_ROWS = 2**20
"""Candidates whose votes are merged at once, where a stage is long and votes are few."""

_VOTES_AT_ONCE = 2**22
_LEAST_ROWS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeRequest:
    """What a merge of a stage's votes needs to know.

    Attributes:
        stage: which.
        candidates: the samples that are scored.
        num_parts: models that vote.
        votes_each: votes that every candidate must get.
        range_rows: samples of the population in each range; None to merge all at once.
        num_ranges: how many ranges there are.
        tells_table: whether a table that is merged at once is handed over; it stands on storage either way.
    """

    stage: int
    candidates: IdSet
    num_parts: int
    votes_each: int
    range_rows: int | None = None
    num_ranges: int = 0
    tells_table: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageSummary:
    """What the manifest says of merged scores.

    Attributes:
        rows: candidates.
        right: those whose majority of votes names their class.
        labels_C: (C,) candidates of each class.
        suspects: of the guard; None where the table holds none.
    """

    rows: int
    right: int
    labels_C: IntArray
    suspects: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """A stage's scores.

    Attributes:
        files: SHA-256 of each file written.
        tally: of them all.
        table: the scores, if they were merged at once and asked for; else None.
    """

    files: dict[str, str]
    summary: StageSummary
    table: pa.Table | None = field(default=None, repr=False)


def ask_merge(
    config: PruneConfig,
    population: Population,
    *,
    stage: int,
    kept: IdSet,
    num_kept: int,
    num_parts: int,
    votes_each: int,
    tells_table: bool,
) -> MergeRequest:
    """What is asked of a stage's merge: by ranges if the stage is long, and nothing needs all of it at once.

    Ranks are of all that a model scored, a guard judges all candidates, and the file of mean probabilities is one.

    Args:
        config: the run's.
        population: its samples.
        stage: which.
        kept: what earlier stages kept.
        num_kept: how many they are.
        num_parts, votes_each, tells_table: see `MergeRequest`.
    """
    whole = config.combine == "rank_mean" or config.save_probs or (stage == 0 and config.guard != "none")
    num_candidates = len(population) - num_kept
    rows = parts.PART_ROWS if num_candidates > parts.MOST_ROWS and not whole else None
    return MergeRequest(
        stage=stage,
        candidates=Outside(kept) if num_kept else AllIds(),
        num_parts=num_parts,
        votes_each=votes_each,
        range_rows=rows,
        num_ranges=0 if rows is None else -(-len(population) // rows),
        tells_table=tells_table,
    )


class Merger:
    """Merges the votes of a run's stages, and puts the scores on storage.

    Args:
        job: the run.
        labels_N: labels of all rows of the source.
    """

    def __init__(self, job: Job, labels_N: LabelArray) -> None:
        self._job, self._folder = job, Folder(job.out)
        self._population = job.population(labels_N)
        told = job.resolved.scores.single
        self._told: dict[str, ScoreFunction] = {name: score for name, score in told.items() if of_probabilities(score)}

    def merge(self, request: MergeRequest) -> Merged:
        """All of a stage, by ranges if the request says so.

        Raises:
            IncompleteScoreError: if votes are missing or doubled.
            StorageError: if votes are damaged.
        """
        if request.range_rows is None:
            return self._merge_at_once(request)
        for index in range(request.num_parts):
            self.check(request, index)
        ranges = [self.merge_range(request, number) for number in range(request.num_ranges)]
        return join_ranges(self._folder, request, ranges)

    def check(self, request: MergeRequest, index: int) -> None:
        """Find the votes of a task to be what was written, all of them, before ranges of them are read; StorageError if not."""
        check_votes(self._folder, request.stage, index)

    def merge_range(self, request: MergeRequest, number: int) -> Merged:
        """One range of a stage, into a part of its table; see `merge`."""
        assert request.range_rows is not None, "a request without ranges is merged at once"
        population, start = self._population, number * request.range_rows
        last = number == request.num_ranges - 1
        low = None if number == 0 else population.id_at(start)  # the first begins, and the last ends, beyond all votes
        high = None if last else population.id_at(start + request.range_rows)
        ids = request.candidates.within(population, low or 0, len(population.labels_R) if high is None else high)
        votes = [open_votes(self._folder, request.stage, index) for index in range(request.num_parts)]
        rows = min(RANGE_ROWS, max(_VOTES_AT_ONCE // request.votes_each, _LEAST_ROWS))
        tables = []
        for first in range(0, max(len(ids), 1), rows):
            some = ids[first : first + rows]
            book = self._book(request, some)
            begin = low if first == 0 else int(some[0])
            end = int(ids[first + rows]) if first + rows < len(ids) else high
            for file in votes:
                book.add(file.part(begin, end))
            tables.append(score_columns(book.merge(self._job.config.combine, self._told)))
        table = pa.concat_tables(tables)
        name = parts.part_file(scores_file(request.stage), number)
        files = {name: self._folder.write_table(name, table)} if table.num_rows else {}
        return Merged(files=files, summary=summary_of(table, population.num_classes))

    def _merge_at_once(self, request: MergeRequest) -> Merged:
        config, stage = self._job.config, request.stage
        book = self._book(request, request.candidates.resolve(self._population))
        for index in range(request.num_parts):
            book.add(read_votes(self._folder, stage, index))
        merged = book.merge(config.combine, self._told)
        table = score_columns(merged)
        suspects = suspects_of(self._job.resolved, table, merged.probs_MC) if stage == 0 else None
        if suspects is not None:
            table = table.append_column(SUSPECT, pa.array(suspects))
        files = parts.write_table(self._folder, scores_file(stage), table)
        if config.save_probs and merged.probs_MC is not None:
            files[probs_file(stage)] = self._folder.write_array(probs_file(stage), merged.probs_MC)
        summary = summary_of(table, self._population.num_classes)
        return Merged(files=files, summary=summary, table=table if request.tells_table else None)

    def _book(self, request: MergeRequest, ids_M: np.ndarray) -> ScoreBook:
        return ScoreBook(
            ids_M=ids_M,
            labels_M=self._population.labels_of(ids_M),
            num_parts=request.num_parts,
            votes_each=request.votes_each,
        )


def join_ranges(folder: Folder, request: MergeRequest, ranges: Iterable[Merged]) -> Merged:
    """A stage of its merged ranges; parts that an earlier merge left, and no range has written, are removed."""
    merged = list(ranges)
    files = {name: digest for each in merged for name, digest in each.files.items()}
    name = scores_file(request.stage)
    for left in Folder(folder.path(name)).names():
        if f"{name}/{left}" not in files:
            folder.delete(f"{name}/{left}")
    tallies = [each.summary for each in merged]
    summary = StageSummary(
        rows=sum(each.rows for each in tallies),
        right=sum(each.right for each in tallies),
        labels_C=np.sum([each.labels_C for each in tallies], axis=0),
    )
    return Merged(files=files, summary=summary)


def scores_of(merged: Merged, folder: Folder, stage: int) -> pa.Table | LongTable:
    """The scores of a stage, in memory if they were handed over."""
    return LongTable(folder, scores_file(stage), merged.files) if merged.table is None else merged.table


def summary_of(table: pa.Table, num_classes: int) -> StageSummary:
    """What is told of a score table."""
    labels = table.column("label").to_numpy()
    return StageSummary(
        rows=table.num_rows,
        right=int((table.column("pred").to_numpy() == labels).sum()),
        labels_C=np.bincount(labels, minlength=num_classes),
        suspects=int(table.column(SUSPECT).to_numpy().sum()) if SUSPECT in table.column_names else None,
    )


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
