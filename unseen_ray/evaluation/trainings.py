"""Train the same recipe on the coreset and on its baselines, and measure each model after the last epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unseen_ray.core.tasks import EvalTask
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.evaluation.arms import ArmSubsets, class_samples_of, eval_tasks
from unseen_ray.evaluation.checks import MeasuredSet, test_set_of
from unseen_ray.evaluation.table import Arm, Budget, Evaluation, arm_of, break_even_of, differences_of
from unseen_ray.plugins import jsonable
from unseen_ray.runs.evaluation_file import known_results, store_results, stored_tables, with_table
from unseen_ray.runs.layout import CHECKPOINTS
from unseen_ray.runs.result_cache import ResultCache, once
from unseen_ray.runs.run import clear_checkpoints, clear_pixels
from unseen_ray.runs.tasks import EvalResult, Job, Progress, make_job
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import RunLock, held

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.pruning.executor import Executor, Observer
    from unseen_ray.runs.manifest_entries import Receipt

__all__ = ["train_and_measure"]

logger = logging.getLogger(__name__)

_Place = tuple[str, int, int]  # arm, selection, repeat


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trainings:
    """The trainings of an evaluation, and what they have in common."""

    job: Job
    info: SourceInfo
    population: Population
    test: MeasuredSet
    chosen: Mapping[str, ArmSubsets]
    arms: Sequence[str]
    tasks: Sequence[EvalTask]

    def key(self, task: EvalTask) -> str:
        """What determines a training's result: equal keys give equal models, whichever arm asks."""
        return fingerprint_of(self.job.fit_key(task, self.population), self.test.fingerprint)


def train_and_measure(
    resolved: ResolvedRun,
    chosen: Mapping[str, ArmSubsets],
    *,
    against: Sequence[str],
    skipped_ids: IdArray,
    seeds: int,
    budget: Budget,
    executor: Executor,
    on_event: Observer,
    on_holdout: bool = False,
    cache: ResultCache | None = None,
) -> Evaluation:
    """Train and measure every arm with every seed; results that `config.out` already holds are reused.

    Args:
        resolved: the run's configuration, with the model and the recipe to train.
        chosen: the coreset first, then other chosen arms, each with as many subsets as the coreset.
        against: the other arms in the order of the table; those that are not in `chosen` are drawn here.
        skipped_ids: rows that the run left out.
        seeds: number of trainings of each subset.
        budget: see `Evaluation`.
        executor: where to train.
        on_event: called with every progress event and result.
        on_holdout: measure on the run's holdout even if there is a test set.
        cache: results shared with other runs that are active at the same time.

    Raises:
        ConfigError: if there is nothing to measure on.
    """
    arms = list(dict.fromkeys([*list(chosen)[:1], *against]))
    work, environment = _prepared(resolved, chosen, arms, skipped_ids, seeds, budget, executor, on_holdout=on_holdout)
    with held(folder := Folder(work.job.out)) as lock:
        stored = _train(work, folder, executor, on_event, lock, cache)
        table = _table(work, stored, environment)
        # Another driver may have taken over the folder during the trainings.
        lock.check()
        store_results(folder, stored, with_table(stored_tables(folder), table.to_json()))
        _clear(folder)
    return table


def _clear(folder: Folder) -> None:
    # Checkpoints that are left belong to another evaluation, which may still be resumed.
    if not Folder(folder.path(CHECKPOINTS)).files():
        clear_checkpoints(folder)
    clear_pixels(folder)


def _prepared(
    resolved: ResolvedRun,
    chosen: Mapping[str, ArmSubsets],
    arms: Sequence[str],
    skipped_ids: IdArray,
    seeds: int,
    budget: Budget,
    executor: Executor,
    *,
    on_holdout: bool,
) -> tuple[_Trainings, dict[str, Any]]:
    """The trainings to make, and the environment of the workers that will make them."""
    source = open_source(source_ref(resolved.config.source))
    info = source.info
    job = make_job(resolved, info).prepared(resolved, skipped_ids)
    # A sweep chooses by this accuracy, so it must never see the test set.
    if on_holdout:
        job = replace(job, test=None)
    population = job.population(info.labels_N)
    test = test_set_of(job, population, info)
    job = job.prepared(_budgeted(resolved, budget, len(population)), skipped_ids)
    prepared = executor.prepare(job, source)
    tasks = eval_tasks(chosen, arms, population, seeds, resolved.config.seed)
    work = _Trainings(
        job=prepared.job, info=info, population=population, test=test, chosen=chosen, arms=arms, tasks=tasks
    )
    return work, prepared.environment


def _table(work: _Trainings, stored: Mapping[str, EvalResult], environment: dict[str, Any]) -> Evaluation:
    recipe = work.job.config.recipe
    arms = tuple(_arm(name, work, stored) for name in work.arms)
    return Evaluation(
        test=work.test.name,
        test_samples=work.test.samples,
        model=str(jsonable(work.job.config.model)),
        recipe=recipe.model_dump(),
        budget="epochs" if recipe.steps is None else "iterations",
        environment=environment,
        class_names=work.info.class_names or tuple(map(str, range(work.job.num_classes))),
        arms=arms,
        differences=differences_of(arms),
        break_even=break_even_of(arms) if recipe.steps is None else None,
    )


def _arm(name: str, work: _Trainings, stored: Mapping[str, EvalResult]) -> Arm:
    tasks = [task for task in work.tasks if task.arm == name]
    choice = work.chosen.get(name, ArmSubsets((), 0.0))
    return arm_of(
        name,
        [_as_of(task, stored[work.key(task)]) for task in tasks],
        [class_samples_of(task, work.population) for task in tasks],
        choosing_s=choice.seconds,
        choosing_devices=choice.devices,
        drawn=name not in work.chosen or bool(choice.draws),
    )


def _train(
    work: _Trainings,
    folder: Folder,
    executor: Executor,
    on_event: Observer,
    lock: RunLock,
    cache: ResultCache | None,
) -> dict[str, EvalResult]:
    """Results by key: those that the folder already holds, and those of the remaining trainings."""
    stored, tables = known_results(folder), stored_tables(folder)
    keys = {_place(task): work.key(task) for task in work.tasks}

    def keep(event: Progress | Receipt | EvalResult) -> None:
        lock.check()
        if isinstance(event, EvalResult):
            key = keys[event.arm, event.selection, event.repeat]
            stored[key] = event
            # After every training, so that an interrupted evaluation loses none.
            store_results(folder, stored, tables)
            if cache is not None:
                cache.put_result(key, event)
                cache.release([key])
        on_event(event)

    def cached(task: EvalTask) -> EvalResult | None:
        result = None if cache is None else cache.get_result(keys[_place(task)])
        if result is not None:
            stored[keys[_place(task)]] = result
            on_event(result)
        return result

    left = [task for task in work.tasks if keys[_place(task)] not in stored]
    if done := len(work.tasks) - len(left):
        logger.info("reusing the results of %d of %d trainings", done, len(work.tasks))
    if cache is None:
        executor.evaluate(left, keep)
    else:
        names = [keys[_place(task)] for task in left]
        once(left, names, known=cached, do=lambda its: executor.evaluate(its, keep), cache=cache, rest=executor.rest)
    return stored


def _budgeted(resolved: ResolvedRun, budget: Budget, num_samples: int) -> ResolvedRun:
    """The recipe with as many epochs, or steps, for every subset as a training on all samples gets."""
    recipe, workers = resolved.config.recipe, resolved.workers_of_fit(of_fold=False)
    if recipe.steps is not None:
        return resolved
    # Without min_steps: it would raise the epochs of the small subsets alone, and they would no longer compare.
    changes: dict[str, Any] = {"epochs": recipe.epochs_of(num_samples, workers=workers), "min_steps": 0}
    if changes["epochs"] != recipe.epochs:
        logger.info(
            "every subset trains for as many epochs as the full set: %d, raised from %d by recipe.min_steps %d",
            changes["epochs"],
            recipe.epochs,
            recipe.min_steps,
        )
    if budget == "iterations":
        changes = {"epochs": None, "steps": recipe.plan(num_samples, workers=workers)[1]}
    return resolved.with_recipe(**changes)


def _place(task: EvalTask) -> _Place:
    return task.arm, task.selection, task.repeat


def _as_of(task: EvalTask, result: EvalResult) -> EvalResult:
    """A stored result under this task's name: two arms may train on the same samples."""
    return replace(result, task=task.name, arm=task.arm, selection=task.selection, repeat=task.repeat)
