"""Score samples by probabilities from your own models: writes a run folder that `select` chooses from, without training.

Shapes: N samples, C classes, V files of probabilities.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import SCORE_FIELDS, PruneConfig
from unseen_ray.core.combine_votes import ScoreFunction, log_of_probs
from unseen_ray.core.predictions import EpochView
from unseen_ray.core.samples.id_sets import AllIds
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.schedule import Stage
from unseen_ray.core.tasks import VotePart
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.labels_only import read_npy
from unseen_ray.data.sources.registry import Source, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import did_you_mean, offered
from unseen_ray.pruning.merge import Merger, MergeRequest
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
"""An array, or the path of a .npy file."""

_BATCH = 2048  # rows scored at once, since the probabilities may fill the memory
_SUM_TOLERANCE = 1e-2  # a softmax stored in half precision sums to 1 within this
_ROUNDING = 1e-5  # one in single precision


def score_probs(
    probs: Sequence[Numbers],
    labels: Numbers,
    *,
    out: str,
    folds: Numbers | None = None,
    source: Any = None,
    **fields: Any,
) -> Run:
    """Score every sample by the probabilities of models that never saw it, from arrays or .npy files.

    Args:
        probs: V times (N, C) probabilities, one a model; a row of NaN is a sample that this model did not score.
        labels: (N,) integer labels; an array is written to the file `<out>-labels.npy` unless there is a source.
        out: a new folder.
        folds: (N,) integers, where `probs` is one array whose rows of a fold are one model's.
        source: the samples themselves, in the same order, for reports, exports and trainings; None for labels alone.
        fields: `score`, `also_score`, `combine`, `guard`, `seed`.

    Raises:
        ConfigError: if a field is wrong, or the folder holds anything.
        DataError: if the arrays are not what they should be, do not fit each other, or leave some samples with fewer votes.
    """
    _check_arguments(probs, folds, fields)
    began = time.monotonic()
    names = [_name_of(each, f"probs[{number}]") for number, each in enumerate(probs)]
    votes = [_checked(_array_of(each), name) for each, name in zip(probs, names, strict=True)]
    labels_N, num_classes = _array_of(labels), votes[0].shape[1]
    samples = source
    if source is None:
        _check_labels(labels_N, num_classes)
        samples = {"use": "labels", "path": _stored_labels(labels, labels_N, out), "classes": num_classes}
    # A run needs a keep, but nothing is chosen here. Stored probabilities let `select` combine and guard in other ways.
    config = PruneConfig(source=samples, keep=0.5, out=out, save_probs=True, **fields)
    resolved = ResolvedRun(config, of_models=False)
    check_functions(resolved)
    opened = open_source(source_ref(config.source).absolute())
    info = opened.info
    _check_fit(votes, names, info.labels_N, labels_N, _name_of(labels, "labels"))
    parts = _parts_of(votes, folds)
    population = make_population(info.labels_N, info.num_classes)
    votes_each = sum(len(rows) for rows, _ in parts) // len(population)
    if resolved.scores.of_votes and votes_each < 2:
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
        stage, files = _scored_stage(job, opened, population, parts, began)
        return run.commit(stages=[stage], files=files, finished=True).released()


def _scored_stage(
    job: Job, source: Source, population: Population, parts: list[tuple[IntArray, FloatArray]], began: float
) -> tuple[StageEntry, dict[str, str]]:
    """Write votes, their merge and keys, as a run does that trained; the manifest's entry, and the files."""
    labels_N = source.info.labels_N
    receipts = [_write_votes(job, number, rows, values, labels_N) for number, (rows, values) in enumerate(parts)]
    votes_each = sum(len(rows) for rows, _ in parts) // len(population)
    request = MergeRequest(stage=0, candidates=AllIds(), num_parts=len(parts), votes_each=votes_each)
    merged = Merger(job, labels_N).merge(request)
    files = {**merged.files, **_write_keys(job, source, population.ids_N)}
    for receipt in receipts:
        files |= receipt.files
    stage = Stage(index=0, target=len(population), added=0)
    entry = stage_entry(stage, merged.summary, receipts, time.monotonic() - began)
    warn_of_columns(entry.vote_accuracy, merged.summary)
    return entry, files


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
                f"score takes no {name!r}; it takes out, source, {', '.join(SCORE_FIELDS)}.{did_you_mean(name, SCORE_FIELDS)} "
                "Give keep and policy to `select`."
                for name in unknown
            ]
        )
    if not probs or (folds is not None and len(probs) > 1):
        raise ConfigError(
            f"folds goes with one file of probabilities, and there are {len(probs)}. "
            "Give folds, or the probabilities of each model by themselves."
        )


def _checked(values: Any, path: str) -> FloatArray:
    """(N, C) probabilities, NaN where a row was not scored."""
    if values.ndim != 2 or values.dtype.kind != "f" or values.shape[1] < 2 or not len(values):
        raise DataError(
            f"{path} holds {'text' if values.dtype.kind in 'US' else values.dtype} of shape {values.shape}. Give floating-point "
            "probabilities of shape (N, C), one row a sample; a list is taken as one such array for each model."
        )
    missing = np.isnan(values).all(axis=1)
    sums = np.where(missing, 1.0, values.sum(axis=1, dtype=np.float64))
    if values.min(initial=0, where=~np.isnan(values)) < 0:
        values = np.where((values < 0) & (values >= -_ROUNDING), 0, values)  # rounding, as of a calibration
    wrong = ~missing & ~((values >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"row {row} of {path} is not a probability distribution: it holds {values[row].min()} to {values[row].max()} and sums to "
            f"{values[row].sum():.4f}, as do {int(wrong.sum()) - 1} others. Give probabilities (a softmax), not logits; a row "
            "of NaN is a sample that was not scored."
        )
    found: FloatArray = values
    return found


def _check_fit(
    votes: list[FloatArray], paths: Sequence[str], of_source_N: LabelArray, labels_N: Any, path: str
) -> None:
    for values, other in zip(votes, paths, strict=True):
        if len(values) != len(of_source_N):
            raise DataError(
                f"{other} has {len(values)} rows, but there are {len(of_source_N)} labels. Give one row a sample."
            )
        if values.shape != votes[0].shape:
            raise DataError(
                f"{other} has shape {values.shape}, but {paths[0]} has {votes[0].shape}. Give all the same shape."
            )
    differing = np.flatnonzero(np.asarray(labels_N) != of_source_N) if len(labels_N) == len(of_source_N) else [0]
    if len(differing):
        raise DataError(
            f"{path} and the source differ in {len(differing)} labels or in their number, first at row {differing[0]}. "
            "Give the source whose samples the probabilities are of, in the same order."
        )


def _parts_of(votes: list[FloatArray], folds: Numbers | None) -> list[tuple[IntArray, FloatArray]]:
    """For each model the rows that it scored, and the array that holds its probabilities there.

    Raises:
        DataError: if the folds do not fit, a model scored nothing, or some samples have more votes than others.
    """
    folds_N = np.empty(0) if folds is None else _array_of(folds)
    if folds is None:
        parts = [(np.flatnonzero(~np.isnan(values[:, 0])), values) for values in votes]
    elif folds_N.shape != (len(votes[0]),) or folds_N.dtype.kind not in "iu":
        raise DataError(
            f"{_name_of(folds, 'folds')} holds {folds_N.dtype} of shape {folds_N.shape}; "
            f"folds are one integer a sample, shape ({len(votes[0])},)."
        )
    else:
        scored = ~np.isnan(votes[0][:, 0])
        parts = [(np.flatnonzero(scored & (folds_N == fold)), votes[0]) for fold in np.unique(folds_N)]
    empty = [number for number, (rows, _) in enumerate(parts, start=1) if not len(rows)]
    if empty:
        raise DataError(f"model {empty[0]} of {len(parts)} scores no sample: every row of its probabilities is NaN.")
    counts = np.bincount(np.concatenate([rows for rows, _ in parts]), minlength=len(votes[0]))
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


def _write_votes(job: Job, index: int, ids_M: IntArray, probs_NC: FloatArray, labels_N: LabelArray) -> Receipt:
    """Put one model's votes on storage."""
    functions = job.resolved.scores.single
    probs, labels = _normalised(probs_NC[ids_M].astype(np.float32)), labels_N[ids_M]
    part = VotePart(
        index=index,
        ids_M=ids_M,
        pred_M=probs.argmax(axis=1),
        p_top_M=probs.max(axis=1),
        p_label_M=probs[np.arange(len(ids_M)), labels],
        scores=_scored(functions, probs, labels.astype(np.int64)),
        probs_MC=probs,
    )
    receipt = Receipt(
        index=index,
        task=f"given {index}",
        files={},
        trained=0,
        scored=len(ids_M),
        image_passes=0,
        accuracy=float((part.pred_M == labels).mean()),
        train_accuracy=float("nan"),
        seconds=0.0,
        worker_seconds=0.0,
        gpu_seconds=0.0,
        node=platform.node(),
        device="cpu",
        reused=False,
    )
    key = fingerprint_of(vote_file(0, index), probs.tobytes())
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
