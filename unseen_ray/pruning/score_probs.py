"""Score samples by probabilities from your own models: writes a run folder that `select` chooses from, without training.

Shapes: N samples, C classes, V models.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import SCORE_FIELDS, PruneConfig
from unseen_ray.config.score_columns import of_probabilities
from unseen_ray.core.arrays import RowBlocks
from unseen_ray.core.combine_votes import ScoreFunction, VoteCombiner, log_of_probs
from unseen_ray.core.predictions import EpochView
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.schedule import Stage
from unseen_ray.core.tasks import VotePart, join_votes
from unseen_ray.data.given_votes import GivenVotes, Numbers, given_votes, numbers_of, shown_name
from unseen_ray.data.matrices import matrix_of
from unseen_ray.data.sources.info import check_labels, fingerprint_of
from unseen_ray.data.sources.registry import Source, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import did_you_mean, offered
from unseen_ray.pruning.by_parts.scratch import Scratch
from unseen_ray.pruning.by_parts.vote_pieces import pieces_of_table, rank_means, whole_reader
from unseen_ray.pruning.merge import score_columns, store_stage
from unseen_ray.pruning.validate import check_functions
from unseen_ray.pruning.warnings import warn_of_columns
from unseen_ray.runs.layout import KEYS, scores_file, vote_file
from unseen_ray.runs.manifest_entries import Receipt, source_entry, stage_entry, with_population
from unseen_ray.runs.run import Run, open_scores
from unseen_ray.runs.tasks import Job
from unseen_ray.runs.votes import write_votes
from unseen_ray.storage.filesystem import Folder, absolute_path
from unseen_ray.storage.tables import StoredTable, write_table

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, LabelArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.runs.manifest_entries import StageEntry

__all__ = ["score_probs"]

_BATCH = 2048  # rows scored at once


def score_probs(
    probs: Sequence[Numbers],
    labels: Numbers,
    *,
    out: str,
    folds: Numbers | None = None,
    source: Any = None,
    save_probs: bool = True,
    **fields: Any,
) -> Run:
    """Score every sample by the probabilities of models that never saw it, from arrays or files, which are read in blocks of rows.

    Args:
        probs: V times (N, C) probabilities, one a model; a row of NaN is a sample that this model did not score. For files see
            `data.matrices.matrix_of`.
        labels: (N,) integer labels; an array is written to the file `<out>-labels.npy` unless there is a source.
        out: a new folder.
        folds: (N,) integers, where `probs` is one array whose rows of a fold are one model's.
        source: the samples themselves, in the same order, for reports, exports and trainings; None for labels alone.
        save_probs: whether to store the mean probabilities, by which `select` can combine and guard in other ways.
        fields: `score`, `also_score`, `combine`, `guard`, `seed`.

    Raises:
        ConfigError: if a field is wrong, or the folder holds anything.
        DataError: if the arrays are not what they should be, do not fit each other, or leave some samples with fewer votes.
    """
    _check_arguments(probs, folds, fields)
    began = time.monotonic()
    names = [shown_name(each, f"probs[{number}]") for number, each in enumerate(probs)]
    given = [matrix_of(each, name) for each, name in zip(probs, names, strict=True)]
    labels_N, num_classes = numbers_of(labels), given[0].shape[1]
    samples = source
    if source is None:
        _check_labels(labels_N, num_classes)
        samples = {"use": "labels", "path": _stored_labels(labels, labels_N, out), "classes": num_classes}
    # A run needs a keep, but nothing is chosen here.
    config = PruneConfig(source=samples, keep=0.5, out=out, save_probs=save_probs, **fields)
    resolved = ResolvedRun(config, of_models=False)
    check_functions(resolved)
    opened = open_source(source_ref(config.source).absolute())
    info = opened.info
    _check_fit(given, names, info.labels_N, labels_N, shown_name(labels, "labels"))
    votes = given_votes(given, names, folds)
    population = make_population(info.labels_N, info.num_classes)
    if resolved.scores.of_votes and votes.each < 2:
        raise ConfigError(
            f"score {resolved.scores.of_votes[0]} compares the predictions of several models, and each sample has one. Give "
            f"the probabilities of two models or more."
        )
    of_source = with_population(source_entry(info), population, opened, np.empty(0, np.int64))
    with open_scores(config, of_source) as run:
        job = Job(
            resolved=resolved,
            source=source_ref(config.source),
            test=None,
            fingerprint=info.fingerprint,
            num_classes=info.num_classes,
            size_px=info.size_px,
            out=run.folder.root,
            fence=run.folder.fence,
        )
        stage, files = _scored_stage(job, opened, population, votes, began)
        return run.commit(stages=[stage], files=files, finished=True).released()


def _scored_stage(
    job: Job, source: Source, population: Population, votes: GivenVotes, began: float
) -> tuple[StageEntry, dict[str, str]]:
    """Write votes, their merge and keys, as a run does that trained; the manifest's entry, and the files."""
    labels_N = source.info.labels_N
    merged, parts = _merged(job, labels_N, votes)
    stored = store_stage(job, 0, merged, votes.mean())
    files = {**stored.files, **_write_keys(job, source, population.ids_N)}
    receipts = [_write_votes(job, part, labels_N[part.ids_M]) for part in parts]
    for receipt in receipts:
        files |= receipt.files
    stage = Stage(index=0, target=len(population), added=0)
    entry = stage_entry(stage, stored.summary, receipts, time.monotonic() - began)
    warn_of_columns(entry.vote_accuracy, stored.summary)
    return entry, files


def _merged(job: Job, labels_N: LabelArray, votes: GivenVotes) -> tuple[pa.Table, list[VotePart]]:
    """The table of merged scores, and each task's votes without their probabilities."""
    scores, rule = job.resolved.scores, job.config.combine
    functions = {name: score for name, score in scores.single.items() if of_probabilities(score)}
    pieces: list[pa.Table] = []
    parts: list[list[VotePart]] = [[] for _ in votes.parts]
    for rows, block in votes.read():
        combiner = VoteCombiner(
            ids_M=np.arange(rows.start, rows.stop),
            labels_M=labels_N[rows].astype(np.int64),
            num_parts=len(block),
            votes_each=votes.each,
        )
        for index, (ids_M, probs) in enumerate(block):
            part = _part_of(scores.single, index, ids_M, probs, labels_N[ids_M].astype(np.int64))
            combiner.add(part)
            parts[index].append(replace(part, probs_MC=None))
        # Ranks are among all that a model scored.
        piece = combiner.combine("mean" if rule == "rank_mean" else rule, functions, scores.of_votes)
        pieces.append(score_columns(piece))
    table, whole = pa.concat_tables(pieces).combine_chunks(), [join_votes(each) for each in parts]
    if rule == "rank_mean":
        stored = StoredTable(job.folder, scores_file(0), {}, table)
        candidates = partial(pieces_of_table, stored, len(whole), table.num_rows)
        ranked = rank_means(
            candidates, map(whole_reader, whole), table.num_rows, Scratch(job.out, job.limits.most_held)
        )
        for name, values in ranked.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values[:]))
    return table, whole


def _part_of(
    functions: Mapping[str, ScoreFunction], index: int, ids_M: IntArray, probs_MC: FloatArray, labels_M: IntArray
) -> VotePart:
    return VotePart(
        index=index,
        ids_M=ids_M,
        pred_M=probs_MC.argmax(axis=1),
        p_top_M=probs_MC.max(axis=1),
        p_label_M=probs_MC[np.arange(len(ids_M)), labels_M],
        scores=_scored(functions, probs_MC, labels_M),
        probs_MC=probs_MC,
    )


def _check_labels(labels_N: np.ndarray, num_classes: int) -> None:
    """Refuse labels that the probabilities have no column for; anything else of them is checked where they are read."""
    if labels_N.ndim == 1 and labels_N.dtype.kind in "iu" and labels_N.max(initial=0) >= num_classes:
        raise DataError(
            f"row {int(labels_N.argmax())} has label {labels_N.max()}, but the probabilities have {num_classes} columns, for labels 0 to "
            f"{num_classes - 1}. Give a column for each class."
        )


def _stored_labels(labels: Numbers, labels_N: np.ndarray, out: str) -> str:
    """The file of labels, which the run's folder names as its source."""
    if isinstance(labels, str):
        return labels
    above, name = os.path.split(f"{absolute_path(out)}-labels.npy")
    folder, buffer = Folder(above), io.BytesIO()
    check_labels(labels_N, where="labels")  # before a file of them would stand in the way of the right ones
    np.save(buffer, labels_N, allow_pickle=False)
    if folder.read(name) is None:
        with contextlib.suppress(FileExistsError):  # of a process that began at the same time
            folder.write(name, buffer.getvalue(), new=True)
    if folder.read(name) != buffer.getvalue():
        raise ConfigError(f"{folder.path(name)} holds other labels. Remove it, or name another out.")
    return folder.path(name)


def _check_arguments(probs: Sequence[Numbers], folds: Numbers | None, fields: Mapping[str, Any]) -> None:
    if unknown := sorted(fields.keys() - set(SCORE_FIELDS)):
        raise ConfigError(
            [
                f"score takes no {name!r}; it takes out, source, save_probs, {', '.join(SCORE_FIELDS)}.{did_you_mean(name, SCORE_FIELDS)} "
                "Give keep and policy to `select`."
                for name in unknown
            ]
        )
    if not probs:
        raise ConfigError("probabilities are given of no model. Give an array or a file of each model.")
    if folds is not None and len(probs) > 1:
        raise ConfigError(
            f"folds goes with one file of probabilities, and there are {len(probs)}. "
            "Give folds, or the probabilities of each model by themselves."
        )


def _check_fit(given: list[RowBlocks], paths: Sequence[str], of_source_N: LabelArray, labels_N: Any, path: str) -> None:
    for matrix, other in zip(given, paths, strict=True):
        if matrix.shape[0] != len(of_source_N):
            raise DataError(
                f"{other} has {matrix.shape[0]} rows, but there are {len(of_source_N)} labels. Give one row a sample."
            )
        if matrix.shape != given[0].shape:
            raise DataError(
                f"{other} has shape {matrix.shape}, but {paths[0]} has {given[0].shape}. Give all the same shape."
            )
    differing = np.flatnonzero(np.asarray(labels_N) != of_source_N) if len(labels_N) == len(of_source_N) else [0]
    if len(differing):
        raise DataError(
            f"{path} and the source differ in {len(differing)} labels or in their number, first at row {differing[0]}. "
            "Give the source whose samples the probabilities are of, in the same order."
        )


def _write_keys(job: Job, source: Source, ids_N: IdArray) -> dict[str, str]:
    keys = pa.table({"id": ids_N, "key": pa.array(source.keys(ids_N.tolist()), pa.string())})
    return write_table(job.folder, KEYS, keys, part_rows=job.limits.part_rows(len(ids_N)))


def _write_votes(job: Job, part: VotePart, labels_M: LabelArray) -> Receipt:
    """Put one model's votes on storage."""
    receipt = Receipt(
        index=part.index,
        task=f"given {part.index}",
        files={},
        trained=0,
        scored=len(part.ids_M),
        image_passes=0,
        accuracy=float((part.pred_M == labels_M).mean()),
        train_accuracy=float("nan"),
        seconds=0.0,
        worker_seconds=0.0,
        gpu_seconds=0.0,
        node=platform.node(),
        device="cpu",
        reused=False,
    )
    key = fingerprint_of(vote_file(0, part.index), part.ids_M.tobytes(), part.p_label_M.tobytes())
    return write_votes(job.folder, 0, key, part, receipt)


def _scored(functions: Mapping[str, ScoreFunction], probs_MC: FloatArray, labels_M: IntArray) -> dict[str, FloatArray]:
    """(M,) float32 for each score."""
    scores = {name: np.empty(len(labels_M), np.float32) for name in functions}
    for start in range(0, len(labels_M), _BATCH):
        rows = slice(start, start + _BATCH)
        view = EpochView(log_of_probs(probs_MC[rows]), labels_M[rows])
        for name, function in functions.items():
            shared = offered(function, {"epoch_view": view})
            scores[name][rows] = function(view.log_probs_BC, view.labels_B, **shared)
    return scores
