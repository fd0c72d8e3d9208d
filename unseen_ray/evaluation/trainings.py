"""Is the pruned set as good as the full one? The same recipe on the coreset and on baselines, after the last epoch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import jsonable
from unseen_ray.core.arrays import IdArray
from unseen_ray.core.samples.id_sets import AllIds, ArrayIds, IdSet
from unseen_ray.core.samples.population import Population
from unseen_ray.core.seeds import derive, digest_ids
from unseen_ray.core.tasks import EvalTask
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.evaluation.baselines import matched_subset, random_subset
from unseen_ray.evaluation.table import Arm, Budget, Evaluation, arm_of, break_even_of, differences_of
from unseen_ray.plugins import did_you_mean
from unseen_ray.pruning.executor import Executor, Observer
from unseen_ray.pruning.pipeline import make_job
from unseen_ray.pruning.validate import check_test_set
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.evaluation_file import known_results, store_results, stored_tables, with_table
from unseen_ray.runs.layout import CHECKPOINTS
from unseen_ray.runs.run import clear_checkpoints, clear_pixels
from unseen_ray.runs.tasks import EvalResult, Job, Progress
from unseen_ray.runs.work_cache import WorkCache, once
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import RunLock, held

__all__ = ["ARMS", "BUDGETS", "DEFAULT_AGAINST", "DEFAULT_SEEDS", "Chosen", "check_evaluable", "evaluate"]

logger = logging.getLogger(__name__)

ARMS = ("random", "random_matched", "full", "fitting")
BUDGETS: tuple[Budget, ...] = ("epochs", "iterations")
DEFAULT_SEEDS = 3
DEFAULT_AGAINST = ("random", "full")

_Place = tuple[str, int, int]  # arm, selection, repeat


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """An arm whose subsets were chosen before.

    Attributes:
        subsets: sorted ids of each choice.
        seconds: seconds of workers that one choice took, None where it is not known.
        devices: what these worked on, where that is known.
    """

    subsets: tuple[IdArray, ...]
    seconds: float | None
    devices: tuple[str, ...] = ()


def evaluate(
    resolved: ResolvedRun,
    chosen: Mapping[str, Chosen],
    *,
    against: Sequence[str],
    skipped_ids: IdArray,
    seeds: int,
    budget: Budget,
    executor: Executor,
    on_event: Observer,
    on_holdout: bool = False,
    cache: WorkCache | None = None,
) -> Evaluation:
    """Train and measure every arm with every seed; what `config.out` holds already is not trained again.

    Args:
        resolved: the run's configuration, with the model and the recipe to train.
        chosen: the coreset first, and what else was chosen before, each as often as the others.
        against: the other arms in the order of the table; those that are not in `chosen` are drawn here.
        skipped_ids: rows that the run left out.
        seeds: how many trainings each choice of an arm gets.
        budget: see `Evaluation`.
        executor: where to train.
        on_event: is told of progress.
        on_holdout: whether to measure on the run's holdout though there is a test set.
        shelf: work that is shared with runs at work beside this one.

    Raises:
        ConfigError: if there is nothing to measure on.
    """
    config = resolved.config
    source = open_source(source_ref(config.source))
    info = source.info
    job = make_job(resolved, info).prepared(resolved, skipped_ids)
    if on_holdout:
        job = replace(job, test=None)
    population = job.population(info.labels_N)
    name, test_samples, test_print = _test_of(job, population, info)
    job = job.prepared(_budgeted(resolved, budget, len(population)), skipped_ids)
    prepared = executor.prepare(job, source)
    job = prepared.job
    arms = list(dict.fromkeys([*list(chosen)[:1], *against]))
    tasks = _tasks(chosen, arms, population, seeds, config.seed)
    keys = {_place(task): _key(job, task, population, test_print) for task in tasks}
    folder, recipe = Folder(job.out), job.config.recipe
    with held(folder) as lease:
        stored = _train(tasks, keys, folder, executor, on_event, lease, cache)
        lines = _lines(arms, tasks, {_place(task): stored[keys[_place(task)]] for task in tasks}, chosen, population)
        table = Evaluation(
            test=name,
            test_samples=test_samples,
            model=str(jsonable(job.config.model)),
            recipe=recipe.model_dump(),
            budget="epochs" if recipe.steps is None else "iterations",
            environment=prepared.environment,
            class_names=info.class_names or tuple(map(str, range(job.num_classes))),
            arms=lines,
            differences=differences_of(lines),
            break_even=break_even_of(lines) if recipe.steps is None else None,
        )
        lease.check()
        store_results(folder, stored, with_table(stored_tables(folder), table.to_json()))
        if not Folder(folder.path(CHECKPOINTS)).files():  # those of another evaluation, which may go on, stay
            clear_checkpoints(folder)
        clear_pixels(folder)
    return table


def _train(
    tasks: list[EvalTask],
    keys: Mapping[_Place, str],
    folder: Folder,
    executor: Executor,
    on_event: Observer,
    lease: RunLock,
    cache: WorkCache | None,
) -> dict[str, EvalResult]:
    """Results by what determines them: those that the folder holds already, and those of what was left to train."""
    stored, tables = known_results(folder), stored_tables(folder)

    def keep(event: Progress | Receipt | EvalResult) -> None:
        lease.check()
        if isinstance(event, EvalResult):
            key = keys[event.arm, event.selection, event.repeat]
            stored[key] = event
            store_results(folder, stored, tables)
            if cache is not None:
                cache.lend_result(key, event)
                cache.release([key])
        on_event(event)

    def awaited(task: EvalTask) -> EvalResult | None:
        result = None if cache is None else cache.borrow_result(keys[_place(task)])
        if result is not None:
            stored[keys[_place(task)]] = result
            on_event(result)
        return result

    left = [task for task in tasks if keys[_place(task)] not in stored]
    if len(left) < len(tasks):
        logger.info("%d of %d trainings were done before; their results are used", len(tasks) - len(left), len(tasks))
    if cache is None:
        executor.evaluate(left, keep)
    else:
        names = [keys[_place(task)] for task in left]
        once(left, names, known=awaited, do=lambda its: executor.evaluate(its, keep), cache=cache, rest=executor.rest)
    return stored


def _lines(
    arms: Sequence[str],
    tasks: Sequence[EvalTask],
    results: Mapping[_Place, EvalResult],
    chosen: Mapping[str, Chosen],
    population: Population,
) -> tuple[Arm, ...]:
    """The table's, one an arm."""
    lines = []
    for arm in arms:
        its = [task for task in tasks if task.arm == arm]
        counts = [population.class_counts(task.train.resolve(population)) for task in its]
        choice = chosen.get(arm, Chosen((), 0.0))
        measured = [_as_of(task, results[_place(task)]) for task in its]
        lines.append(
            arm_of(
                arm,
                measured,
                counts,
                choosing_s=choice.seconds,
                choosing_devices=choice.devices,
                drawn=arm not in chosen,
            )
        )
    return tuple(lines)


def check_evaluable(resolved: ResolvedRun, *, against: Sequence[str], seeds: int, selections: int, budget: str) -> None:
    """Refuse what cannot be measured before anything is trained.

    Raises:
        ConfigError: with every problem at once, or if there is nothing to measure on.
        DataError: if the test set has classes that the source does not have.
    """
    config = resolved.config
    problems = [
        f"against={name!r} is none of {', '.join(ARMS)}.{did_you_mean(name, ARMS)}"
        for name in against
        if name not in ARMS
    ]
    if twice := sorted({name for name in against if list(against).count(name) > 1}):
        problems.append(f"against names {twice[0]!r} more than once; name each baseline once.")
    if seeds < 1:
        problems.append(f"seeds={seeds} must be 1 or more; 3 is the usual least.")
    if selections < 1:
        problems.append(f"selections={selections} must be 1 or more: how often the coreset is chosen.")
    if budget not in BUDGETS:
        problems.append(f"budget={budget!r} is none of {', '.join(BUDGETS)}.{did_you_mean(budget, BUDGETS)}")
    if config.fit is not None:
        problems.append(
            "this run trained by its own `fit`, which evaluate cannot call. Name what to train: --model small_cnn --recipe quick."
        )
    if selections > 1 and config.holdout:
        problems.append(
            f"selections={selections} choose with other seeds, and holdout={config.holdout:g} moves with the seed. "
            "Measure on a test set, from a run without a holdout."
        )
    if problems:
        raise ConfigError(problems)
    info = open_source(source_ref(config.source)).info
    job = make_job(resolved, info)
    _test_of(job, job.population(info.labels_N), info)


def _budgeted(resolved: ResolvedRun, budget: Budget, num_samples: int) -> ResolvedRun:
    """A recipe of as many epochs, or steps, for every subset as all samples would get."""
    recipe, workers = resolved.config.recipe, resolved.workers_of_fit(of_fold=False)
    if recipe.steps is not None:
        return resolved
    changes: dict[str, Any] = {"epochs": recipe.epochs_of(num_samples, workers=workers), "min_steps": 0}
    if changes["epochs"] != recipe.epochs:
        logger.info(
            "every arm trains as many epochs as everything does: %d, raised from %d by recipe.min_steps %d",
            changes["epochs"],
            recipe.epochs,
            recipe.min_steps,
        )
    if budget == "iterations":
        changes = {"epochs": None, "steps": recipe.plan(num_samples, workers=workers)[1]}
    return resolved.with_recipe(**changes)


def _test_of(job: Job, population: Population, info: SourceInfo) -> tuple[str, int, str]:
    if job.test is not None:
        test = open_source(job.test).info
        check_test_set(test, info)
        asked = job.config.test
        name = asked if isinstance(asked, str) else test.name
        if test.fingerprint == info.fingerprint:
            name += " (the very data that is pruned)"
        return name, len(test), test.fingerprint
    if not len(population.holdout_ids):
        raise ConfigError(
            f"there is nothing to measure on: source {info.name} has no test split of its own. Give --test SOURCE with the same "
            "classes, or prune with holdout: 0.2, which sets a part of the source aside."
        )
    return f"holdout of {info.name}", len(population.holdout_ids), digest_ids(population.holdout_ids)


def _tasks(
    chosen: Mapping[str, Chosen], arms: Sequence[str], population: Population, seeds: int, seed: int
) -> list[EvalTask]:
    coresets = next(iter(chosen.values())).subsets
    tasks: list[EvalTask] = []
    for arm, selection, each in itertools.product(arms, range(len(coresets)), range(seeds)):
        repeat = each
        if arm in chosen:
            train: IdSet = ArrayIds(chosen[arm].subsets[selection])
        elif arm == "full":  # one set: every training of it has another seed
            train, repeat = AllIds(), selection * seeds + each
        else:  # drawn anew for every training
            train = ArrayIds(_drawn(arm, coresets[selection], population, seed, selection, repeat))
        tasks.append(EvalTask(index=len(tasks), arm=arm, selection=selection, repeat=repeat, train=train))
    return tasks


def _drawn(arm: str, coreset_ids: IdArray, population: Population, seed: int, selection: int, repeat: int) -> IdArray:
    which = f"{selection}.{repeat}" if selection else str(repeat)
    drawn = derive(derive(seed, "evaluate random"), which)
    if arm == "random":
        return random_subset(population.ids_N, len(coreset_ids), drawn)
    return matched_subset(population.labels_N, population.ids_N, population.class_counts(coreset_ids), drawn)


def _place(task: EvalTask) -> _Place:
    return task.arm, task.selection, task.repeat


def _as_of(task: EvalTask, result: EvalResult) -> EvalResult:
    """A known result as this task's: two arms may have trained on the same samples."""
    return replace(result, task=task.name, arm=task.arm, selection=task.selection, repeat=task.repeat)


def _key(job: Job, task: EvalTask, population: Population, test_fingerprint: str) -> str:
    return fingerprint_of(job.fit_key(task, population), test_fingerprint)
