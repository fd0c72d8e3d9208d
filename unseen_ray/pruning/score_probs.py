"""Score samples by probabilities from your own models: writes a run folder that `select` chooses from, without training.

Shapes: N samples, C classes, V models.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import SCORE_FIELDS, PruneConfig
from unseen_ray.config.score_columns import of_probabilities
from unseen_ray.core.arrays import RowBlocks
from unseen_ray.core.combine_votes import ScoreFunction, VoteCombiner, log_of_probs
from unseen_ray.core.predictions import EpochView
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.schedule import Stage
from unseen_ray.core.tasks import VotePart
from unseen_ray.data.matrices import matrix_of, side_by_side
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.labels_only import read_npy
from unseen_ray.data.sources.registry import Source, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import did_you_mean, offered
from unseen_ray.pruning.merge import score_columns, store_stage, with_ranks
from unseen_ray.pruning.validate import check_functions
from unseen_ray.pruning.warnings import warn_of_columns
from unseen_ray.runs.layout import KEYS, vote_file
from unseen_ray.runs.manifest_entries import Receipt, source_entry, stage_entry, with_population
from unseen_ray.runs.run import Run, open_scores
from unseen_ray.runs.tasks import Job
from unseen_ray.runs.votes import write_votes
from unseen_ray.storage.filesystem import Folder, absolute_path
from unseen_ray.storage.tables import write_table

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, LabelArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.runs.manifest_entries import StageEntry

__all__ = ["score_probs"]

Numbers = str | np.ndarray
"""An array, or the path of a file."""

_BATCH = 2048  # rows scored at once
_SUM_TOLERANCE = 1e-2  # a softmax stored in half precision sums to 1 within this
_ROUNDING = 1e-5  # one in single precision


@dataclass(frozen=True, slots=True, eq=False)
class _Votes:
    """What the given models say of N samples.

    Attributes:
        models: the probabilities of each, float32 rows that sum to 1.
        parts: for each task of the stage its model's place, and (N,) bool, which samples it scored.
    """

    models: list[RowBlocks]
    parts: list[tuple[int, NDArray[np.bool_]]]

    @property
    def each(self) -> int:
        """Votes of a sample."""
        return sum(int(scored_N.sum()) for _, scored_N in self.parts) // self.models[0].shape[0]

    def read(self) -> Iterator[tuple[slice, list[tuple[IntArray, FloatArray]]]]:
        """Blocks of samples, and for each task the ids of a block that it scored with their probabilities."""
        for rows, blocks in side_by_side(self.models):
            inside = [(blocks[place], np.flatnonzero(scored_N[rows])) for place, scored_N in self.parts]
            yield rows, [(rows.start + at, block[at]) for block, at in inside]

    def mean(self) -> RowBlocks:
        """(N, C) float32, the mean over the votes."""
        return RowBlocks(self.models[0].shape, self._read_mean)

    def _read_mean(self) -> Iterator[FloatArray]:
        for rows, votes in self.read():
            total = np.zeros(
                (rows.stop - rows.start, self.models[0].shape[1])
            )  # float64, in the order of the tasks, as in all merges
            for ids_M, probs in votes:
                total[ids_M - rows.start] += probs
            yield (total / self.each).astype(np.float32)


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
    names = [_name_of(each, f"probs[{number}]") for number, each in enumerate(probs)]
    given = [matrix_of(each, name) for each, name in zip(probs, names, strict=True)]
    labels_N, num_classes = _array_of(labels), given[0].shape[1]
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
    _check_fit(given, names, info.labels_N, labels_N, _name_of(labels, "labels"))
    scored = [_scored_rows(matrix, name) for matrix, name in zip(given, names, strict=True)]
    votes = _Votes([RowBlocks(each.shape, partial(_read_cleaned, each)) for each in given], _parts_of(scored, folds))
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
    job: Job, source: Source, population: Population, votes: _Votes, began: float
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


def _merged(job: Job, labels_N: LabelArray, votes: _Votes) -> tuple[pa.Table, list[VotePart]]:
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
    table, whole = pa.concat_tables(pieces).combine_chunks(), [_joined(each) for each in parts]
    if rule == "rank_mean":
        combiner = VoteCombiner(
            ids_M=table.column("id").to_numpy(),
            labels_M=table.column("label").to_numpy(),
            num_parts=len(whole),
            votes_each=votes.each,
        )
        for part in whole:
            combiner.add(part)
        table = with_ranks(table, combiner)
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


def _joined(pieces: Sequence[VotePart]) -> VotePart:
    """A task's votes from those of each block of samples."""
    return VotePart(
        index=pieces[0].index,
        ids_M=np.concatenate([each.ids_M for each in pieces]),
        pred_M=np.concatenate([each.pred_M for each in pieces]),
        p_top_M=np.concatenate([each.p_top_M for each in pieces]),
        p_label_M=np.concatenate([each.p_label_M for each in pieces]),
        scores={name: np.concatenate([each.scores[name] for each in pieces]) for name in pieces[0].scores},
    )


def _array_of(given: Numbers) -> np.ndarray:
    return read_npy(given) if isinstance(given, str) else np.asarray(given)


def _name_of(given: Numbers, name: str) -> str:
    """What messages call it."""
    return given if isinstance(given, str) else name


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
    if not probs or (folds is not None and len(probs) > 1):
        raise ConfigError(
            f"folds goes with one file of probabilities, and there are {len(probs)}. "
            "Give folds, or the probabilities of each model by themselves."
        )


def _scored_rows(matrix: RowBlocks, name: str) -> NDArray[np.bool_]:
    """(N,) the rows that are not NaN; DataError if any of these is no probability distribution."""
    scored_N, count, first = np.empty(matrix.shape[0], bool), 0, ""
    for rows, block in matrix:
        values = _without_rounding(block)
        missing = np.isnan(values).all(axis=1)
        sums = np.where(missing, 1.0, values.sum(axis=1, dtype=np.float64))
        wrong = np.flatnonzero(~missing & ~((values >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE)))
        if len(wrong) and not count:
            row = values[wrong[0]]
            first = f"row {rows.start + wrong[0]} of {name} is not a probability distribution: it holds {row.min()} to {row.max()}"
            first += f" and sums to {row.sum():.4f}"
        scored_N[rows], count = ~missing, count + len(wrong)
    if count:
        raise DataError(
            f"{first}, as do {count - 1} others. Give probabilities (a softmax), not logits; a row of NaN is a sample that was not scored."
        )
    return scored_N


def _without_rounding(values: FloatArray) -> FloatArray:
    """The same with 0 for what rounding left just below it, as a calibration may."""
    if not values.min(initial=0, where=~np.isnan(values)) < 0:
        return values
    return np.where((values < 0) & (values >= -_ROUNDING), 0, values)


def _read_cleaned(matrix: RowBlocks) -> Iterator[FloatArray]:
    """Its blocks as float32, whose rows sum to 1."""
    for block in matrix.read():
        yield _normalised(_without_rounding(block).astype(np.float32))


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


def _parts_of(scored: list[NDArray[np.bool_]], folds: Numbers | None) -> list[tuple[int, NDArray[np.bool_]]]:
    """See `_Votes.parts`.

    Args:
        scored: (N,) for each model the samples that it scored.
        folds: see `score_probs`.

    Raises:
        DataError: if the folds do not fit, a model scored nothing, or some samples have more votes than others.
    """
    folds_N = np.empty(0) if folds is None else _array_of(folds)
    if folds is None:
        parts = list(enumerate(scored))
    elif folds_N.shape != scored[0].shape or folds_N.dtype.kind not in "iu":
        raise DataError(
            f"{_name_of(folds, 'folds')} holds {folds_N.dtype} of shape {folds_N.shape}; "
            f"folds are one integer a sample, shape ({len(scored[0])},)."
        )
    else:
        parts = [(0, scored[0] & (folds_N == fold)) for fold in np.unique(folds_N)]
    empty = [number for number, (_, scored_N) in enumerate(parts, start=1) if not scored_N.any()]
    if empty:
        raise DataError(f"model {empty[0]} of {len(parts)} scores no sample: every row of its probabilities is NaN.")
    counts = np.sum([scored_N for _, scored_N in parts], axis=0)
    if counts.min() < counts.max():
        row = int(counts.argmin())
        raise DataError(
            f"{int((counts < counts.max()).sum())} of {len(counts)} samples were scored by fewer models than the others; the "
            f"first is row {row} with "
            f"{counts[row]} of {counts.max()}. Every sample must be scored by the same number of models."
        )
    return parts


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


def _normalised(probs_MC: FloatArray) -> FloatArray:
    """The same, with rows that were rounded coarsely made to sum to 1, so that scores stay within their ranges."""
    sums_M = probs_MC.sum(axis=1, dtype=np.float64)
    coarse = np.abs(sums_M - 1) > _ROUNDING
    probs_MC[coarse] /= sums_M[coarse, None]
    return probs_MC


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
