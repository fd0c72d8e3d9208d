"""Votes of models that you give: their probabilities, checked, as float32 rows that sum to 1.

Shapes: N samples, C classes, V models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IntArray, RowBlocks
from unseen_ray.data.matrices import side_by_side
from unseen_ray.data.sources.labels_only import read_npy
from unseen_ray.errors import DataError

__all__ = ["GivenVotes", "Numbers", "given_votes", "numbers_of", "shown_name"]

Numbers = str | np.ndarray
"""An array, or the path of a file."""

_SUM_TOLERANCE = 1e-2  # a softmax stored in half precision sums to 1 within this
_ROUNDING = 1e-5  # one in single precision


@dataclass(frozen=True, slots=True, eq=False)
class GivenVotes:
    """What the given models say of N samples.

    Attributes:
        models: the probabilities of each, float32 rows that sum to 1.
        parts: for each task of the stage its model's place, and (N,) bool, which samples it scored.
        each: votes of a sample.
    """

    models: list[RowBlocks]
    parts: list[tuple[int, NDArray[np.bool_]]]
    each: int

    def read(self) -> Iterator[tuple[slice, list[tuple[IntArray, FloatArray]]]]:
        """Blocks of samples, and for each task the ids of a block that it scored with their probabilities."""
        for rows, blocks in side_by_side(self.models):
            inside = [(blocks[place], np.flatnonzero(scored_N[rows])) for place, scored_N in self.parts]
            yield rows, [(rows.start + at, block[at]) for block, at in inside]

    def mean(self) -> RowBlocks:
        """(N, C) float32, the mean over the votes."""
        return RowBlocks(self.models[0].shape, self._read_mean)

    def _read_mean(self) -> Iterator[FloatArray]:
        # summed in float64 in the order of the tasks, as in all merges
        for rows, votes in self.read():
            total = np.zeros((rows.stop - rows.start, self.models[0].shape[1]))
            for ids_M, probs in votes:
                total[ids_M - rows.start] += probs
            yield (total / self.each).astype(np.float32)


def given_votes(given: Sequence[RowBlocks], names: Sequence[str], folds: Numbers | None) -> GivenVotes:
    """Check the probabilities of models, and say which samples each of them scored.

    Args:
        given: V times (N, C); a row of NaN is a sample that this model did not score.
        names: what messages call them.
        folds: (N,) integers, where V is 1 and the rows of a fold are one model's; else None.

    Raises:
        DataError: if a row is no probability distribution, the folds do not fit, a model scored nothing, or some samples have more votes
            than others.
    """
    scored = [_scored_rows(matrix, name) for matrix, name in zip(given, names, strict=True)]
    models = [RowBlocks(each.shape, partial(_read_cleaned, each)) for each in given]
    parts = _parts_of(scored, folds)
    return GivenVotes(models, parts, each=sum(int(scored_N[0]) for _, scored_N in parts))


def numbers_of(given: Numbers) -> np.ndarray:
    """The array itself, or that of a .npy file."""
    return read_npy(given) if isinstance(given, str) else np.asarray(given)


def shown_name(given: Numbers, name: str) -> str:
    """What messages call it."""
    return given if isinstance(given, str) else name


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


def _parts_of(scored: list[NDArray[np.bool_]], folds: Numbers | None) -> list[tuple[int, NDArray[np.bool_]]]:
    """See `GivenVotes.parts`.

    Args:
        scored: (N,) for each model the samples that it scored.
        folds: see `given_votes`.

    Raises:
        DataError: if the folds do not fit, a model scored nothing, or some samples have more votes than others.
    """
    folds_N = np.empty(0) if folds is None else numbers_of(folds)
    if folds is None:
        parts = list(enumerate(scored))
    elif folds_N.shape != scored[0].shape or folds_N.dtype.kind not in "iu":
        raise DataError(
            f"{shown_name(folds, 'folds')} holds {folds_N.dtype} of shape {folds_N.shape}; "
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


def _normalised(probs_MC: FloatArray) -> FloatArray:
    """The same, with rows that were rounded coarsely made to sum to 1, so that scores stay within their ranges."""
    sums_M = probs_MC.sum(axis=1, dtype=np.float64)
    coarse = np.abs(sums_M - 1) > _ROUNDING
    probs_MC[coarse] /= sums_M[coarse, None]
    return probs_MC
