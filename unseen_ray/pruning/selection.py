"""A choice by scores: what the run's policy picks of a stage's table, in memory or by passes over it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.score_columns import CONSISTENCY, SUSPECT, score_name
from unseen_ray.core.outofcore.select import choose, why_not_streamed
from unseen_ray.core.policies.auto import RuleChoice, use_by_rule
from unseen_ray.errors import ConfigError, FitError
from unseen_ray.plugins import offered, plug_of
from unseen_ray.pruning.suspects import open_positions, score_chunks, warn_of_needed
from unseen_ray.runs.features import StoredFeatures, load_features

if TYPE_CHECKING:
    from unseen_ray.config.limits import Limits
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.arrays import IntArray
    from unseen_ray.core.outofcore.chunks import Chunk, Shards
    from unseen_ray.core.outofcore.selection import Chosen
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.runs.run import Run
    from unseen_ray.storage.tables import StoredTable

__all__ = ["Kept", "Picked", "choice_by_rule", "features_for", "pick"]

logger = logging.getLogger(__name__)

Picked = Callable[[], Iterator[pa.Table]]
"""Reads the picked rows anew, by pieces in the order of the ids: the columns id, label and score."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What earlier stages kept: (C,) how many of each class, and the table with their ids and labels, if there are any."""

    counts_C: IntArray
    rows: StoredTable | None = None


def pick(
    resolved: ResolvedRun,
    scores: StoredTable,
    *,
    budget: int,
    kept: Kept,
    features: StoredFeatures | None,
    limits: Limits,
) -> Picked:
    """Pick `budget` rows of a score table, without its suspects if the run has a guard, by the run's policy.

    This is the one place that decides between `core.select`, which sorts a table in memory, and `core.outofcore`, which picks the
    same rows in a few passes over a table that is longer than `limits.most_held`.

    Args:
        resolved: the run's configuration, with the policy that `auto` stands for.
        scores: of the candidates.
        budget: how many to pick.
        kept: what earlier stages kept.
        features: of all samples, where the run has them.
        limits: what is held in memory.

    Raises:
        ConfigError: if the policy reads features, and the run has none.
        FitError: if a user's policy returns something else than `budget` positions.
    """
    config = resolved.config
    if (rows := scores.num_rows) > limits.most_held:
        if (why := why_not_streamed(*plug_of(config.policy))) is None:
            return _pick_by_passes(resolved, scores, budget=budget, kept_C=kept.counts_C)
        if rows > limits.rows_in_memory:
            logger.warning("%s All %d candidates are held in memory for it.", why, rows)
    table = scores.table()
    if resolved.guard_value == "none" and SUSPECT in table.column_names:
        table = table.drop_columns([SUSPECT])
    rows_M = np.sort(_apply_policy(resolved, table, budget=budget, kept=kept, features=features))
    columns = {"id": "id", "label": "label", "score": score_name(config.score)}
    picked = pa.table({name: table.column(column) for name, column in columns.items()}).take(pa.array(rows_M))
    return lambda: iter((picked,))


def choice_by_rule(config: PruneConfig, scores: StoredTable, budget: int, kept_C: IntArray) -> RuleChoice | None:
    """What the rule of `policy: auto` names, None for other policies; suspects count as candidates, as where there is no guard.

    Args:
        config: the run's.
        scores: of the candidates.
        budget: how many to pick.
        kept_C: (C,) what earlier stages kept of each class.
    """
    if plug_of(config.policy)[0] != "auto":
        return None
    right, sizes_C = 0, np.zeros(len(kept_C), np.int64)
    for batch in scores.batches(["label", "pred"]):
        labels_B = batch.column("label").to_numpy()
        right += int((labels_B == batch.column("pred").to_numpy()).sum())
        sizes_C += np.bincount(labels_B, minlength=len(sizes_C))
    return use_by_rule(sizes_C, right, budget, kept_C)


def _apply_policy(
    resolved: ResolvedRun, table: pa.Table, *, budget: int, kept: Kept, features: StoredFeatures | None
) -> np.ndarray:
    """(budget,) rows of a table in memory that the policy picks; checked: none twice."""
    config, policy = resolved.config, resolved.policy
    if features is None and policy.needs_features:
        raise ConfigError(
            f"policy {policy.name} reads the features of a model, which the run does not hold. If it was made by `select`, "
            f"select from the run that it came from; else prune in a new folder with save_features: true."
        )
    rows = open_positions(table, budget, guard=resolved.guard_value, seed=config.seed)
    columns = (score_name(config.score), "label", "id", "pred", "p_label")
    scores_M, labels_M, ids_M, pred_M, p_label_M = (table.column(column).to_numpy()[rows] for column in columns)
    more: dict[str, Any] = {"pred_M": pred_M, "p_label_M": p_label_M}
    if config.combine == "mean" and CONSISTENCY in table.column_names:  # by another rule it is no probability
        more[f"{CONSISTENCY}_M"] = table.column(CONSISTENCY).to_numpy()[rows]
    if features is not None and policy.reads_features:
        more |= _features_offered(features, ids_M, kept)
    answer = policy.function(
        scores_M, labels_M, ids_M, budget, kept_C=kept.counts_C, seed=config.seed, **offered(policy.function, more)
    )
    picked = np.asarray(answer)
    _check_positions(policy.name, picked, budget, len(ids_M))
    chosen: np.ndarray = rows[picked]
    return chosen


def _features_offered(features: StoredFeatures, ids_M: np.ndarray, kept: Kept) -> dict[str, Any]:
    ids_K = labels_K = np.empty(0, np.int64)
    if kept.rows is not None:
        ids_K, labels_K = (kept.rows.table().column(name).to_numpy() for name in ("id", "label"))
    return {
        "features_MD": features.of(ids_M),
        "kept_features_KD": features.of(ids_K),
        "kept_labels_K": labels_K,
    }


def _check_positions(name: str, picked: np.ndarray, budget: int, candidates: int) -> None:
    """FitError unless a policy returned `budget` different positions among the candidates."""
    if picked.shape != (budget,) or picked.dtype.kind not in "iu":
        raise FitError(
            f"policy {name} returned {picked.dtype} of shape {picked.shape}; it must return {budget} positions."
        )
    outside = budget and not 0 <= picked.min() <= picked.max() < candidates
    if outside or (np.bincount(picked, minlength=1) > 1).any():
        raise FitError(f"policy {name} returned positions that repeat or lie outside 0..{candidates - 1}.")


def features_for(
    run: Run, resolved: ResolvedRun, ids: Callable[[], np.ndarray], receipts: list[Receipt]
) -> StoredFeatures | None:
    """The features of all samples, where the policy reads some that the run keeps; `ids` says of which samples."""
    if not resolved.policy.reads_features:
        return None
    files = dict(run.manifest.files)
    for receipt in receipts:
        files |= receipt.files
    return load_features(run.folder, files, ids())


def _pick_by_passes(
    resolved: ResolvedRun, scores: StoredTable, *, budget: int, kept_C: IntArray
) -> Callable[[], Iterator[pa.Table]]:
    """Pick rows of a score table without its suspects, and read them anew with each call; see `pick`.

    Args:
        resolved: of the run; its policy is one that chooses from shards.
        scores: the table.
        budget: how many to pick.
        kept_C: (C,) what earlier stages kept of each class.
    """
    config = resolved.config
    policy, options = plug_of(config.policy)
    assert isinstance(policy, str), "why_not_streamed refuses functions"
    read = functools.partial(score_chunks, scores, {"score": score_name(config.score)})
    guarded = SUSPECT in scores.schema.names and resolved.guard_value != "none"
    shards = _without_suspects(resolved, scores, read, budget) if guarded else read
    chosen = choose(policy, shards, budget, kept_C=kept_C, seed=config.seed, options=options)
    return lambda: (pa.table(dict(chunk)) for chunk in chosen.rows(shards, ("id", "label", "score")))


def _without_suspects(resolved: ResolvedRun, scores: StoredTable, read: Shards, budget: int) -> Shards:
    """The shards without the suspects, but for as many of the likeliest of them as the budget needs."""
    total = suspected = 0
    for chunk in read((SUSPECT,)):
        total, suspected = total + len(chunk[SUSPECT]), suspected + int(chunk[SUSPECT].sum())
    needed = max(budget - (total - suspected), 0)
    let: Chosen | None = None
    if needed:
        warn_of_needed(resolved.guard_value, suspected, total, budget, needed)
        by_label = functools.partial(score_chunks, scores, {"score": "p_label"})

        def suspects(columns: Sequence[str]) -> Iterator[Chunk]:
            for chunk in by_label((*columns, SUSPECT)):
                yield {name: chunk[name][chunk[SUSPECT]] for name in columns}

        let = choose("top", suspects, needed, kept_C=np.zeros(1, np.int64), seed=resolved.config.seed)

    def shards(columns: Sequence[str]) -> Iterator[Chunk]:
        more = (SUSPECT,) if let is None else (SUSPECT, "id", "p_label")
        for chunk in read(tuple(dict.fromkeys((*columns, *more)))):
            rows: Any = ~chunk[SUSPECT]
            if let is not None:
                rows |= chunk[SUSPECT] & let.takes({"id": chunk["id"], "score": chunk["p_label"]})
            yield {name: chunk[name][rows] for name in columns}

    return shards
