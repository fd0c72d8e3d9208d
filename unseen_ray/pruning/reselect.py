"""Choose again from a finished run's stage 0: another keep, score, policy or rule of combination, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig, jsonable
from unseen_ray.config.score_columns import of_probabilities, score_name
from unseen_ray.core import scores as builtin_scores
from unseen_ray.core.samples.coreset import Coreset
from unseen_ray.core.scorebook import ScoreBook, log_of_probs
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.plugins import did_you_mean, is_target, plug_of
from unseen_ray.pruning.merge import score_columns
from unseen_ray.pruning.reselect_long import budget_of, select_long
from unseen_ray.pruning.selection import Kept, apply_policy
from unseen_ray.pruning.selection_by_passes import is_streamed
from unseen_ray.pruning.suspects import SUSPECT, suspects_of
from unseen_ray.pruning.warnings import check_selection
from unseen_ray.runs.entries import Cost
from unseen_ray.runs.features import load_features
from unseen_ray.runs.layout import CORESET, KEYS, probs_file, scores_file
from unseen_ray.runs.manifest import Manifest
from unseen_ray.runs.run import Run, choosing_s, load_run, open_selection
from unseen_ray.runs.votes import read_votes
from unseen_ray.storage.tables import LongTable, copy_table, write_table

__all__ = ["reselect"]


def reselect(
    path: str,
    *,
    keep: float,
    out: str,
    score: Any = None,
    policy: Any = None,
    guard: Any = None,
    combine: str | None = None,
) -> Run:
    """Choose `round(keep * N)` samples in one shot from the stored votes of stage 0.

    Args:
        path: a finished run.
        keep: fraction kept.
        out: a new folder for the choice.
        score: a stored score; None for the run's.
        policy: a policy; None for the run's. Nothing that the run folder names is imported, so a run with a policy of
            the user's own needs it named here.
        guard: which suspected wrong labels are not chosen; None for the run's, "none" for no guard.
        combine: `mean`, `rank_mean` or `mean_prob`; None for the run's.

    Raises:
        ConfigError: if the run stores no such score, or no probabilities where they are needed.
    """
    run = load_run(path, to_choose=True)
    config = _config(run.manifest, keep=keep, score=score, policy=policy, guard=guard, combine=combine, out=out)
    resolved = ResolvedRun(config)
    if _as_stored(run, resolved) and is_streamed(config, run.manifest.source.num_samples):
        long = LongTable(run.folder, scores_file(0), run.manifest.files).verified()
        _check_score(run, config, _score_names(long.schema.names))
        return select_long(run, config, long, chosen_from_s=_stage_zero_s(run.manifest))
    keys = run.table(KEYS)
    ids = keys.column("id").to_numpy()
    stored = run.table(scores_file(0))
    table = _guarded(run, resolved, _scores(run, config, stored), stored)
    name = score_name(config.score)
    budget = budget_of(keep, len(ids))
    scores = table.column(name).to_numpy()
    nothing = np.empty(0, np.int64)
    kept = Kept.of(nothing, nothing, run.manifest.source.num_classes)
    features = load_features(run.folder, run.manifest.files, ids) if resolved.policy.reads_features else None
    picked = apply_policy(resolved, table, budget=budget, kept=kept, features=features)
    coreset = Coreset.empty().extend(0, ids[picked], scores[picked])
    places = pa.array(np.sort(picked))
    columns = {
        "id": coreset.ids,
        "key": keys.column("key").take(places),
        "label": table.column("label").take(places),
        "stage": coreset.stages,
        "score": coreset.scores,
    }
    check_selection(config, table, coreset.ids, run.manifest.source.class_names)
    new = open_selection(run, config)
    known = run.manifest.files
    files = {
        **write_table(new.folder, CORESET, pa.table(columns)),
        **copy_table(new.folder, KEYS, run.folder, known),
        **(
            copy_table(new.folder, scores_file(0), run.folder, known)
            if table is stored
            else write_table(new.folder, scores_file(0), table)
        ),
    }
    return new.commit(files=files, cost=Cost(seconds=0.0, chosen_from_s=_stage_zero_s(run.manifest)), finished=True)


def _stage_zero_s(manifest: Manifest) -> float | None:
    """Seconds of workers that the votes took."""
    if manifest.kind == "select":
        return choosing_s(manifest)
    return next((stage.fit_seconds for stage in manifest.cost.stages), None)


def _config(manifest: Manifest, **changes: Any) -> PruneConfig:
    asked = {key: value for key, value in changes.items() if value is not None}
    kept = {k: v for k, v in manifest.asked.items() if k != "schedule"}
    for field in ("policy", "guard"):
        if field not in asked and is_target(plug_of(kept.get(field))[0]):
            raise ConfigError(
                f"the run's {field} {plug_of(kept[field])[0]} is a function of its user's own, "
                "and nothing that a run folder names is imported. "
                f"Name it yourself: --{field} package.module:function."
            )
    before, also = kept["score"], kept.get("also_score")
    if (
        not isinstance(before, str) and asked.get("score", before) != before
    ):  # a choice from this one must know what is stored
        kept["also_score"] = [before, *(also if isinstance(also, list) else [])]
    return PruneConfig.from_json({**kept, **asked})


def _scores(run: Run, config: PruneConfig, stored: pa.Table) -> pa.Table:
    """The scores of stage 0 under `config.combine`, in the order of the ids; as they are stored where that is the run's rule."""
    if run.manifest.kind == "select":
        if config.combine != run.manifest.asked["combine"]:
            raise ConfigError(
                f"combine needs the votes, which {run.folder.root} does not hold: it is a choice from another run. Select from that run."
            )
        table = stored
    elif config.combine == run.manifest.config["combine"]:
        table = stored
    elif config.combine == "mean_prob":
        table = _of_mean_probs(run, stored)
    else:
        stage = run.manifest.stages[0]
        votes = stored.column("votes").to_numpy()
        book = ScoreBook(
            ids_M=stored.column("id").to_numpy(),
            labels_M=stored.column("label").to_numpy(),
            num_parts=len(stage.tasks),
            votes_each=int(votes[0]),
        )
        for index in range(len(stage.tasks)):
            book.add(read_votes(run.folder, 0, index, run.manifest.files))
        table = score_columns(book.merge(config.combine))
    _check_score(run, config, _score_names(table.column_names))
    return table


def _check_score(run: Run, config: PruneConfig, names: list[str]) -> None:
    """Refuse a score that is not stored, or is stored as another variant."""
    name = score_name(config.score)
    as_stored = _stored_as(run.manifest, name)
    if name in names and jsonable(config.score) != as_stored:
        raise ConfigError(
            f"score={jsonable(config.score)!r} is another variant than the one that {run.folder.root} stores as {name}: {as_stored!r}. "
            "Ask for that one, or prune with yours."
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


def _guarded(run: Run, resolved: ResolvedRun, table: pa.Table, stored: pa.Table) -> pa.Table:
    """The scores with the suspects of the guard that is asked for."""
    config, guard = resolved.config, resolved.guard
    if _guarded_as_stored(run, resolved):
        if table is stored:
            return table
        known = stored.column(SUSPECT) if SUSPECT in stored.column_names else None
    else:
        missing = [name for name in (guard.scores if guard else ()) if name not in table.column_names]
        if missing:
            raise ConfigError(
                f"guard={score_name(config.guard)} reads the score {missing[0]}, which {run.folder.root} does not hold."
            )
        probs = (
            _probs(run, table.num_rows, f"guard={plug_of(config.guard)[0]}") if guard and guard.needs_probs else None
        )
        found = suspects_of(resolved, table, probs)
        known = None if found is None else pa.array(found)
    bare = table.drop_columns([SUSPECT]) if SUSPECT in table.column_names else table
    return bare if known is None else bare.append_column(SUSPECT, known)


def _guarded_as_stored(run: Run, resolved: ResolvedRun) -> bool:
    config, guard = resolved.config, resolved.guard
    as_merged = config.combine == run.manifest.asked["combine"] or (
        guard is not None and guard.needs_probs
    )  # the margin depends on the rule
    return bool(config.guard == run.manifest.asked.get("guard", "none") and as_merged)


def _as_stored(run: Run, resolved: ResolvedRun) -> bool:
    """Whether the scores and the suspects of stage 0 are those that are asked for."""
    rule = run.manifest.asked if run.manifest.kind == "select" else run.manifest.config
    return _guarded_as_stored(run, resolved) and resolved.config.combine == rule["combine"]


def _probs(run: Run, rows: int, reader: str) -> np.ndarray:
    """(N, C) mean probabilities of stage 0."""
    if probs_file(0) not in run.manifest.files:
        raise ConfigError(
            f"{reader} needs the mean probabilities, which {run.folder.root} does not hold. "
            "Prune in a new folder with save_probs: true."
        )
    probs: np.ndarray = run.folder.read_array(probs_file(0), run.manifest.files[probs_file(0)])
    if len(probs) != rows:
        raise StorageError(f"{run.folder.path(probs_file(0))} has {len(probs)} rows for {rows} candidates.")
    return probs


def _of_mean_probs(run: Run, stored: pa.Table) -> pa.Table:
    probs = _probs(run, stored.num_rows, "combine=mean_prob")
    labels = stored.column("label").to_numpy()
    for name in _score_names(stored.column_names):
        plain = name in builtin_scores.__all__ and _stored_as(run.manifest, name) == name
        if plain and of_probabilities(getattr(builtin_scores, name)):
            values = getattr(builtin_scores, name)(log_of_probs(probs), labels)
            stored = stored.set_column(stored.column_names.index(name), name, pa.array(values, pa.float32()))
        else:  # a variant, of features or epochs, or a function of somebody's, which is not imported: mean probabilities do not tell it
            stored = stored.drop_columns([name, f"std_{name}"])
    return stored


def _score_names(names: Sequence[str]) -> list[str]:
    return [column for column in names if f"std_{column}" in names]
