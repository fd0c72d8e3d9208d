"""Every number of the report, read from the files of a run; nothing that the run names is imported.

Shapes: M candidates of stage 0, C classes, S scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unseen_ray.config.guards import guard_of_stored, guard_words
from unseen_ray.config.limits import DEFAULT_LIMITS
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.config.scoring import scored_by, scoring_recipe
from unseen_ray.core.stats import (
    common_range,
    correlation,
    fullest_bin,
    mean_ranks,
    rank_correlation,
    rank_correlations,
)
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import is_target, plug_of
from unseen_ray.pruning.selection import Kept, pick
from unseen_ray.pruning.trials.plan import with_candidate
from unseen_ray.reporting.headline import headline_of
from unseen_ray.reporting.score_tables import (
    Counts,
    Rows,
    Sample,
    keys_of,
    last_stage_of,
    long_table,
    places_of,
    rows_of,
)
from unseen_ray.runs.evaluation_file import fullest_first, stored_tables
from unseen_ray.runs.features import load_features
from unseen_ray.runs.layout import CORESET, FITTING, SELECTIONS, scores_file
from unseen_ray.runs.run import Run, choosing_s, load_run
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import StoredTable

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray

__all__ = ["ReportFacts", "gather", "score_columns_of"]

_BINS = 40
_CELLS = 20
_SUSPECTS = 100
_FIXED = ("id", "label", "votes", "pred", "p_label")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportFacts:
    """What the page shows.

    Attributes:
        values: every number and name, ready for JSON.
        rows: candidates of stage 0: all, or a sample of a long run's.
        last_stage: the last stage that kept anything.
    """

    values: dict[str, Any]
    rows: Rows
    last_stage: int


def gather(run: Run) -> ReportFacts:
    """Read a finished run, its evaluations, its fitting baseline and its further selections."""
    score = score_name(run.manifest.config["score"])
    tables = fullest_first(stored_tables(run.folder))
    evaluation = tables[0] if tables else None
    source = run.manifest.source
    names = source.class_names or [str(number) for number in range(source.num_classes)]
    last_stage = last_stage_of(run)
    counts, rows, sample = _read(run, score, last_stage, len(names))
    again = [found for found in (_neighbour(run, f"{SELECTIONS}/{name}") for name in _selections(run)) if found]
    values = {
        "out": run.folder.root,
        "headline": headline_of(evaluation, bill=run.manifest.cost.bill, is_random=run.manifest.is_random),
        "source": source.name,
        "samples": counts.samples,
        "kept": counts.kept,
        "left_out": {"holdout": source.holdout, "skipped": len(source.skipped_ids), "copies": source.copies},
        **{name: run.manifest.config[name] for name in ("keep", "mode")},
        "score": score,
        "policy": run.manifest.policy_label,
        "policy_reason": run.manifest.policy_why or None,
        "suspects": _suspects(run, counts, names),
        **_guard(guard_of_stored(run.manifest.asked)),
        "model": scored_by(run.manifest.config),
        "init": _init(scoring_recipe(run.manifest.config)),
        "stages": [stage.sizes() for stage in run.manifest.stages],
        "choosing_s": choosing_s(run.manifest),
        "cost": run.manifest.cost.to_json(),
        "evaluation": evaluation,
        "other_evaluations": tables[1:],
        "distribution": _distribution(run, _neighbour(run, FITTING), rows.table, sample, score),
        "agreement": _agreement(run, again, sample, score),
        "importance": _importance(run, rows.table, sample, score),
        "classes": _classes(names, counts, evaluation, mode=run.manifest.config["mode"]),
        "collinearity": _collinearity(rows.table),
        "config": run.manifest.config,
        "environment": run.manifest.environment,
        **({} if sample.is_whole else {"sampled": rows.table.num_rows}),
    }
    return ReportFacts(values=without_nan(values), rows=rows, last_stage=last_stage)


def _read(run: Run, score: str, last_stage: int, num_classes: int) -> tuple[Counts, Rows, Sample]:
    """Counts of all candidates of stage 0, and those that the report holds."""
    sample = Sample.of(long_table(run, scores_file(0)).num_rows)
    counts, held = Counts(num_classes=num_classes, most_suspects=_SUSPECTS), []
    for rows in rows_of(run, score, last_stage):
        counts.add(rows)
        held.append(rows if sample.is_whole else rows.take(np.flatnonzero(sample.mask(rows.ids_M))))
    return counts, Rows.joined(held), sample


def score_columns_of(table: pa.Table) -> list[str]:
    """Names of the stored scores."""
    return [name for name in table.column_names if name not in _FIXED and f"std_{name}" in table.column_names]


def _init(recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The initial weights, and what the user asserts about them; None if weights were random."""
    if recipe.get("init") is None:
        return None
    return {"file": recipe["init"], "sha256": recipe.get("init_sha256"), "saw": recipe.get("init_saw")}


def _selections(run: Run) -> list[str]:
    return Folder(run.folder.path(SELECTIONS)).names()


def _neighbour(run: Run, name: str) -> Run | None:
    """A finished run inside the run's folder, or None."""
    try:
        return load_run(run.folder.path(name))
    except ConfigError:
        return None


def _distribution(run: Run, fitting: Run | None, table: pa.Table, sample: Sample, score: str) -> dict[str, Any]:
    """The score's histogram over common bins, and the share of the samples in the fullest of 20 bins."""
    columns = {run.manifest.config["mode"]: table.column(score).to_numpy()}
    if fitting is not None:
        columns["fitting"] = sample.table(fitting, scores_file(0), ["id", score]).column(score).to_numpy()
    # Common bins, since the fullest of each mode's own bins could not be compared.
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


def _agreement(run: Run, again: list[Run], sample: Sample, score: str) -> list[dict[str, Any]]:
    """Rank correlation and overlap between selections with other seeds, for unseen and, if made, for fitting."""
    found = []
    # UNSEEN compares both: scores of fitted samples are said to depend more on the seed.
    for mode in ("unseen", "fitting"):
        runs = [run, *again]
        if mode == "fitting":
            runs = [other for other in (_neighbour(one, FITTING) for one in runs) if other]
        if len(runs) < 2:
            continue
        scores = [sample.table(one, scores_file(0), ["id", score]).column(score).to_numpy() for one in runs]
        kept = [sample.table(one, CORESET, ["id"]).column("id").to_numpy() for one in runs]
        pairs = list(combinations(range(len(runs)), 2))
        correlations = [rank_correlation(scores[a], scores[b]) for a, b in pairs]
        found.append(
            {
                "mode": mode if run.manifest.config["mode"] == "unseen" else "fitting",
                "seeds": [one.manifest.config["seed"] for one in runs],
                "rank_correlation": float(np.mean(correlations)),
                "rank_correlation_of_pairs": correlations,
                "overlap": float(np.mean([len(np.intersect1d(kept[a], kept[b])) / len(kept[a]) for a, b in pairs])),
                "cells": _cells(scores[0], scores[1]),
            }
        )
    return found


def _importance(run: Run, table: pa.Table, sample: Sample, score: str) -> list[dict[str, Any]]:
    """For each later stage: how its model's ranking of the candidates agrees with that of stage 0."""
    found = []
    coreset = sample.table(run, CORESET, ["id", "label", "stage"])
    resolved = ResolvedRun(PruneConfig.from_json(run.manifest.asked))
    ids_M, zero_M = table.column("id").to_numpy(), table.column(score).to_numpy()
    later_stages = run.manifest.stages[1:]
    used = [run.manifest.policy_used if stage.policy is None else stage.policy for stage in later_stages]
    own = any(is_target(plug_of(policy)[0]) for policy in used)
    reads = bool(used) and not own and resolved.with_policy(used[0]).policy.needs_features
    # A function of the user's own is not imported, and features of a long run do not fit in memory.
    left_out = own or (reads and not sample.is_whole)
    features = load_features(run.folder, run.manifest.files, ids_M) if reads and not left_out else None
    for stage, policy in zip(later_stages, used, strict=True):
        later = sample.table(run, scores_file(stage.index), ["id", score])
        places = places_of(later.column("id").to_numpy(), ids_M)
        before, after = zero_M[places], later.column(score).to_numpy()
        picked = coreset.filter(pc.equal(coreset.column("stage"), stage.index)).column("id").to_numpy()
        earlier = coreset.filter(pc.less(coreset.column("stage"), stage.index))
        counts_C = np.bincount(earlier.column("label").to_numpy(), minlength=run.manifest.source.num_classes)
        kept = Kept(counts_C, StoredTable(run.folder, CORESET, {}, earlier))
        overlap = math.nan
        if len(picked) and not left_out:
            of_zero = StoredTable(run.folder, scores_file(0), {}, table.take(pa.array(places)))
            at = with_candidate(resolved, policy)
            again = pick(at, of_zero, budget=len(picked), kept=kept, features=features, limits=DEFAULT_LIMITS)
            overlap = sum(int(np.isin(rows.column("id").to_numpy(), picked).sum()) for rows in again()) / len(picked)
        found.append(
            {
                "stage": stage.index,
                "candidates": long_table(run, scores_file(stage.index)).num_rows,
                "added": stage.added,
                "rank_correlation": rank_correlation(before, after),
                "overlap": overlap,
                "cells": _cells(before, after),
            }
        )
    return found


def _cells(first_M: FloatArray, second_M: FloatArray) -> list[list[int]]:
    """Number of samples by rank in both rankings, in 20 by 20 cells."""
    counts, _, _ = np.histogram2d(mean_ranks(first_M), mean_ranks(second_M), bins=_CELLS, range=[[0, 1], [0, 1]])
    return [[int(value) for value in row] for row in counts]


def _classes(
    names: list[str],
    counts: Counts,
    evaluation: dict[str, Any] | None,
    *,
    mode: str,
) -> dict[str, Any]:
    """What was kept of each class, and how hard the class is."""
    # A class without candidates gives 0 / 0: NaN here, an empty cell on the page.
    with np.errstate(invalid="ignore"):
        share_C, unseen_C = counts.kept_C / counts.sizes_C, counts.right_C / counts.sizes_C
    arms = {arm["name"]: np.array(arm["class_accuracy"], float) for arm in (evaluation or {}).get("arms", [])}
    hard_C = arms.get("full", unseen_C)
    return {
        "names": names,
        "samples": counts.sizes_C.tolist(),
        "kept": counts.kept_C.tolist(),
        "share": share_C.tolist(),
        "unseen_accuracy": unseen_C.tolist(),
        "accuracy": {name: values.tolist() for name, values in arms.items()},
        "hardness_of": "full" if "full" in arms else mode,
        "share_by_accuracy": correlation(hard_C, share_C),
        "spread": {name: float(np.nanstd(values)) for name, values in arms.items()},
    }


def _collinearity(table: pa.Table) -> dict[str, Any]:
    """Rank correlation of every pair of stored scores."""
    names = score_columns_of(table)
    columns = [table.column(name).to_numpy() for name in names]
    return {"scores": names, "rank_correlation": rank_correlations(columns)}


def _guard(value: Any) -> dict[str, Any]:
    return {"guarded": value != "none", "guard": None if value == "none" else guard_words(value)}


def _suspects(run: Run, counts: Counts, names: list[str]) -> dict[str, Any] | None:
    """Suspected labels: how many, how many of these were kept, and the least likely ones; None without a guard."""
    if counts.suspects is None or counts.unlikely is None:
        return None
    unlikely = counts.unlikely
    columns = [unlikely.table.column(name).to_pylist() for name in ("id", "label", "pred", "p_label")]
    keys = keys_of(run, columns[0])
    listed = [
        {"id": i, "key": keys[i], "label": names[a], "pred": names[b], "p_label": p, "kept": bool(kept)}
        for i, a, b, p, kept in zip(*columns, unlikely.stage_M >= 0, strict=True)
    ]
    return {**counts.suspects, "first": listed}
