"""Train the same recipe on the coreset and on its baselines, and measure each model after the last epoch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unseen_ray.core.tasks import EvalTask
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.evaluation.arms import ArmSubsets, class_samples_of, eval_tasks
from unseen_ray.evaluation.checks import PRECISE_AGAINST, MeasuredSet, test_set_of
from unseen_ray.evaluation.precision import next_seeds
from unseen_ray.evaluation.table import Arm, AskedBudget, Budget, Evaluation, arm_of, break_even_of, differences_of
from unseen_ray.execution.pixel_cache import plan_files
from unseen_ray.plugins import jsonable
from unseen_ray.pruning.trials.measured import MeasuredTrainings
from unseen_ray.pruning.validate import check_readable
from unseen_ray.runs.evaluation_file import store_results, stored_tables, with_table
from unseen_ray.runs.layout import CHECKPOINTS
from unseen_ray.runs.run import clear_checkpoints, clear_pixels
from unseen_ray.runs.tasks import EvalResult, Job, make_job
from unseen_ray.storage.filesystem import Folder, absolute_path
from unseen_ray.storage.lock import held

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.pruning.executor import Executor, Observer
    from unseen_ray.runs.result_cache import ResultCache

__all__ = ["train_and_measure"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trainings:
    """The trainings of an evaluation, and what they have in common."""

    job: Job
    info: SourceInfo
    population: Population
    test: MeasuredSet
    chosen: Mapping[str, ArmSubsets]
    arms: Sequence[str]
    budgets: Mapping[Budget, int | None]  # how many epochs its trainings take; None for what the job's recipe says

    def tasks(self, seeds: int) -> list[list[EvalTask]]:
        """The trainings of each budget's table."""
        tasks = eval_tasks(self.chosen, self.arms, self.population, seeds, self.job.config.seed)
        # All samples take the same steps under either budget: one training serves both tables.
        of_full = self.budgets.get("epochs")
        return [
            [replace(task, epochs=of_full if task.arm == "full" else epochs) for task in tasks]
            for epochs in self.budgets.values()
        ]

    def key(self, task: EvalTask) -> str:
        """What determines a training's result: equal keys give equal models, whichever arm asks."""
        sample = [self.test.sample] if self.test.sample else []
        return fingerprint_of(self.job.fit_key(task, self.population), self.test.fingerprint, *sample)

    def former_key(self, task: EvalTask) -> str:
        """The key that versions gave which did not look at the bytes of a test set."""
        return fingerprint_of(self.job.fit_key(task, self.population), self.test.fingerprint)


def train_and_measure(
    resolved: ResolvedRun,
    chosen: Mapping[str, ArmSubsets],
    *,
    against: Sequence[str],
    skipped_ids: IdArray,
    seeds: int,
    budget: AskedBudget,
    executor: Executor,
    on_event: Observer,
    until: float | None = None,
    on_holdout: bool = False,
    cache: ResultCache | None = None,
) -> Evaluation:
    """Train and measure every arm with every seed; results that `config.out` already holds are reused.

    Args:
        resolved: the run's configuration, with the model and the recipe to train.
        chosen: the coreset first, then other chosen arms, each with as many subsets as the coreset.
        against: the other arms in the order of the table; those that are not in `chosen` are drawn here.
        skipped_ids: rows that the run left out.
        seeds, until, budget: see `evaluate`.
        executor, on_event: where to train, and what is called with every progress event and result.
        on_holdout: measure on the run's holdout even if there is a test set.
        cache: results shared with other runs that are active at the same time.

    Raises:
        ConfigError: if there is nothing to measure on.
    """
    arms = list(dict.fromkeys([*list(chosen)[:1], *against]))
    with held(Folder(absolute_path(resolved.config.out or ""))) as lock:
        folder = lock.folder
        work, environment = _prepared(folder, resolved, chosen, arms, skipped_ids, budget, executor, on_holdout)
        training = MeasuredTrainings(folder, work.key, executor, on_event, lock.check, cache, work.former_key)
        stored, tables = _rounds(work, training, environment, seeds, until)
        lock.check()
        _store(folder, stored, tables)
        _clear(folder)
    return replace(tables[0], others=tuple(tables[1:]))


def _rounds(
    work: _Trainings, training: MeasuredTrainings, environment: dict[str, Any], seeds: int, until: float | None
) -> tuple[dict[str, EvalResult], list[Evaluation]]:
    """Train with so many seeds, and with more `until` the intervals are narrow enough; results by key, and the tables."""
    by_table = work.tasks(seeds)
    stored = training.results(itertools.chain(*by_table))
    tables = [_table(work, tasks, stored, environment) for tasks in by_table]
    more = None if until is None else _more_seeds(tables, seeds, until)
    return (stored, tables) if more is None else _rounds(work, training, environment, more, until)


def _more_seeds(tables: Sequence[Evaluation], seeds: int, until: float) -> int | None:
    """How often to train each subset next; None if every interval is narrow enough, or none is to get narrower."""
    widths = [
        100 * found.half_width for table in tables for found in table.differences if found.baseline == PRECISE_AGAINST
    ]
    more = next_seeds(seeds, widths, [table.seeds_for(until, PRECISE_AGAINST) for table in tables], until)
    if more is not None:
        logger.info("after %d seeds the widest interval is ±%.2f points; training up to %d", seeds, max(widths), more)
    return more


def _store(folder: Folder, stored: Mapping[str, EvalResult], tables: Sequence[Evaluation]) -> None:
    written = stored_tables(folder)
    for table in reversed(tables):  # the first comes last and so is the newest, which the report shows first
        written = with_table(written, table.to_json())
    store_results(folder, stored, written)


def _clear(folder: Folder) -> None:
    # Checkpoints that are left belong to another evaluation, which may still be resumed.
    if not Folder(folder.path(CHECKPOINTS)).files():
        clear_checkpoints(folder)
    clear_pixels(folder)


def _prepared(
    folder: Folder,
    resolved: ResolvedRun,
    chosen: Mapping[str, ArmSubsets],
    arms: Sequence[str],
    skipped_ids: IdArray,
    budget: AskedBudget,
    executor: Executor,
    on_holdout: bool,
) -> tuple[_Trainings, dict[str, Any]]:
    """The trainings to make, and the environment of the workers that will make them."""
    source = open_source(source_ref(resolved.config.source))
    info = with_groups(source, resolved.config.group)
    job = make_job(resolved, info, fence=folder.fence).prepared(resolved, skipped_ids)
    # A sweep chooses by this accuracy, so it must never see the test set.
    if on_holdout:
        job = replace(job, test=None)
    population = job.population(info.labels_N)
    test = test_set_of(job, population, info)
    if test.source is not None:
        job = replace(job, test_pixels=plan_files(job, test.source))
    budgeted, budgets = _budgeted(resolved, budget, len(population))
    prepared = executor.prepare(job.prepared(budgeted, skipped_ids), source)
    check_readable(source, job, prepared.job)
    work = _Trainings(
        job=prepared.job, info=info, population=population, test=test, chosen=chosen, arms=arms, budgets=budgets
    )
    return work, prepared.environment


def _table(
    work: _Trainings, tasks: Sequence[EvalTask], stored: Mapping[str, EvalResult], environment: dict[str, Any]
) -> Evaluation:
    recipe = work.job.recipe_of(tasks[0])
    arms = tuple(_arm(work, [task for task in tasks if task.arm == name], stored) for name in work.arms)
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


def _arm(work: _Trainings, tasks: Sequence[EvalTask], stored: Mapping[str, EvalResult]) -> Arm:
    name = tasks[0].arm
    choice = work.chosen.get(name, ArmSubsets((), 0.0))
    return arm_of(
        name,
        [_as_of(task, stored[work.key(task)]) for task in tasks],
        [class_samples_of(task, work.population) for task in tasks],
        choosing_s=choice.seconds,
        choosing_devices=choice.devices,
        drawn=name not in work.chosen or bool(choice.draws),
    )


def _budgeted(
    resolved: ResolvedRun, budget: AskedBudget, num_samples: int
) -> tuple[ResolvedRun, dict[Budget, int | None]]:
    """The recipe with as many epochs, or steps, for every subset as a training on all samples gets.

    Under both budgets the recipe has the steps, and the second value the epochs of those trainings that count them.
    """
    recipe, workers = resolved.config.recipe, resolved.workers_of_fit(of_fold=False)
    if recipe.steps is not None:
        return resolved, {"iterations": None}
    # Without min_steps: it would raise the epochs of the small subsets alone, and they would no longer compare.
    changes: dict[str, Any] = {"epochs": recipe.epochs_of(num_samples, workers=workers), "min_steps": 0}
    if changes["epochs"] != recipe.epochs:
        logger.info(
            "every subset trains for as many epochs as the full set: %d, raised from %d by recipe.min_steps %d",
            changes["epochs"],
            recipe.epochs,
            recipe.min_steps,
        )
    if budget == "epochs":
        return resolved.with_recipe(**changes), {"epochs": None}
    in_steps = resolved.with_recipe(epochs=None, steps=recipe.plan(num_samples, workers=workers)[1])
    return in_steps, {"iterations": None} if budget == "iterations" else {
        "epochs": changes["epochs"],
        "iterations": None,
    }


def _as_of(task: EvalTask, result: EvalResult) -> EvalResult:
    """A stored result under this task's name: two arms may train on the same samples."""
    return replace(result, task=task.name, arm=task.arm, selection=task.selection, repeat=task.repeat)
