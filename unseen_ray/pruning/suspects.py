"""Suspected wrong labels in a score table, and the rows that are left to choose from."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.guards import guard_words
from unseen_ray.config.score_columns import SUSPECT
from unseen_ray.core.guard import allowed, are_credible, are_unlikely
from unseen_ray.core.outofcore.select import choose
from unseen_ray.core.outofcore.selection import IdBits
from unseen_ray.pruning.by_parts.scratch import ReadColumn, changed
from unseen_ray.runs.layout import scores_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unseen_ray.config.guards import Guard
    from unseen_ray.config.limits import Limits
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.core.arrays import IdArray, RowBlocks
    from unseen_ray.core.outofcore.chunks import Chunk
    from unseen_ray.runs.run import Run
    from unseen_ray.storage.tables import StoredTable

__all__ = [
    "drawable_ids",
    "drawable_pieces",
    "open_positions",
    "score_chunks",
    "suspects_found",
    "suspects_kept",
    "suspects_of",
    "warn_of_needed",
    "with_suspects",
]

logger = logging.getLogger(__name__)


def suspects_of(
    resolved: ResolvedRun, scores: StoredTable, probs: RowBlocks | None, limits: Limits
) -> NDArray[np.bool_] | None:
    """(M,) bool over the rows of a score table; None where the run has no guard, or `unlikely_label` finds no more than it allows.

    The table is read in passes, but for a user's own guard, which gets whole columns.

    Raises:
        FitError: if a user's guard returns something else.
    """
    guard = resolved.guard
    if guard is None:
        return None
    if not guard.is_own:
        found = _suspects_by_passes(resolved, guard, scores, probs)
        return None if resolved.guards_by_rows and not found.any() else found
    if scores.num_rows > limits.rows_in_memory:
        logger.warning(
            "guard %s compares all %d candidates at once: they are held in memory.", guard.name, scores.num_rows
        )
    table = scores.table()
    columns = {f"{name}_M": table.column(name).to_numpy() for name in table.column_names if name not in ("id", "label")}
    columns |= {"ids_M": table.column("id").to_numpy(), "labels_M": table.column("label").to_numpy()}
    return guard.suspects({**columns, "probs_MC": probs, "seed": resolved.config.seed}, table.num_rows)


def _suspects_by_passes(
    resolved: ResolvedRun, guard: Guard, scores: StoredTable, probs: RowBlocks | None
) -> NDArray[np.bool_]:
    """What a guard of the package suspects, in passes over a table; the suspects alone are held, one byte a row."""
    seed, rows = resolved.config.seed, scores.num_rows
    if resolved.guards_by_rows is not None:
        return _unlikely(scores, resolved.guards_by_rows)
    if guard.scores:  # the highest of a score
        (name,), cut = guard.scores, inspect.signature(guard.function).parameters["cut"].default
        read = functools.partial(score_chunks, scores, {"score": name})
        chosen = choose("top", read, round(cut * rows), kept_C=np.zeros(1, np.int64), seed=seed)
        return np.concatenate([chosen.takes(chunk) for chunk in read((*chosen.columns, "id"))])
    columns = {"ids_M": ReadColumn(scores, "id"), "labels_M": ReadColumn(scores, "label")}
    return guard.suspects({**columns, "probs_MC": probs, "seed": seed}, rows)


def _unlikely(scores: StoredTable, many: float) -> NDArray[np.bool_]:
    """What `unlikely_label` suspects, in two passes."""
    sizes_C, right = np.zeros(0, np.int64), 0
    for chunk in score_chunks(scores, {}, ("label", "pred")):
        counts_C = np.bincount(chunk["label"], minlength=len(sizes_C))
        counts_C[: len(sizes_C)] += sizes_C
        sizes_C, right = counts_C, right + int((chunk["label"] == chunk["pred"]).sum())
    found = np.concatenate(
        [
            are_unlikely(chunk["label"], chunk["pred"], chunk["p_label"], sizes_C)
            for chunk in score_chunks(scores, {}, ("label", "pred", "p_label"))
        ]
    )
    return found if are_credible(int(found.sum()), right, sizes_C, many) else np.zeros(len(found), bool)


def score_chunks(scores: StoredTable, called: Mapping[str, str], columns: Sequence[str]) -> Iterator[Chunk]:
    """Chunks of the columns, by the names that policies know them by."""
    for batch in scores.batches([called.get(name, name) for name in columns]):
        yield {name: column.to_numpy(zero_copy_only=False) for name, column in zip(columns, batch.columns, strict=True)}


def with_suspects(scores: StoredTable, zero: StoredTable) -> StoredTable:
    """A later stage's scores with the suspects of stage 0, where every sample has its votes from models that never saw it."""
    names = scores.schema.names
    if SUSPECT not in zero.schema.names or SUSPECT in names:
        return scores
    suspects = _suspects_in(zero)
    found = [suspects.has(chunk["id"]) for chunk in score_chunks(scores, {}, ("id",))]
    return changed(scores, {SUSPECT: np.concatenate([np.empty(0, bool), *found])}, [*names, SUSPECT])


def suspects_kept(scores: StoredTable, coreset: StoredTable) -> dict[str, int] | None:
    """How many suspects a score table has, and how many of them a coreset keeps; None where none are marked."""
    if SUSPECT not in scores.schema.names:
        return None
    suspects = _suspects_in(scores)
    return {
        "found": suspects_found(scores),
        "kept": sum(int(suspects.has(c["id"]).sum()) for c in score_chunks(coreset, {}, ("id",))),
    }


def suspects_found(scores: StoredTable) -> int:
    """How many suspects a score table has."""
    if SUSPECT not in scores.schema.names:
        return 0
    return sum(int(chunk[SUSPECT].sum()) for chunk in score_chunks(scores, {}, (SUSPECT,)))


def _suspects_in(scores: StoredTable) -> IdBits:
    suspects = IdBits()
    for chunk in score_chunks(scores, {}, ("id", SUSPECT)):
        suspects.add(chunk["id"][chunk[SUSPECT]])
    return suspects


def open_positions(table: pa.Table, budget: int, *, guard: Any, seed: int) -> np.ndarray:
    """(L,) rows of a score table that the policy may choose from; warns where the budget needs suspects too."""
    if SUSPECT not in table.column_names:
        return np.arange(table.num_rows)
    suspects, p_label, ids = (table.column(name).to_numpy() for name in (SUSPECT, "p_label", "id"))
    left = allowed(suspects, p_label, ids, budget, seed=seed)
    needed = int(suspects[left].sum())
    if needed:
        warn_of_needed(guard, int(suspects.sum()), table.num_rows, budget, needed)
    return left


def drawable_ids(run: Run, kept_ids: IdArray) -> IdArray:
    """(M,) int64 sorted ids of a finished run that random draws may take: the kept ones, and all others but the guard's suspects.

    Raises:
        StorageError: if the scores of stage 0 are missing or damaged.
    """
    kept = IdBits()
    kept.add(kept_ids)
    return np.concatenate(list(drawable_pieces(run, kept)))


def drawable_pieces(run: Run, kept: IdBits) -> Iterator[IdArray]:
    """What `drawable_ids` gives, in pieces."""
    scores = run.stored(scores_file(0), hold=False).verified()
    if SUSPECT not in scores.schema.names:
        return (chunk["id"] for chunk in score_chunks(scores, {}, ("id",)))
    chunks = score_chunks(scores, {}, ("id", SUSPECT))
    return (chunk["id"][~chunk[SUSPECT] | kept.has(chunk["id"])] for chunk in chunks)


def warn_of_needed(guard: Any, suspected: int, candidates: int, budget: int, needed: int) -> None:
    """Warn that a budget cannot be met without suspects."""
    logger.warning(
        "%s suspects %d of %d candidates, and %d are to be kept: the %d likeliest suspects are kept with them. "
        "Suspect fewer, or keep less.",
        guard_words(guard),
        suspected,
        candidates,
        budget,
        needed,
    )
