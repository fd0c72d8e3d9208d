"""Every number of the report, from the files of a run; nothing that the run names is imported.

Shapes: M candidates of stage 0, C classes, S scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.scorebook import mean_ranks
from unseen_ray.core.stats import common_range, correlation, fullest_bin, rank_correlation, rank_correlations
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import is_target, plug_of
from unseen_ray.pruning.selection import Kept, apply_policy
from unseen_ray.pruning.suspects import SUSPECT, suspects_kept
from unseen_ray.runs.evaluation_file import fullest_first, stored_tables
from unseen_ray.runs.features import load_features
from unseen_ray.runs.layout import CORESET, FITTING, KEYS, SELECTIONS, scores_file
from unseen_ray.runs.run import Run, choosing_s, load_run
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.storage.filesystem import Folder

__all__ = ["ReportFacts", "gather", "score_columns_of", "top_of"]

_BINS = 40
_CELLS = 20
_SUSPECTS = 100
_FIXED = ("id", "label", "votes", "pred", "p_label")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportFacts:
    """What the page shows.

    Attributes:
        values: every number and name, as JSON can hold it.
        table: the scores of stage 0.
        stage_M: (M,) in which stage each candidate of stage 0 was kept, -1 where it was not.
        last_M: (M,) float32 score by the last stage's own models, NaN for what was kept before it.
    """

    values: dict[str, Any]
    table: pa.Table
    stage_M: IntArray
    last_M: FloatArray


def gather(run: Run) -> ReportFacts:
    """Read a finished run, its evaluation, and what else lies in its folder: its fitting baseline, its other choices."""
    table = run.table(scores_file(0))
    coreset = run.table(CORESET)
    ids_M, labels_M = table.column("id").to_numpy(), table.column("label").to_numpy()
    stage_M = np.full(len(ids_M), -1, np.int64)
    stage_M[np.searchsorted(ids_M, coreset.column("id").to_numpy())] = coreset.column("stage").to_numpy()
    score = score_name(run.manifest.config["score"])
    tables = fullest_first(stored_tables(run.folder))
    evaluation = tables[0] if tables else None
    source = run.manifest.source
    names = source.class_names or [str(number) for number in range(source.num_classes)]
    again = [found for found in (_neighbour(run, f"{SELECTIONS}/{name}") for name in _selections(run)) if found]
    fitting = _neighbour(run, FITTING)
    values = {
        "out": run.folder.root,
        "source": source.name,
        "samples": len(ids_M),
        "kept": coreset.num_rows,
        "keep": run.manifest.config["keep"],
        "mode": run.manifest.config["mode"],
        "score": score,
        "policy": score_name(run.manifest.config["policy"]),
        "suspects": _suspects(run, table, stage_M >= 0, names),
        "model": run.manifest.config["fit"] or run.manifest.config["model"],
        "init": _init(run.manifest.config["recipe"]),
        "stages": [stage.sizes() for stage in run.manifest.stages],
        "choosing_s": choosing_s(run.manifest),
        "cost": run.manifest.cost.to_json(),
        "evaluation": evaluation,
        "other_evaluations": tables[1:],
        "distribution": _distribution(run, fitting, table, score),
        "agreement": _agreement(run, again, score),
        "importance": _importance(run, table, score),
        "classes": _classes(names, labels_M, stage_M >= 0, table, evaluation, mode=run.manifest.config["mode"]),
        "collinearity": _collinearity(table),
        "config": run.manifest.config,
        "environment": run.manifest.environment,
    }
    last = run.table(scores_file(max(stage_M.max(), 0)))
    last_M = np.full(len(ids_M), np.nan, np.float32)
    last_M[np.searchsorted(ids_M, last.column("id").to_numpy())] = last.column(score).to_numpy()
    return ReportFacts(values=without_nan(values), table=table, stage_M=stage_M, last_M=last_M)


def score_columns_of(table: pa.Table) -> list[str]:
    """Names of the stored scores."""
    return [name for name in table.column_names if name not in _FIXED and f"std_{name}" in table.column_names]


def _init(recipe: dict[str, Any]) -> dict[str, Any] | None:
    """What every training started from, and the user's word on it; None where models were fresh."""
    if recipe.get("init") is None:
        return None
    return {"file": recipe["init"], "sha256": recipe.get("init_sha256"), "saw": recipe.get("init_saw")}


def _selections(run: Run) -> list[str]:
    return Folder(run.folder.path(SELECTIONS)).names()


def _neighbour(run: Run, name: str) -> Run | None:
    """A finished run within the run's folder; None where there is none."""
    try:
        return load_run(run.folder.path(name))
    except ConfigError:
        return None


def _scores_of(run: Run) -> pa.Table:
    return run.table(scores_file(0))


def _distribution(run: Run, fitting: Run | None, table: pa.Table, score: str) -> dict[str, Any]:
    """The score's histogram over common bins, and which share of the samples the fullest of 20 bins holds."""
    columns = {run.manifest.config["mode"]: table.column(score).to_numpy()}
    if fitting is not None:
        columns["fitting"] = _scores_of(fitting).column(score).to_numpy()
    within = common_range(columns.values())
    edges = np.linspace(*within, _BINS + 1)
    return {
        "edges": edges.tolist(),
        "counts": {
            name: np.histogram(values.astype(np.float64), edges)[0].tolist() for name, values in columns.items()
        },
        "fullest_bin": {name: fullest_bin(values, within) for name, values in columns.items()},
        "std": {name: float(values.std()) for name, values in columns.items()},
    }


def _agreement(run: Run, again: list[Run], score: str) -> list[dict[str, Any]]:
    """Rank correlation and overlap between choices with other seeds, unseen and, where it was made, fitting."""
    found = []
    for mode in ("unseen", "fitting"):
        runs = [run, *again]
        if mode == "fitting":
            runs = [other for other in (_neighbour(one, FITTING) for one in runs) if other]
        if len(runs) < 2:
            continue
        scores = [_scores_of(one).column(score).to_numpy() for one in runs]
        kept = [set(one.table(CORESET).column("id").to_pylist()) for one in runs]
        pairs = list(combinations(range(len(runs)), 2))
        correlations = [rank_correlation(scores[a], scores[b]) for a, b in pairs]
        found.append(
            {
                "mode": mode if run.manifest.config["mode"] == "unseen" else "fitting",
                "seeds": [one.manifest.config["seed"] for one in runs],
                "rank_correlation": float(np.mean(correlations)),
                "rank_correlation_of_pairs": correlations,
                "overlap": float(np.mean([len(kept[a] & kept[b]) / len(kept[a]) for a, b in pairs])),
                "cells": _cells(scores[0], scores[1]),
            }
        )
    return found


def _importance(run: Run, table: pa.Table, score: str) -> list[dict[str, Any]]:
    """For each later stage: how the order of its candidates by its own model agrees with their order in stage 0."""
    found = []
    coreset = run.table(CORESET)
    resolved = ResolvedRun(PruneConfig.from_json(run.manifest.asked))
    ids_M, zero_M = table.column("id").to_numpy(), table.column(score).to_numpy()
    own = is_target(plug_of(resolved.config.policy)[0])  # a function of the user's own is not imported
    reads = len(run.manifest.stages) > 1 and not own and resolved.policy.needs_features
    features = load_features(run.folder, run.manifest.files, ids_M) if reads else None
    for stage in run.manifest.stages[1:]:
        later = run.table(scores_file(stage.index))
        candidates = later.column("id").to_numpy()
        places = np.searchsorted(ids_M, candidates)
        before = zero_M[places]
        after = later.column(score).to_numpy()
        picked = coreset.filter(pc.equal(coreset.column("stage"), stage.index)).column("id").to_numpy()
        earlier = coreset.filter(pc.less(coreset.column("stage"), stage.index))
        kept_ids, kept_labels = (earlier.column(name).to_numpy() for name in ("id", "label"))
        kept = Kept.of(kept_ids, kept_labels, run.manifest.source.num_classes)
        overlap = math.nan
        if not own:
            of_zero = table.take(pa.array(places))
            as_before = apply_policy(resolved, of_zero, budget=stage.added, kept=kept, features=features)
            overlap = len(np.intersect1d(candidates[as_before], picked)) / stage.added
        found.append(
            {
                "stage": stage.index,
                "candidates": later.num_rows,
                "added": stage.added,
                "rank_correlation": rank_correlation(before, after),
                "overlap": overlap,
                "cells": _cells(before, after),
            }
        )
    return found


def _cells(first_M: FloatArray, second_M: FloatArray) -> list[list[int]]:
    """How many samples have such a rank in one and in the other, over 20 by 20 cells."""
    counts, _, _ = np.histogram2d(mean_ranks(first_M), mean_ranks(second_M), bins=_CELLS, range=[[0, 1], [0, 1]])
    return [[int(value) for value in row] for row in counts]


def _classes(
    names: list[str],
    labels_M: IntArray,
    kept_M: np.ndarray,
    table: pa.Table,
    evaluation: dict[str, Any] | None,
    *,
    mode: str,
) -> dict[str, Any]:
    """What was kept of each class, beside how hard it is."""
    count = len(names)
    sizes_C = np.bincount(labels_M, minlength=count)
    kept_C = np.bincount(labels_M[kept_M], minlength=count)
    right = table.column("pred").to_numpy() == labels_M
    with np.errstate(invalid="ignore"):
        share_C, unseen_C = kept_C / sizes_C, np.bincount(labels_M[right], minlength=count) / sizes_C
    arms = {arm["name"]: np.array(arm["class_accuracy"], float) for arm in (evaluation or {}).get("arms", [])}
    hard_C = arms.get("full", unseen_C)
    return {
        "names": names,
        "samples": sizes_C.tolist(),
        "kept": kept_C.tolist(),
        "share": share_C.tolist(),
        "unseen_accuracy": unseen_C.tolist(),
        "accuracy": {name: values.tolist() for name, values in arms.items()},
        "hardness_of": "full" if "full" in arms else mode,
        "share_by_accuracy": correlation(hard_C, share_C),
        "spread": {name: float(np.nanstd(values)) for name, values in arms.items()},
    }


def _collinearity(table: pa.Table) -> dict[str, Any]:
    """Rank correlation of each two stored scores."""
    names = score_columns_of(table)
    columns = [table.column(name).to_numpy() for name in names]
    return {"scores": names, "rank_correlation": rank_correlations(columns)}


def _suspects(run: Run, table: pa.Table, kept_M: np.ndarray, names: list[str]) -> dict[str, Any] | None:
    """What the guard suspects: how many, how many of these were kept, and the least likely labels; None without a guard."""
    found = suspects_kept(table, kept_M)
    if found is None:
        return None
    likely = table.column("p_label").to_numpy()
    first = top_of(likely, table.column(SUSPECT).to_numpy(), _SUSPECTS, lowest=True)
    keys = run.table(KEYS).column("key").take(pa.array(first)).to_pylist()
    ids, labels, preds = (table.column(name).to_numpy()[first].tolist() for name in ("id", "label", "pred"))
    rows = zip(ids, keys, labels, preds, likely[first].tolist(), kept_M[first].tolist(), strict=True)
    fields = ("id", "key", "label", "pred", "p_label", "kept")
    listed = [dict(zip(fields, (i, key, names[a], names[b], p, kept), strict=True)) for i, key, a, b, p, kept in rows]
    return {**found, "first": listed}


def top_of(values_M: FloatArray, where_M: np.ndarray, count: int, *, lowest: bool = False) -> IdArray:
    """Places of the candidates with the highest (or lowest) value among those that `where_M` marks and that have one."""
    places = np.flatnonzero(where_M & np.isfinite(values_M))
    values = values_M[places]
    return places[np.argsort(values if lowest else -values, kind="stable")[:count]]
