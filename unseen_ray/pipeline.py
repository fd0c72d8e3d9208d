"""The method: K fold models vote, the policy picks the first target, then the coreset grows stage by stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.accounts import cost_of, population_entry, source_entry, stage_entry, warn_of_chance
from unseen_ray.catalog import model_builder
from unseen_ray.choosing import Kept, apply_policy, features_for
from unseen_ray.config import PruneConfig
from unseen_ray.core.arrays import positions_of
from unseen_ray.core.coreset import Coreset
from unseen_ray.core.ids import ArrayIds
from unseen_ray.core.population import Population, make_population
from unseen_ray.core.schedule import Stage
from unseen_ray.executor import Executor, Observer
from unseen_ray.guarding import with_suspects
from unseen_ray.job import EvalResult, Job, Progress, Receipt
from unseen_ray.judging import judge
from unseen_ray.merging import MergeRequest
from unseen_ray.parts import parts_of, remove_table, write_table
from unseen_ray.planning import RunPlan, plan_run, tasks_of, votes_each, with_model
from unseen_ray.preflight import check_functions, check_lenders, check_test
from unseen_ray.resolve import is_target
from unseen_ray.run import CORESET, KEYS, Run, clear_checkpoints, clear_pixels, coreset_of, open_run
from unseen_ray.scoring import score_name
from unseen_ray.sharing import Shelf
from unseen_ray.sources import Source, SourceInfo, default_test, open_source, source_ref
from unseen_ray.stage_work import StageWork
from unseen_ray.storage import absolute_path
from unseen_ray.votes import features_file, probs_file, scores_file
from unseen_ray.weights import with_init

__all__ = [
    "StageObserver",
    "check",
    "make_job",
    "prune",
]

logger = logging.getLogger(__name__)

StageObserver = Callable[[list[dict[str, Any]], np.ndarray], None]
"""Takes the manifest's entries of the finished stages, and the ids that they kept."""


def prune(
    config: PruneConfig,
    *,
    executor: Executor,
    on_event: Observer,
    shelf: Shelf | None = None,
    on_stage: StageObserver | None = None,
    checked: bool = False,
) -> Run:
    """Do a run, or what is left of it; the same configuration gives the same ids.

    Args:
        config: the run.
        executor: where the work is done.
        on_event: is told of progress and of finished tasks.
        shelf: work that is shared with runs at work beside this one.
        on_stage: is told before each later stage what the stages before it were, and which ids they kept.
        checked: whether somebody has called `check` with this configuration before.

    Raises:
        UnseenError: see `unseen_ray.errors`; nothing that was finished is lost.
    """
    source = open_source(source_ref(config.source))
    info = source.info
    if not checked:
        check(config, info)
    config_with_model = with_model(config, info.size_px)
    with open_run(config, source_entry(info)) as run:
        if run.manifest.finished:
            logger.info("%s is finished already; nothing to do", run.folder.root)
            _warn_of_late_wishes(config, run)
            return run
        job = make_job(with_init(_as_before(config_with_model, run), before=_weights_before(run)), info)
        return _prune(run, job, source, executor, on_event, shelf, on_stage)


def check(config: PruneConfig, info: SourceInfo) -> None:
    """Refuse a run that cannot be done, as far as that is known before anything starts.

    Raises:
        ConfigError, DataError: with what is wrong.
    """
    check_functions(config)
    if isinstance(config.model, dict) or not isinstance(config.model, (str, type(None))) or is_target(config.model):
        model_builder(config.model)
    population = make_population(info.labels_N, info.num_classes, holdout=config.holdout, seed=config.seed)
    plan_run(with_model(config, info.size_px), population)
    with_init(config)
    check_test(config, info)
    check_lenders(config)


def _warn_of_late_wishes(config: PruneConfig, run: Run) -> None:
    """Say what a finished run does not hold and is asked to keep."""
    for field, name in (("save_features", features_file()), ("save_probs", probs_file(0))):
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
    shelf: Shelf | None,
    on_stage: StageObserver | None,
) -> Run:
    began = time.monotonic()
    prepared = executor.prepare(job, source)
    job = job.resolved(prepared.config, prepared.skipped_ids)
    population = job.population(source.info.labels_N)
    plan = plan_run(job.config, population)
    for warning in plan.warnings:
        logger.warning("%s", warning)
    run = run.commit(
        config=job.config.to_json(),
        environment=prepared.environment,
        source={**run.manifest.source, **population_entry(population, source, prepared.skipped_ids)},
    )
    before: float = run.manifest.cost.get("seconds", 0.0)  # of earlier starts, up to their last finished stage

    def elapsed_s() -> float:
        return round(before + time.monotonic() - began, 3)

    def observe(event: Progress | Receipt | EvalResult) -> None:
        if run.lease is not None:
            run.lease.check()
        on_event(event)

    work = StageWork(run=run, job=job, population=population, executor=executor, on_event=observe, shelf=shelf)
    run = _grow(work, plan, elapsed_s, on_stage)
    return _finish(run, source, population, elapsed_s)


def make_job(config: PruneConfig, info: SourceInfo) -> Job:
    """What every task of a run shares."""
    ref = source_ref(config.source)
    test = source_ref(config.test, field="test") if config.test is not None else default_test(ref)
    assert config.out is not None
    return Job(
        config=config,
        source=ref.absolute(),
        test=test and test.absolute(),
        fingerprint=info.fingerprint,
        num_classes=info.num_classes,
        size_px=info.size_px,
        out=absolute_path(config.out),
    )


def _grow(work: StageWork, plan: RunPlan, elapsed_s: Callable[[], float], on_stage: StageObserver | None) -> Run:
    run, job, population, executor = work.run, work.job, work.population, work.executor
    coreset = _restore(run)
    for stage in plan.stages[len(run.manifest.stages) :]:
        if on_stage is not None and stage.index:
            on_stage(run.manifest.stages, coreset.ids)
        began = time.monotonic()
        candidates = np.setdiff1d(population.ids_N, coreset.ids, assume_unique=True)
        tasks = tasks_of(stage, job.config, ArrayIds(coreset.ids))
        receipts = work.receipts(tasks)
        request = MergeRequest(
            stage=stage.index, ids_M=candidates, num_parts=len(tasks), votes_each=votes_each(stage.index, job.config)
        )
        table, files = executor.merge(request)
        scores = table.column(score_name(job.config.score)).to_numpy()
        kept = Kept.of(coreset.ids, population.labels_of(coreset.ids), population.num_classes)
        guarded = with_suspects(table, run.table(scores_file(0)) if stage.index else table)
        features = features_for(run, job.config, population, receipts)
        picked = apply_policy(job.config, guarded, budget=stage.added, kept=kept, features=features)
        coreset = coreset.extend(stage.index, candidates[picked], scores[picked])
        changes = _finished_stage(run, stage, coreset, population, receipts, table, files, time.monotonic() - began)
        run = run.commit(**changes, cost={"seconds": elapsed_s()})
    return run


def _finished_stage(
    run: Run,
    stage: Stage,
    coreset: Coreset,
    population: Population,
    receipts: list[Receipt],
    table: pa.Table,
    files: dict[str, str],
    seconds: float,
) -> dict[str, Any]:
    """What a finished stage adds to the manifest; its coreset is on storage by then."""
    labels = population.labels_of(coreset.ids)
    columns = {"id": coreset.ids, "label": labels, "stage": coreset.stages, "score": coreset.scores}
    name = _coreset_name(stage.index)
    files = {**files, **write_table(run.folder, name, pa.table(columns))}
    for receipt in receipts:
        files |= receipt.files
    entry = stage_entry(stage, table, receipts, seconds)
    warn_of_chance(entry, table)
    logger.info(
        "stage=%d kept=%d added=%d accuracy=%.4f seconds=%.1f",
        stage.index,
        stage.target,
        stage.added,
        entry["accuracy"],
        seconds,
    )
    return {"stages": [*run.manifest.stages, entry], "files": {**run.manifest.files, **files}}


def _finish(run: Run, source: Source, population: Population, elapsed_s: Callable[[], float]) -> Run:
    keys = pa.table({"id": population.ids_N, "key": pa.array(source.keys(population.ids_N.tolist()), pa.string())})
    files = write_table(run.folder, KEYS, keys)
    coreset = _restore(run)
    places = positions_of(coreset.ids, population.ids_N)
    table = pa.table(
        {
            "id": coreset.ids,
            "key": keys.column("key").take(pa.array(places)),
            "label": population.labels_N[places],
            "stage": coreset.stages,
            "score": coreset.scores,
        }
    )
    files |= write_table(run.folder, CORESET, table)
    judge(PruneConfig.from_json(run.manifest.asked), run.table(scores_file(0)), coreset.ids, source.info.class_names)
    stages, before = run.manifest.stages, run.manifest.files
    grown = {part for stage in stages for part in parts_of(_coreset_name(stage["index"]), before)}
    kept = {name: digest for name, digest in before.items() if name not in grown}
    run = run.commit(files={**kept, **files}, cost=cost_of(stages, elapsed_s()), finished=True)
    for stage in stages:
        remove_table(run.folder, _coreset_name(stage["index"]), before)
    clear_checkpoints(run.folder)
    clear_pixels(run.folder)
    return run


def _coreset_name(stage: int) -> str:
    return f"stage-{stage:02d}/coreset.parquet"


def _restore(run: Run) -> Coreset:
    if not run.manifest.stages:
        return Coreset.empty()
    return coreset_of(run.table(_coreset_name(run.manifest.stages[-1]["index"])))


def _as_before(config: PruneConfig, run: Run) -> PruneConfig:
    """What an earlier start of the run resolved stays: another machine must not change the bits."""
    if not run.manifest.environment:
        return config
    recipe = config.recipe.model_copy(update={"precision": run.manifest.config["recipe"]["precision"]})
    return config.model_copy(update={"recipe": recipe})


def _weights_before(run: Run) -> str | None:
    """SHA-256 of the weights that an earlier start of the run began with."""
    recipe = run.manifest.config["recipe"] if run.manifest.environment else {}
    digest: str | None = recipe.get("init_sha256")
    return digest
