"""A choice by scores: the policy of a run at work on a merged table, given what earlier stages kept and what features there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.score_columns import CONSISTENCY, score_name
from unseen_ray.core.samples.population import Population
from unseen_ray.errors import ConfigError, FitError
from unseen_ray.plugins import offered
from unseen_ray.pruning.selection_by_passes import is_streamed, rows_streamed, warn_of_memory
from unseen_ray.pruning.suspects import open_positions
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.features import StoredFeatures, load_features
from unseen_ray.runs.run import Run

__all__ = ["Kept", "apply_policy", "features_for"]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What earlier stages kept: (K,) ids, (K,) their classes, (C,) how many of each class."""

    ids_K: np.ndarray
    labels_K: np.ndarray
    counts_C: np.ndarray

    @classmethod
    def of(cls, ids_K: np.ndarray, labels_K: np.ndarray, num_classes: int) -> Kept:
        """Of ids and their classes."""
        return cls(ids_K, labels_K, np.bincount(labels_K, minlength=num_classes))


def apply_policy(
    resolved: ResolvedRun,
    table: pa.Table,
    *,
    budget: int,
    kept: Kept,
    features: StoredFeatures | None,
) -> np.ndarray:
    """Rows that the run's policy picks of a score table without its suspects; checked: exactly `budget`, none twice.

    Args:
        resolved: the run's configuration.
        table: the scores of the candidates.
        budget: how many to pick.
        kept: what earlier stages kept.
        features: of all samples, where the run has them.

    Raises:
        ConfigError: if the policy reads features, and the run has none.
        FitError: if a user's policy answers with something else.
    """
    config, policy = resolved.config, resolved.policy
    if is_streamed(config, table.num_rows):
        return rows_streamed(config, table, budget=budget, kept_C=kept.counts_C)
    warn_of_memory(config, table.num_rows)
    rows = open_positions(table, budget, seed=config.seed)
    names = (score_name(config.score), "label", "id", "p_label")
    scores_M, labels_M, ids_M, p_label_M = (table.column(name).to_numpy()[rows] for name in names)
    more: dict[str, Any] = {"p_label_M": p_label_M}
    if config.combine == "mean" and CONSISTENCY in table.column_names:  # by another rule it is no probability
        more[f"{CONSISTENCY}_M"] = table.column(CONSISTENCY).to_numpy()[rows]
    if features is not None and policy.reads_features:
        more |= {"features_MD": features.of(ids_M), "kept_features_KD": features.of(kept.ids_K)}
        more["kept_labels_K"] = kept.labels_K
    if features is None and policy.needs_features:
        raise ConfigError(
            f"policy {policy.name} reads the features of a model, which the run does not hold. Where it is a choice from another run, "
            "select from that one; else prune in a new folder with save_features: true."
        )
    offers = offered(policy.function, more)
    picked = np.asarray(
        policy.function(scores_M, labels_M, ids_M, budget, kept_C=kept.counts_C, seed=config.seed, **offers)
    )
    if picked.shape != (budget,) or picked.dtype.kind not in "iu":
        raise FitError(
            f"policy {policy.name} returned {picked.dtype} of shape {picked.shape}; it must return {budget} positions."
        )
    outside = budget and not 0 <= picked.min() <= picked.max() < len(ids_M)
    if outside or (np.bincount(picked, minlength=1) > 1).any():
        raise FitError(f"policy {policy.name} returned positions that repeat or lie outside 0..{len(ids_M) - 1}.")
    chosen: np.ndarray = rows[picked]
    return chosen


def features_for(
    run: Run, resolved: ResolvedRun, population: Population, receipts: list[Receipt]
) -> StoredFeatures | None:
    """The features of all samples, where the policy reads some that the run keeps."""
    if not resolved.policy.reads_features:
        return None
    files = dict(run.manifest.files)
    for receipt in receipts:
        files |= receipt.files
    return load_features(run.folder, files, population.ids_N)
