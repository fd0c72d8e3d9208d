"""The votes of a stage become its score table, `stage-NN/scores.parquet`, range by range of the ids.

A short stage is one range. A range takes the votes of its ids alone, always in the order of the tasks, so that ranges can be
merged by any worker, in any order, and together hold what one merge of all would hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from unseen_ray.config.score_columns import SUSPECT, of_probabilities
from unseen_ray.core.arrays import RowBlocks, as_blocks
from unseen_ray.core.combine_votes import ScoreFunction, ScoreTable, VoteCombiner, reducible
from unseen_ray.core.samples.id_sets import AllIds, IdSet, Outside
from unseen_ray.data.matrices import stored_matrix
from unseen_ray.pruning.by_parts.scratch import Scratch, changed
from unseen_ray.pruning.by_parts.vote_pieces import VotePiece, rank_means, rows_at_once, with_votes
from unseen_ray.pruning.suspects import suspects_of
from unseen_ray.runs.layout import probs_file, scores_file
from unseen_ray.runs.manifest_entries import StageSummary
from unseen_ray.runs.vote_ranges import check_votes, open_votes
from unseen_ray.runs.votes import read_votes
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import StoredTable, part_file, parts_of, write_table

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, LabelArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.pruning.by_parts.scratch import ScratchColumn
    from unseen_ray.runs.tasks import Job

__all__ = [
    "FIXED",
    "MergeRequest",
    "Merged",
    "Merger",
    "merge_request",
    "names_of_scores",
    "score_columns",
    "scores_of",
    "store_stage",
    "summary_of",
    "with_no_other_parts",
]

FIXED = ("id", "label", "votes", "pred", "p_label")
"""The columns of every table of scores, before those of the scores."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeRequest:
    """A stage whose votes to merge.

    Attributes:
        stage: which.
        candidates: the samples that are scored.
        num_parts: models that vote.
        votes_each: votes that every candidate must get.
        first_files: SHA-256 of the files of stage 0's scores, where a score compares this stage with it; else empty.
        num_ranges: ranges of ids that are merged each by itself.
        range_rows: samples of the population in each range, if there are several.
    """

    stage: int
    candidates: IdSet
    num_parts: int
    votes_each: int
    first_files: Mapping[str, str] = field(default_factory=dict)
    num_ranges: int = 1
    range_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """A stage's scores, or those of a range of it.

    Attributes:
        files: SHA-256 of each file written.
        summary: of the scores.
        table: the scores of a short stage, so that they need not be read again; else None.
    """

    files: dict[str, str]
    summary: StageSummary
    table: pa.Table | None = field(default=None, repr=False)


def merge_request(
    job: Job,
    population: Population,
    *,
    stage: int,
    kept: IdSet,
    num_kept: int,
    num_parts: int,
    votes_each: int,
    files: Mapping[str, str] | None = None,
) -> MergeRequest:
    """Plan a stage's merge: in several ranges if the stage is long.

    Args:
        job: the run.
        population: its samples.
        stage: which.
        kept: what earlier stages kept.
        num_kept: how many they are.
        num_parts, votes_each: see `MergeRequest`.
        files: SHA-256 of the files of earlier stages.
    """
    compares = stage > 0 and job.resolved.scores.of_stages
    total, rows = len(population), job.limits.part_rows(len(population) - num_kept)
    return MergeRequest(
        stage=stage,
        candidates=Outside(kept) if num_kept else AllIds(),
        num_parts=num_parts,
        votes_each=votes_each,
        first_files={part: files[part] for part in parts_of(scores_file(0), files)} if compares and files else {},
        num_ranges=1 if rows is None else -(-total // rows),
        range_rows=rows or 0,
    )


class Merger:
    """Merges the votes of a run's stages, and puts the scores on storage.

    Args:
        job: the run.
        labels_N: labels of all rows of the source.
    """

    def __init__(self, job: Job, labels_N: LabelArray) -> None:
        self._job, self._folder = job, job.folder
        self._population = job.population(labels_N)
        stored = job.resolved.scores.single
        self._functions: dict[str, ScoreFunction] = {
            name: score for name, score in stored.items() if of_probabilities(score)
        }

    def merge(self, request: MergeRequest) -> Merged:
        """All ranges of a stage.

        Raises:
            IncompleteScoreError: if votes are missing or doubled.
            StorageError: if votes are damaged.
        """
        if request.num_ranges == 1:
            return self.merge_range(request, 0)
        for index in range(request.num_parts):
            self.check(request, index)
        ranges = [self.merge_range(request, number) for number in range(request.num_ranges)]
        return with_no_other_parts(self._folder, request.stage, self.join(request, ranges))

    def check(self, request: MergeRequest, index: int) -> None:
        """Verify the checksum of a task's votes, as a range reads only some of them; StorageError if it differs."""
        check_votes(self._folder, request.stage, index)

    def merge_range(self, request: MergeRequest, number: int) -> Merged:
        """One range of a stage, into its table or a part of it; see `merge`."""
        in_pieces = self._is_in_pieces(request)
        if in_pieces and request.num_ranges == 1:
            for index in range(request.num_parts):
                self.check(request, index)
        pieces, probs, rows = [], None, 0
        for combiner in self._combiners(request, number):
            piece = self._combined(combiner, in_pieces=in_pieces)
            pieces.append(score_columns(piece))
            probs, rows = piece.probs_MC, rows + len(piece.ids_M)
        table = pa.concat_tables(pieces)
        if self._job.resolved.scores.of_stages:
            table = self._with_reducible(table, request)
        if request.num_ranges > 1:
            name = part_file(scores_file(request.stage), number)
            files = {name: self._folder.write_table(name, table)} if table.num_rows else {}
            return Merged(files=files, summary=summary_of(table, self._population.num_classes))
        means = None if probs is None else as_blocks(probs)
        if in_pieces:
            for name, values in self._ranked(request, rows).items():
                table = table.set_column(table.column_names.index(name), name, pa.array(values[:]))
            means = self._means(request, rows)
        return store_stage(self._job, request.stage, table, means)

    def join(self, request: MergeRequest, ranges: Iterable[Merged]) -> Merged:
        """A stage of all its merged ranges, with what compares all candidates: ranks, mean probabilities and suspects.

        It holds a part of the table, of the votes what a range holds, and one byte a candidate where there is a guard. Parts that
        get other columns are new files, so that whoever merges a range once more changes none.
        """
        job, folder, name = self._job, self._folder, scores_file(request.stage)
        merged = list(ranges)
        files = {part: digest for each in merged for part, digest in each.files.items()}
        summary = StageSummary(
            rows=sum(each.summary.rows for each in merged),
            right=sum(each.summary.right for each in merged),
            labels_C=np.sum([each.summary.labels_C for each in merged], axis=0),
            suspects=None,
        )
        columns, probs = self._ranked(request, summary.rows), self._means(request, summary.rows)
        stored, written = StoredTable(folder, name, files), {}
        if job.config.save_probs and probs is not None:
            written = _write_probs(job, request.stage, probs)
            probs = stored_matrix(folder, probs_file(request.stage))
        scores = changed(stored, columns, stored.schema.names)
        if request.stage == 0 and (suspects := suspects_of(job.resolved, scores, probs, job.limits)) is not None:
            columns[SUSPECT], summary = suspects, replace(summary, suspects=int(suspects.sum()))
        return Merged(files={**(_with_columns(stored, columns) if columns else files), **written}, summary=summary)

    def _ranked(self, request: MergeRequest, rows: int) -> dict[str, ScratchColumn]:
        """The scores by ranks among all candidates; none by another rule."""
        if self._job.config.combine != "rank_mean":
            return {}
        votes = (open_votes(self._folder, request.stage, index).part for index in range(request.num_parts))
        scratch = Scratch(self._job.out, self._job.limits.most_held)
        return rank_means(partial(self._all_pieces, request), votes, rows, scratch)

    def _all_pieces(self, request: MergeRequest) -> Iterator[VotePiece]:
        return itertools.chain.from_iterable(self._pieces(request, number) for number in range(request.num_ranges))

    def _means(self, request: MergeRequest, rows: int) -> RowBlocks | None:
        """The mean probabilities of all candidates, which are read anew each time; None if the votes have none."""
        if not self._job.resolved.keeps_probs:
            return None

        def read() -> Iterator[FloatArray]:
            votes = [open_votes(self._folder, request.stage, index).part for index in range(request.num_parts)]
            return (combiner.mean_probs() for combiner in with_votes(self._all_pieces(request), votes))

        return RowBlocks((rows, self._job.num_classes), read)

    def _with_reducible(self, table: pa.Table, request: MergeRequest) -> pa.Table:
        loss = table.column("loss").to_numpy()
        if request.stage:
            first = StoredTable(self._folder, scores_file(0), request.first_files)
            loss = reducible(loss, first.rows_of(table.column("id").to_numpy(), ["loss"]).column("loss").to_numpy())
        columns = {"reducible": pa.array(loss, pa.float32()), "std_reducible": table.column("std_loss")}
        return pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **columns})

    def _is_in_pieces(self, request: MergeRequest) -> bool:
        """Whether a range is merged a few candidates at a time: it is long, or its probabilities are large."""
        most = self._rows_at_once(request) if self._job.resolved.keeps_probs else self._job.limits.most_held
        return request.num_ranges > 1 or len(self._population) > most

    def _rows_at_once(self, request: MergeRequest) -> int:
        rows = rows_at_once(self._job.limits, request.votes_each)
        if not self._job.resolved.keeps_probs:
            return rows
        return max(min(rows, self._job.limits.probs_merged_at_once // (self._job.num_classes * request.votes_each)), 1)

    def _combined(self, combiner: VoteCombiner, *, in_pieces: bool) -> ScoreTable:
        rule, scores = self._job.config.combine, self._job.resolved.scores
        if in_pieces and rule == "rank_mean":  # ranks are among all candidates
            rule = "mean"
        return combiner.combine(rule, self._functions, scores.of_votes, exact=self._job.resolved.exact)

    def _combiners(self, request: MergeRequest, number: int) -> Iterator[VoteCombiner]:
        """The votes of a range: all at once, or of a few candidates at a time."""
        if self._is_in_pieces(request):
            votes = [open_votes(self._folder, request.stage, index).part for index in range(request.num_parts)]
            yield from with_votes(self._pieces(request, number), votes)
            return
        combiner = self._combiner(request, request.candidates.resolve(self._population))
        for index in range(request.num_parts):  # read whole: one request a file, which checks it as well
            combiner.add(read_votes(self._folder, request.stage, index))
        yield combiner

    def _pieces(self, request: MergeRequest, number: int) -> Iterator[VotePiece]:
        """The candidates of a range, a few at a time."""
        population, start = self._population, number * request.range_rows
        last = number == request.num_ranges - 1
        low = None if number == 0 else population.id_at(start)  # the first begins, and the last ends, beyond all votes
        high = None if last else population.id_at(start + request.range_rows)
        ids = request.candidates.within(population, low or 0, len(population.labels_R) if high is None else high)
        rows = self._rows_at_once(request)
        for first in range(0, max(len(ids), 1), rows):
            some = ids[first : first + rows]
            yield VotePiece(
                combiner=self._combiner(request, some),
                low=low if first == 0 else int(some[0]),
                high=int(ids[first + rows]) if first + rows < len(ids) else high,
            )

    def _combiner(self, request: MergeRequest, ids_M: np.ndarray) -> VoteCombiner:
        return VoteCombiner(
            ids_M=ids_M,
            labels_M=self._population.labels_of(ids_M),
            num_parts=request.num_parts,
            votes_each=request.votes_each,
        )


def store_stage(job: Job, stage: int, table: pa.Table, probs: RowBlocks | None) -> Merged:
    """Store the scores of a stage that was merged as one range, with suspects and probabilities, which need all of it."""
    scores = StoredTable(job.folder, scores_file(stage), {}, table)
    suspects = suspects_of(job.resolved, scores, probs, job.limits) if stage == 0 else None
    if suspects is not None:
        table = table.append_column(SUSPECT, pa.array(suspects))
    part_rows = job.limits.part_rows(table.num_rows)
    files = write_table(job.folder, scores_file(stage), table, part_rows=part_rows)
    if job.config.save_probs and probs is not None:
        files |= _write_probs(job, stage, probs)
    summary = summary_of(table, job.num_classes)
    return Merged(files=files, summary=summary, table=table if table.num_rows <= job.limits.most_held else None)


def _write_probs(job: Job, stage: int, probs: RowBlocks) -> dict[str, str]:
    return {probs_file(stage): job.folder.write_rows(probs_file(stage), probs.shape, probs.read)}


def _with_columns(stored: StoredTable, columns: Mapping[str, ScratchColumn]) -> dict[str, str]:
    """Write the parts of a table anew with other columns, one part in memory at a time; the SHA-256 of each."""
    files, start = {}, 0
    for part in parts_of(stored.name, stored.files):
        rows = StoredTable(stored.folder, part, {part: stored.files[part]}).table()
        of_part = {name: column[start : start + rows.num_rows] for name, column in columns.items()}
        names = list(dict.fromkeys([*rows.column_names, *columns]))
        rows = pa.table(
            {name: of_part.get(name, rows.column(name) if name in rows.column_names else None) for name in names}
        )
        new = f"{part.removesuffix('.parquet')}-marked.parquet"
        files[new] = stored.folder.write_table(new, rows)
        start += rows.num_rows
    return files


def with_no_other_parts(folder: Folder, stage: int, merged: Merged) -> Merged:
    """A stage, once parts that it does not name are deleted: readers would take those of an earlier merge for its own."""
    name = scores_file(stage)
    for left in Folder(folder.path(name)).names():
        if f"{name}/{left}" not in merged.files:
            folder.delete(f"{name}/{left}")
    return merged


def scores_of(merged: Merged, folder: Folder, stage: int) -> StoredTable:
    """The scores of a merged stage."""
    return StoredTable(folder, scores_file(stage), merged.files, merged.table)


def summary_of(table: pa.Table, num_classes: int) -> StageSummary:
    """The manifest's summary of a score table."""
    labels = table.column("label").to_numpy()
    return StageSummary(
        rows=table.num_rows,
        right=int((table.column("pred").to_numpy() == labels).sum()),
        labels_C=np.bincount(labels, minlength=num_classes),
        suspects=int(table.column(SUSPECT).to_numpy().sum()) if SUSPECT in table.column_names else None,
    )


def names_of_scores(scores: Iterable[str]) -> list[str]:
    """The columns of some scores."""
    names = list(scores)
    return [*names, *(f"std_{name}" for name in names)]


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
