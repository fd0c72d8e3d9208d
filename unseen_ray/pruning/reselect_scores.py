"""The scores of a run's stage 0 for a new choice: as they are stored, or combined or guarded by another rule, by parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.guards import guard_of_stored
from unseen_ray.config.score_columns import SUSPECT, of_probabilities, score_name
from unseen_ray.core import scores as builtin_scores
from unseen_ray.core.combine_votes import OF_VOTES, log_of_probs
from unseen_ray.core.predictions import EpochView
from unseen_ray.data.matrices import stored_matrix
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.plugins import did_you_mean, jsonable
from unseen_ray.pruning.by_parts.scratch import ReadColumn, Scratch, changed
from unseen_ray.pruning.by_parts.vote_pieces import (
    pieces_of_table,
    rank_means,
    readers_of,
    rows_at_once,
    scores_of_reader,
    with_votes,
)
from unseen_ray.pruning.merge import FIXED, names_of_scores, score_columns
from unseen_ray.pruning.suspects import suspects_of
from unseen_ray.runs.layout import probs_file
from unseen_ray.storage.tables import sha256_of_file

if TYPE_CHECKING:
    from unseen_ray.config.limits import Limits
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.arrays import RowBlocks
    from unseen_ray.runs.manifest import Manifest
    from unseen_ray.runs.run import Run
    from unseen_ray.storage.tables import StoredTable

__all__ = ["as_stored", "scores_asked_for"]


def scores_asked_for(run: Run, resolved: ResolvedRun, stored: StoredTable, limits: Limits) -> StoredTable:
    """The scores of stage 0 by the score, the rule and the guard of `resolved`; nothing is written.

    Args:
        run: a finished run.
        resolved: the new choice.
        stored: the run's own scores.
        limits: columns of more rows are files near the new folder while they are needed, without a name.

    Raises:
        ConfigError: if the run does not hold what is needed for them.
    """
    config = resolved.config
    if as_stored(run, resolved, stored):
        _check_score(run, config, _score_names(stored.schema.names))
        _check_finite(run, stored, score_name(config.score))
        return stored
    scratch = Scratch(str(config.out), limits.most_held)
    combined = _combined(run, config, stored, scratch, limits)
    _check_score(run, config, _score_names(combined.schema.names))
    return _guarded(run, resolved, combined, stored, limits)


def _check_finite(run: Run, stored: StoredTable, name: str) -> None:
    """StorageError if a score is NaN or infinite, which no sample's is."""
    for batch in stored.batches([name]):
        if not np.isfinite(batch.column(name).to_numpy(zero_copy_only=False)).all():
            raise StorageError(
                f"{run.folder.path(stored.name)} is damaged or forged: its column {name} holds a score that is not a finite number. "
                "Restore it, or prune again in a new folder."
            )


def as_stored(run: Run, resolved: ResolvedRun, stored: StoredTable) -> bool:
    """Whether the stored scores and suspects of stage 0 are those of the new choice."""
    rule = run.manifest.asked if run.manifest.kind == "select" else run.manifest.config
    return _guarded_as_stored(run, resolved, stored.schema.names) and resolved.config.combine == rule["combine"]


def _combined(run: Run, config: PruneConfig, stored: StoredTable, scratch: Scratch, limits: Limits) -> StoredTable:
    """The scores combined by `config.combine`, in the order of the ids; `stored` itself where that is the run's rule."""
    if run.manifest.kind == "select":
        if config.combine != run.manifest.asked["combine"]:
            raise ConfigError(
                f"combine needs the scores of each model, which {run.folder.root} does not hold: it is a choice from another "
                f"run. Select from that run."
            )
        return stored
    if config.combine == run.manifest.config["combine"]:
        return stored
    if config.combine == "mean_prob":
        return _of_mean_probs(run, stored, scratch)
    return _of_votes(run, config.combine == "rank_mean", stored, scratch, limits)


def _of_votes(run: Run, by_rank: bool, stored: StoredTable, scratch: Scratch, limits: Limits) -> StoredTable:
    """The scores by the mean of each sample's votes, or of their ranks."""
    models, rows, names = len(run.manifest.stages[0].tasks), stored.num_rows, stored.schema.names
    is_long = rows > scratch.most_rows
    readers = list(readers_of(run.folder, 0, models, run.manifest.files, is_long=is_long))
    pieces = partial(pieces_of_table, stored, models, rows_at_once(limits, models) if is_long else rows)
    columns = rank_means(pieces, readers, rows, scratch) if by_rank else {}
    scores = scores_of_reader(readers[0])
    wanted = [name for name in names_of_scores(scores) if name not in columns and not (by_rank and name in names)]
    columns |= {name: scratch.column(rows, np.float32) for name in wanted}
    start = 0
    for combiner in with_votes(pieces(), readers) if wanted else ():
        table = score_columns(combiner.combine("mean"))
        for name in wanted:
            columns[name][start : start + table.num_rows] = table.column(name).to_numpy()
        start += table.num_rows
    by_every_rule = [*(f"{prefix}{name}" for name in OF_VOTES for prefix in ("", "std_")), SUSPECT]
    return changed(
        stored, columns, [*FIXED, *names_of_scores(scores), *(name for name in by_every_rule if name in names)]
    )


def _check_score(run: Run, config: PruneConfig, names: list[str]) -> None:
    """Refuse a score that is not stored, or is stored as another variant."""
    name = score_name(config.score)
    as_stored = _stored_as(run.manifest, name)
    if name in names and jsonable(config.score) != as_stored:
        raise ConfigError(
            f"score={jsonable(config.score)!r} is not the variant that {run.folder.root} stores as {name}: {as_stored!r}. "
            "Use that one, or prune with yours."
        )
    if name not in names:
        raise ConfigError(
            f"score={name!r} is not stored in {run.folder.root}; stored are {', '.join(names)}.{did_you_mean(name, names)}"
        )


def _stored_as(manifest: Manifest, name: str) -> Any:
    """What the configuration says of a stored column: the score by its name, or with the options that it had."""
    also = manifest.asked.get("also_score", "all")
    named = [manifest.asked["score"], *(also if isinstance(also, list) else [])]
    return next((value for value in named if score_name(value) == name), name)


def _guarded(run: Run, resolved: ResolvedRun, scores: StoredTable, stored: StoredTable, limits: Limits) -> StoredTable:
    """The combined scores with the suspects of the new choice's guard."""
    guard, names = resolved.guard, [name for name in scores.schema.names if name != SUSPECT]
    if _guarded_as_stored(run, resolved, stored.schema.names):
        return scores
    missing = [name for name in (guard.scores if guard else ()) if name not in names]
    if guard and missing:
        raise ConfigError(
            f"guard={score_name(guard.name)} reads the score {missing[0]}, which {run.folder.root} does not hold."
        )
    probs = _probs(run, stored.num_rows, f"guard={guard.name}") if guard and guard.needs_probs else None
    found = suspects_of(resolved, scores, probs, limits)
    return changed(scores, {}, names) if found is None else changed(scores, {SUSPECT: found}, [*names, SUSPECT])


def _guarded_as_stored(run: Run, resolved: ResolvedRun, columns: Sequence[str]) -> bool:
    config, guard = resolved.config, resolved.guard
    if guard is None:
        return SUSPECT not in columns
    by_probs = guard.needs_probs  # other guards read scores, which depend on the rule
    as_merged = by_probs or config.combine == run.manifest.asked["combine"]
    return bool(resolved.guard_value == guard_of_stored(run.manifest.asked) and as_merged)


def _probs(run: Run, rows: int, reader: str) -> RowBlocks:
    """(N, C) mean probabilities of stage 0."""
    folder, name, digest = run.folder, probs_file(0), run.manifest.files.get(probs_file(0))
    if digest is None:
        raise ConfigError(
            f"{reader} needs the mean probabilities, which {folder.root} does not hold. "
            "Prune in a new folder with save_probs: true."
        )
    if (found := sha256_of_file(folder, name, known=True)) != digest:
        raise StorageError(
            f"{folder.path(name)} is {'missing' if found is None else 'damaged'}. Prune again in a new folder."
        )
    probs = stored_matrix(folder, name)
    if probs.shape[0] != rows:
        raise StorageError(f"{folder.path(name)} has {probs.shape[0]} rows for {rows} candidates.")
    return probs


def _of_mean_probs(run: Run, stored: StoredTable, scratch: Scratch) -> StoredTable:
    rows, names, computed = stored.num_rows, list(stored.schema.names), {}
    probs = _probs(run, rows, "combine=mean_prob")
    for name in _score_names(stored.schema.names):
        plain = name in builtin_scores.__all__ and _stored_as(run.manifest, name) == name
        if plain and of_probabilities(getattr(builtin_scores, name)):
            computed[name] = scratch.column(rows, np.float32)
        elif name not in OF_VOTES:  # which are the same by every rule
            # not computable from mean probabilities: variants, scores of features or epochs, users' own (never imported from a run)
            names = [other for other in names if other not in names_of_scores([name])]
    labels_M = ReadColumn(stored, "label")
    for at, block in probs:
        view = EpochView(log_of_probs(block), labels_M[at], exact=run.manifest.has_exact_scores)
        for name, values in computed.items():
            values[at] = getattr(builtin_scores, name)(view.log_probs_BC, view.labels_B, epoch_view=view)
    return changed(stored, computed, names)


def _score_names(names: Sequence[str]) -> list[str]:
    return [column for column in names if f"std_{column}" in names]
