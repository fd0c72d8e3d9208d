"""Choose again from a finished run's stage 0: another keep, score, policy or rule of combination, without training."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.checks import AUTO_NEEDS_UNSEEN
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.core.outofcore.selection import IdBits
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import is_target, plug_of, refuse_unnamed
from unseen_ray.pruning.reselect_scores import as_stored, scores_asked_for
from unseen_ray.pruning.selection import Kept, Picked, choice_by_rule, features_for, pick
from unseen_ray.pruning.suspects import suspects_found
from unseen_ray.pruning.warnings import check_selection, warn_of_beta
from unseen_ray.runs.layout import CORESET, KEYS, scores_file
from unseen_ray.runs.manifest_entries import Cost
from unseen_ray.runs.run import Run, choosing_s, load_run, open_selection
from unseen_ray.storage.row_streams import in_step
from unseen_ray.storage.tables import StoredTable, TableWriter, copy_table, write_batches

if TYPE_CHECKING:
    from unseen_ray.core.policies.auto import RuleChoice
    from unseen_ray.runs.manifest import Manifest

__all__ = ["reselect"]

logger = logging.getLogger(__name__)


def reselect(
    path: str,
    *,
    keep: float,
    out: str,
    score: Any = None,
    policy: Any = None,
    guard: Any = None,
    combine: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
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
        limits: how many rows are held at once.

    Raises:
        ConfigError: if the run stores no such score, or no probabilities where they are needed.
        StorageError: if a file is damaged, or keys and scores are not of the same samples.
    """
    run = load_run(path, to_choose=True)
    config = _config(run.manifest, keep=keep, score=score, policy=policy, guard=guard, combine=combine, out=out)
    resolved = ResolvedRun(config)
    warn_of_beta(config)
    keys, stored = _open(run, KEYS, limits), _open(run, scores_file(0), limits)
    scores = scores_asked_for(run, resolved, stored, limits)
    budget = _budget_of(config.keep, scores.num_rows)
    none = Kept(np.zeros(run.manifest.source.num_classes, np.int64))
    by_rule = choice_by_rule(config, scores, budget, none.counts_C)
    used = resolved if by_rule is None else resolved.with_policy(by_rule.policy)
    _say_what_is_used(run.manifest, config, used.config, by_rule, guard_is_named=guard is not None)
    picked = pick(
        used,
        scores,
        budget=budget,
        kept=none,
        features=features_for(run, resolved, lambda: scores.table().column("id").to_numpy(), []),
        limits=limits,
    )
    # Before anything is written: a user's policy that fails leaves no folder behind.
    bits = _check(run, config, scores, picked)
    known, name = run.manifest.files, scores_file(0)
    with open_selection(run, config, used.config) as new:
        writer = TableWriter(new.folder, CORESET, budget, part_rows=limits.part_rows(budget))
        files = {
            **_write_coreset(writer, picked, keys, bits),
            **copy_table(new.folder, KEYS, run.folder, known),
            **(
                copy_table(new.folder, name, run.folder, known)
                if as_stored(run, resolved, stored)
                else write_batches(new.folder, name, scores, part_rows=limits.part_rows(scores.num_rows))
            ),
        }
        cost = Cost(seconds=0.0, chosen_from_s=_stage_zero_s(run.manifest))
        reason = "" if by_rule is None else by_rule.reason
        suspects = suspects_found(scores) if used.guard_value != "none" else 0
        return new.commit(files=files, cost=cost, finished=True, policy_reason=reason, suspects=suspects).released()


def _say_what_is_used(
    before: Manifest, config: PruneConfig, used: PruneConfig, by_rule: RuleChoice | None, *, guard_is_named: bool
) -> None:
    if by_rule is not None:
        logger.info("policy auto uses %s: %s", *by_rule)
    came_with_policy = before.asked.get("guard", "none") == "none" and before.suspected
    if came_with_policy and used.guard == "none" and not guard_is_named and config.policy != before.asked["policy"]:
        logger.warning(
            "the %d samples that the run suspected of wrong labels may be chosen: their guard came with policy auto. Name a guard to "
            "leave them out, such as --guard unlikely_label.",
            before.suspected,
        )


def _open(run: Run, name: str, limits: Limits) -> StoredTable:
    """A table of the run with its checksums verified; a short one is held in memory."""
    if run.manifest.source.num_samples <= limits.most_held:
        return run.stored(name, hold=True)
    return run.stored(name, hold=False).verified()


def _budget_of(keep: float, samples: int) -> int:
    """How many samples to keep; ConfigError if that is none or all."""
    budget = round(keep * samples)
    if not 1 <= budget < samples:
        raise ConfigError(
            f"keep={keep} of {samples:,} samples is {budget:,} samples; a coreset has 1 to {samples - 1:,}. Choose another keep."
        )
    return budget


def _check(run: Run, config: PruneConfig, scores: StoredTable, picked: Picked) -> IdBits:
    """Warn about likely problems of the choice; returns its ids, one bit each."""
    source, bits = run.manifest.source, IdBits()
    kept_C = np.zeros(source.num_classes, np.int64)
    for rows in picked():
        bits.add(rows.column("id").to_numpy())
        kept_C += np.bincount(rows.column("label").to_numpy(), minlength=len(kept_C))
    sizes_C = np.asarray(source.class_counts)
    check_selection(config, scores, bits.has, source.class_names, sizes_C=sizes_C, kept_C=kept_C)
    return bits


def _write_coreset(writer: TableWriter, picked: Picked, keys: StoredTable, bits: IdBits) -> dict[str, str]:
    """Write the picked rows with their keys; StorageError if the keys are of other samples."""
    tables = (pa.Table.from_batches([batch]) for batch in keys.batches(["id", "key"]))
    picked_keys = (table.filter(pa.array(bits.has(table.column("id").to_numpy()))) for table in tables)
    for rows, beside in in_step(picked(), picked_keys):
        stages = pa.array(np.zeros(rows.num_rows, np.int32))
        writer.add(rows.add_column(1, "key", beside.column("key")).add_column(3, "stage", stages))
    return writer.close()


def _stage_zero_s(manifest: Manifest) -> float | None:
    """Worker seconds that the votes took."""
    if manifest.kind == "select":
        return choosing_s(manifest)
    # Of the tasks, not of the stage, whose trials this choice does not use.
    tasks = manifest.stages[0].tasks if manifest.stages else []
    return round(sum(task.worker_seconds for task in tasks), 3) if tasks else None


def _config(manifest: Manifest, **changes: Any) -> PruneConfig:
    changed = {key: value for key, value in changes.items() if value is not None}
    kept = {k: v for k, v in manifest.asked.items() if k != "schedule"}
    own = {field: plug_of(kept.get(field))[0] for field in ("policy", "guard") if field not in changed}
    refuse_unnamed((field, str(use)) for field, use in own.items() if is_target(use))
    use, options = plug_of(changed.get("policy", kept.get("policy")))
    if "policy" in changed and use == "auto" and manifest.config["mode"] == "fitting":
        raise ConfigError(AUTO_NEEDS_UNSEEN)
    if use == "auto" and options.get("trials"):
        logger.warning("select does not train: policy auto decides by its rule instead of by trials.")
        options = {name: value for name, value in options.items() if name not in ("trials", "candidates")}
        changed["policy"] = {**options, "use": use} if options else use
    if changed.get("guard") == "none" and use == "auto":  # which has a guard of its own
        changed["policy"] = {**options, "use": use, "guard": False}
    before, also = kept["score"], kept.get("also_score")
    # A score with options is a column of its own: the new manifest lists it, so that a choice from this choice still finds it.
    if not isinstance(before, str) and changed.get("score", before) != before:
        kept["also_score"] = [before, *(also if isinstance(also, list) else [])]
    return PruneConfig.from_json({**kept, **changed})
