"""Suspected wrong labels in a score table, and the rows that are left to choose from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.guards import guard_words
from unseen_ray.config.score_columns import SUSPECT
from unseen_ray.core.guard import allowed, are_unlikely
from unseen_ray.runs.layout import scores_file
from unseen_ray.storage.tables import StoredTable, parts_of

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.core.arrays import IdArray, IntArray, RowBlocks
    from unseen_ray.runs.run import Run
    from unseen_ray.storage.filesystem import Folder

__all__ = [
    "SUSPECT",
    "count_unlikely",
    "drawable_ids",
    "open_positions",
    "suspects_kept",
    "suspects_of",
    "warn_of_needed",
    "with_suspects",
    "with_unlikely",
]

logger = logging.getLogger(__name__)


def suspects_of(resolved: ResolvedRun, table: pa.Table, probs: RowBlocks | None) -> np.ndarray | None:
    """(M,) bool over the rows of a score table; None where the run has no guard, or `unlikely_label` finds no more than it allows.

    Raises:
        FitError: if a user's guard returns something else.
    """
    if resolved.guard is None:
        return None
    columns = {f"{name}_M": table.column(name).to_numpy() for name in table.column_names if name not in ("id", "label")}
    columns |= {"ids_M": table.column("id").to_numpy(), "labels_M": table.column("label").to_numpy()}
    found = resolved.guard.suspects({**columns, "probs_MC": probs, "seed": resolved.config.seed}, table.num_rows)
    return None if resolved.guards_by_rows and not found.any() else found


def count_unlikely(resolved: ResolvedRun, rows: pa.Table, sizes_C: IntArray) -> int | None:
    """How many of some rows of a score table `unlikely_label` suspects; None if the run has another guard, or none."""
    return None if resolved.guards_by_rows is None else int(_unlikely(rows, sizes_C).sum())


def with_unlikely(folder: Folder, name: str, files: Mapping[str, str], sizes_C: IntArray) -> dict[str, str]:
    """Mark in a score table what `unlikely_label` suspects, one part in memory at a time; the SHA-256 of each new part.

    They are new files, so that whoever writes an old part once more, such as a worker that was given up, changes none.
    """
    marked = {}
    for part in parts_of(name, files):
        rows = StoredTable(folder, part, {part: files[part]}).table()
        new = f"{part.removesuffix('.parquet')}-marked.parquet"
        marked[new] = folder.write_table(new, rows.append_column(SUSPECT, pa.array(_unlikely(rows, sizes_C))))
    for part in parts_of(name, files):
        folder.delete(part)
    return marked


def _unlikely(rows: pa.Table, sizes_C: IntArray) -> np.ndarray:
    labels, preds, p_label = (rows.column(name).to_numpy() for name in ("label", "pred", "p_label"))
    return are_unlikely(labels, preds, p_label, sizes_C)


def with_suspects(table: pa.Table, zero: pa.Table) -> pa.Table:
    """A later stage's scores with the suspects of stage 0, where every sample has its votes from models that never saw it."""
    if SUSPECT not in zero.column_names or SUSPECT in table.column_names:
        return table
    places = np.searchsorted(zero.column("id").to_numpy(), table.column("id").to_numpy())
    return table.append_column(SUSPECT, zero.column(SUSPECT).take(pa.array(places)))


def suspects_kept(scores: StoredTable, kept_ids: IdArray) -> dict[str, int] | None:
    """How many suspects a score table has, and how many of them were kept; None where none are marked."""
    if SUSPECT not in scores.schema.names:
        return None
    found = kept = 0
    for batch in scores.batches(["id", SUSPECT]):
        ids = batch.column("id").to_numpy()[batch.column(SUSPECT).to_numpy(zero_copy_only=False)]
        found, kept = found + len(ids), kept + int(np.isin(ids, kept_ids).sum())
    return {"found": found, "kept": kept}


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
    scores = run.stored(scores_file(0), hold=False).verified()
    if SUSPECT not in scores.schema.names:
        return np.concatenate([batch.column("id").to_numpy() for batch in scores.batches(["id"])])
    pieces = (
        (batch.column("id").to_numpy(), batch.column(SUSPECT).to_numpy(zero_copy_only=False))
        for batch in scores.batches(["id", SUSPECT])
    )
    return np.union1d(kept_ids, np.concatenate([ids[~suspects] for ids, suspects in pieces]))


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
