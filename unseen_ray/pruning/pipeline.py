"""The method: K fold models vote, the policy picks the first target, then the coreset grows stage by stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.models import model_builder
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.schedule import Stage
from unseen_ray.data.sources.registry import Source, SourceInfo, open_source, source_ref
from unseen_ray.plugins import is_target
from unseen_ray.pruning.coreset_builder import CoresetBuilder, clear_stages
from unseen_ray.pruning.executor import Executor, Observer
from unseen_ray.pruning.merge import merge_request, scores_of
from unseen_ray.pruning.plan import RunPlan, plan_run, tasks_of
from unseen_ray.pruning.stage import StageWork
from unseen_ray.pruning.validate import check_functions, check_lenders, check_replaced, check_test
from unseen_ray.pruning.warnings import warn_of_chance
from unseen_ray.runs.layout import FEATURES, probs_file, stage_coreset
from unseen_ray.runs.manifest_entries import (
    Cost,
    Receipt,
    StageEntry,
    StageSummary,
    cost_of,
    source_entry,
    stage_entry,
    with_population,
)
from unseen_ray.runs.result_cache import ResultCache
from unseen_ray.runs.run import Run, clear_checkpoints, clear_pixels, open_run
from unseen_ray.runs.tasks import EvalResult, Job, Progress, make_job
from unseen_ray.storage.tables import parts_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

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
        executor: where the work is done.
        on_event: is told of progress and of finished tasks.
        shelf: work that is shared with runs at work beside this one.
        on_stage: is told before each later stage what the stages before it were, and which ids they kept.
        checked: whether somebody has called `check` with this configuration before.
        fresh: whether the run that `out` holds gives way to this one, once nothing speaks against this one any more.
        limits: how many rows are held at once; beyond, tables are stored in parts and read by pieces.

    Raises:
        UnseenError: see `unseen_ray.errors`; nothing that was finished is lost.
    """
    source = open_source(source_ref(config.source))
    info = source.info
    resolved = ResolvedRun.of(config, info.size_px)
    if not checked:
        check(resolved, info, limits)
    if fresh:
        check_replaced(config)
    with open_run(config, source_entry(info), fresh=fresh) as run:
        if run.manifest.finished:
            logger.info("%s is finished already; nothing to do", run.folder.root)
            _warn_of_late_wishes(config, run)
            clear_stages(run)
            clear_pixels(run.folder)
            return run
        return _prune(
            run, make_job(_as_before(resolved, run), info, limits), source, executor, on_event, cache, on_stage
        )


def check(resolved: ResolvedRun, info: SourceInfo, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse a run that cannot be done, as far as that is known before anything starts.

    Raises:
        ConfigError, DataError: with what is wrong.
    """
    config = resolved.config
    check_functions(resolved)
    if isinstance(config.model, dict) or not isinstance(config.model, (str, type(None))) or is_target(config.model):
        model_builder(config.model)
    population = make_population(
        info.labels_N,
        info.num_classes,
        holdout=config.holdout,
        seed=config.seed,
        chunk_rows=limits.rows_of_a_chunk,
    )
    plan_run(resolved, population)
    check_test(config, info)
    check_lenders(config)


def _warn_of_late_wishes(config: PruneConfig, run: Run) -> None:
    """Say what a finished run does not hold and is asked to keep."""
    for field, name in (("save_features", FEATURES), ("save_probs", probs_file(0))):
        if getattr(config, field) and name not in run.manifest.files:
            logger.warning(
                "%s was not set when the run was made, and it holds no such file. Prune in a new folder; --reuse %s takes over the rest.",
                field,
                run.folder.root,
            )


def _prune(
    run: Run,
    job: Job,
    source: Source,
    executor: Executor,
    on_event: Observer,
    cache: ResultCache | None,
    on_stage: StageObserver | None,
) -> Run:
    began = time.monotonic()
    prepared = executor.prepare(job, source)
    job = prepared.job
    population = job.population(source.info.labels_N)
    plan = plan_run(job.resolved, population)
    for warning in plan.warnings:
        logger.warning("%s", warning)
    run = run.commit(
        config=job.config.to_json(),
        environment=prepared.environment,
        source=with_population(run.manifest.source, population, source, job.skipped_ids),
    )
    before = run.manifest.cost.seconds  # of earlier starts, up to their last finished stage

    def elapsed_s() -> float:
        return round(before + time.monotonic() - began, 3)

    def observe(event: Progress | Receipt | EvalResult) -> None:
        run.check_ours()
        on_event(event)

    work = StageWork(run=run, job=job, population=population, executor=executor, on_event=observe, cache=cache)
    run, builder = _grow(work, plan, elapsed_s, on_stage)
    return _finish(run, source, builder, elapsed_s)


def _grow(
    work: StageWork, plan: RunPlan, elapsed_s: Callable[[], float], on_stage: StageObserver | None
) -> tuple[Run, CoresetBuilder]:
    run, job, population, executor = work.run, work.job, work.population, work.executor
    builder = CoresetBuilder(run, job, population)
    for stage in plan.stages[len(run.manifest.stages) :]:
        if on_stage is not None and stage.index:
            on_stage(run.manifest.stages, builder.ids.resolve(population))
        began = time.monotonic()
        tasks = tasks_of(stage, job.config, builder.ids, limits=job.limits)
        receipts = work.receipts(tasks)
        request = merge_request(
            job,
            population,
            stage=stage.index,
            kept=builder.ids,
            num_kept=builder.count,
            num_parts=len(tasks),
            votes_each=job.resolved.votes_each(stage.index),
        )
        run.check_ours()
        merged = executor.merge(request)
        run.check_ours()
        grown = builder.extend(run, stage, scores_of(merged, run.folder, stage.index), receipts)
        files = {**run.manifest.files, **merged.files, **grown}
        for receipt in receipts:
            files |= receipt.files
        entry = _finished_stage(stage, merged.summary, receipts, time.monotonic() - began)
        run = run.commit(stages=[*run.manifest.stages, entry], files=files, cost=Cost(seconds=elapsed_s()))
    return run, builder


def _finished_stage(stage: Stage, summary: StageSummary, receipts: list[Receipt], seconds: float) -> StageEntry:
    """What the manifest says of a stage whose coreset is on storage."""
    entry = stage_entry(stage, summary, receipts, seconds)
    warn_of_chance(entry, summary)
    logger.info(
        "stage=%d kept=%d added=%d accuracy=%.4f seconds=%.1f",
        stage.index,
        stage.target,
        stage.added,
        entry.accuracy,
        seconds,
    )
    return entry


def _finish(run: Run, source: Source, builder: CoresetBuilder, elapsed_s: Callable[[], float]) -> Run:
    run.check_ours()
    files = builder.finish(run, source)
    stages, before = run.manifest.stages, run.manifest.files
    grown = {part for stage in stages for part in parts_of(stage_coreset(stage.index), before)}
    kept = {name: digest for name, digest in before.items() if name not in grown}
    run = run.commit(files={**kept, **files}, cost=cost_of(stages, elapsed_s()), finished=True)
    clear_stages(run)
    clear_checkpoints(run.folder)
    clear_pixels(run.folder)
    return run


def _as_before(resolved: ResolvedRun, run: Run) -> ResolvedRun:
    """What an earlier start of the run resolved stays."""
    if not run.manifest.environment:
        return resolved
    recipe = run.manifest.config["recipe"]
    return resolved.as_begun(recipe["precision"], recipe.get("init_sha256"))
