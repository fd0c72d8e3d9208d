"""The method: K fold models vote, the policy picks the first target, then the coreset grows stage by stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.models import model_builder
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.population import make_population
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.registry import Source, SourceInfo, open_source, source_ref
from unseen_ray.errors import DataError
from unseen_ray.plugins import is_target
from unseen_ray.pruning.plan import RunPlan, plan_run
from unseen_ray.pruning.stage import StageRunner
from unseen_ray.pruning.validate import (
    CODE,
    check_functions,
    check_lenders,
    check_out,
    check_readable,
    check_replaced,
    check_test,
    code_of,
    warn_of_edits,
)
from unseen_ray.runs.layout import FEATURES, probs_file, stage_coreset
from unseen_ray.runs.manifest import EXACT_SCORES
from unseen_ray.runs.manifest_entries import StageEntry, cost_of, source_entry, with_population
from unseen_ray.runs.resume import open_run
from unseen_ray.runs.run import Run, clear_checkpoints, clear_pixels, clear_stages
from unseen_ray.runs.tasks import Job, make_job
from unseen_ray.storage.tables import parts_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.pruning.executor import Executor, Observer
    from unseen_ray.runs.manifest import Manifest
    from unseen_ray.runs.result_cache import ResultCache

__all__ = [
    "StageObserver",
    "check",
    "run_pipeline",
]

logger = logging.getLogger(__name__)

StageObserver = Callable[[list[StageEntry], np.ndarray], None]
"""Takes the manifest's entries of the finished stages, and the ids that they kept."""


def run_pipeline(
    config: PruneConfig,
    *,
    executor: Executor,
    on_event: Observer,
    cache: ResultCache | None = None,
    on_stage: StageObserver | None = None,
    checked: bool = False,
    fresh: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Run:
    """Do a run, or what is left of it; the same configuration gives the same ids.

    Args:
        config: the run.
        executor: where tasks run.
        on_event: receives progress and finished tasks.
        cache: work shared with concurrent runs.
        on_stage: called before each later stage with the entries of the stages before it, and the ids that they kept.
        checked: whether `check` has passed for this configuration.
        fresh: whether to delete the run that `out` holds, once all checks of this one have passed.
        limits: how many rows are held at once; longer tables are stored in parts and read in pieces.

    Raises:
        UnseenError: see `unseen_ray.errors`; finished work is kept.
    """
    source = open_source(source_ref(config.source))
    info = with_groups(source, config.group)
    resolved = ResolvedRun.of(config, info.size_px)
    if not checked:
        check(resolved, info, limits)
    if fresh:
        check_replaced(config)
    with open_run(config, source_entry(info), fresh=fresh) as run:
        warn_of_edits(run.folder.root, run.manifest.environment, code_of(config))
        if run.manifest.finished:
            return _already_finished(run, config)
        resolved = _as_before(resolved, run)
        job = _without_skipped(make_job(resolved.for_scoring(), info, limits, run.folder.fence), run)
        runner, plan = _prepare(run, resolved, job, source, executor, on_event, cache)
        for stage in plan.stages[len(run.manifest.stages) :]:
            if on_stage is not None and stage.index:
                on_stage(runner.run.manifest.stages, runner.builder.ids.resolve(runner.population))
            runner.extend(stage)
        return _finish(runner, plan, source)


def check(resolved: ResolvedRun, info: SourceInfo, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse what is known to fail before anything starts, and name what of the source is passed over.

    Raises:
        ConfigError, DataError: what is wrong.
    """
    config = resolved.config
    if info.passed_over:
        logger.warning("source %s: passed over %s.", info.name, info.passed_over)
    check_functions(resolved)
    check_out(config)
    for model in (config.model, config.scoring.model):
        if isinstance(model, dict) or not isinstance(model, (str, type(None))) or is_target(model):
            model_builder(model)
    population = make_population(
        info.labels_N,
        info.num_classes,
        holdout=config.holdout,
        seed=config.seed,
        groups=info.groups,
        chunk_rows=limits.rows_of_a_chunk,
    )
    plan_run(resolved, population)
    check_test(config, info)
    check_lenders(config, info)


def _already_finished(run: Run, config: PruneConfig) -> Run:
    """Clear what an interrupted end left; name files that are requested now and that the run did not keep."""
    logger.info("%s is finished already; nothing to do", run.folder.root)
    for field, name in (("save_features", FEATURES), ("save_probs", probs_file(0))):
        if getattr(config, field) and name not in run.manifest.files:
            logger.warning(
                "%s was not set when the run was made, and it holds no such file. Prune in a new folder; --reuse %s takes over the rest.",
                field,
                run.folder.root,
            )
    clear_stages(run)
    clear_pixels(run.folder)
    return run.released()


def _without_skipped(job: Job, run: Run) -> Job:
    """The job without the samples that could not be read when the run began: they would join its later stages alone."""
    if not (skipped := run.manifest.source.skipped_ids):
        return job
    logger.warning("samples that could not be read when the run began stay left out: %d", len(skipped))
    return job.prepared(job.resolved, np.array(skipped, np.int64))


def _prepare(
    run: Run,
    resolved: ResolvedRun,
    job: Job,
    source: Source,
    executor: Executor,
    on_event: Observer,
    cache: ResultCache | None,
) -> tuple[StageRunner, RunPlan]:
    """Get the executor ready and commit what that resolved; what runs the stages, and the plan of them."""
    started = time.monotonic()
    prepared = executor.prepare(job, source)
    if run.manifest.stages:
        check_readable(source, job, prepared.job)
    job = prepared.job
    population = job.population(source.info.labels_N)
    plan = plan_run(resolved := resolved.on_hardware_of(job.config), population)
    for warning in plan.warnings:
        logger.warning("%s", warning)
    began, goes_on = run.manifest.environment.get("device"), prepared.environment["device"]
    if resolved.config.recipe.deterministic and began not in (None, goes_on):
        logger.warning(
            "recipe.deterministic holds on one device: the run began on %s and goes on on %s", began, goes_on
        )
    run = run.commit(
        config=resolved.config.to_json(),
        environment={**prepared.environment, **_kept_of(run.manifest, resolved)},
        source=with_population(run.manifest.source, population, source, job.skipped_ids),
    )
    runner = StageRunner(
        run=run,
        job=job,
        population=population,
        executor=executor,
        observer=on_event,
        cache=cache,
        started=started,
        trials=plan.trials,
    )
    return runner, plan


def _kept_of(manifest: Manifest, resolved: ResolvedRun) -> dict[str, Any]:
    """What a run's environment keeps from its first start on."""
    code = {**code_of(resolved.config), **manifest.environment.get(CODE, {})}
    return {**({EXACT_SCORES: True} if resolved.exact else {}), **({CODE: code} if code else {})}


def _finish(runner: StageRunner, plan: RunPlan, source: Source) -> Run:
    run = runner.run
    _check_unchanged(run, runner.job)
    run.check_ours()
    # A crash before the commit leaves files that the next start overwrites. After one behind it, `_already_finished` clears the rest,
    # but for checkpoints, which may be an evaluation's.
    files = runner.builder.finish(run, source)
    stages, before = run.manifest.stages, run.manifest.files
    grown = {part for stage in stages for part in parts_of(stage_coreset(stage.index), before)}
    kept = {name: digest for name, digest in before.items() if name not in grown}
    run = run.commit(files={**kept, **files}, cost=cost_of(stages, runner.elapsed(), bill=plan.bill()), finished=True)
    clear_stages(run)
    clear_checkpoints(run.folder)
    clear_pixels(run.folder)
    return run.released()


def _check_unchanged(run: Run, job: Job) -> None:
    """DataError if the source is not what the run began with: models before and after the change would have read two data sets."""
    try:
        info = open_source(job.source).info
    # Of any kind, as a source of the user's own may raise; what was read before is none the worse.
    except Exception as error:
        logger.warning("the source cannot be opened again, to see whether it changed while the run read it: %s", error)
        return
    if not run.manifest.source.is_same_data(info):
        raise DataError(
            f"source {info.name} changed while the run read it, so that its scores may be of two data sets. Restore the data and "
            "run the same line again, or begin anew with --fresh (fresh=True)."
        )


def _as_before(resolved: ResolvedRun, run: Run) -> ResolvedRun:
    """Keep the precision, the weights and the rounding with which the run was begun: other ones would give other votes."""
    manifest = run.manifest
    return resolved.as_begun(manifest.config, exact=manifest.has_exact_scores) if manifest.environment else resolved
