"""Is the pruned set as good as the full one? The same recipe on the coreset and on baselines, after the last epoch."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unseen_ray.config import PruneConfig, jsonable
from unseen_ray.core import select
from unseen_ray.core.arrays import IdArray
from unseen_ray.core.ids import AllIds, ArrayIds, IdSet
from unseen_ray.core.population import Population
from unseen_ray.core.seeds import derive, digest_ids
from unseen_ray.core.tasks import EvalTask
from unseen_ray.errors import ConfigError
from unseen_ray.executor import Executor, Observer
from unseen_ray.job import EvalResult, Job, Progress, Receipt
from unseen_ray.pipeline import check_test_classes, make_job
from unseen_ray.resolve import did_you_mean
from unseen_ray.run import clear_checkpoints
from unseen_ray.sources import SourceInfo, open_source, source_ref
from unseen_ray.sources.info import fingerprint_of
from unseen_ray.storage import Folder

__all__ = ["ARMS", "DEFAULT_AGAINST", "DEFAULT_SEEDS", "EVALUATION", "Arm", "Evaluation", "check_against", "evaluate"]

ARMS = ("random", "full", "fitting")
EVALUATION = "evaluation.json"
DEFAULT_SEEDS = 3
DEFAULT_AGAINST = ("random", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One line of the table.

    Attributes:
        name: `coreset`, `random`, `full` or `fitting`.
        samples: how many the models trained on.
        accuracies: of each seed, after the last epoch.
        class_accuracy: mean over seeds, NaN where the test set has none of a class.
        seconds: of all seeds together.
    """

    name: str
    samples: int
    accuracies: tuple[float, ...]
    class_accuracy: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n - 1), NaN for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The table, with what it was measured on, by which recipe, on what hardware and with which versions."""

    test: str
    test_samples: int
    model: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    arms: tuple[Arm, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        arms = [{**asdict(arm), "mean": arm.mean, "std": arm.std} for arm in self.arms]
        values: dict[str, Any] = _without_nan({**asdict(self), "arms": arms})
        return values


def check_against(against: Sequence[str]) -> None:
    """Refuse a baseline that there is none of; ConfigError says which there are."""
    problems = [
        f"against={name!r} is none of {', '.join(ARMS)}.{did_you_mean(name, ARMS)}"
        for name in against
        if name not in ARMS
    ]
    if problems:
        raise ConfigError(problems)


def evaluate(
    config: PruneConfig,
    subsets: dict[str, IdArray],
    *,
    skipped_ids: IdArray,
    seeds: int,
    executor: Executor,
    on_event: Observer,
) -> Evaluation:
    """Train and measure every arm with every seed; what `config.out` holds already is not trained again.

    Args:
        config: the run's, with the model and the recipe to train.
        subsets: ids of the arms that are a fixed set: `coreset`, and `fitting` where it is asked for; `random` and
            `full` with whatever value are made here.
        skipped_ids: rows that the run left out.
        seeds: how many trainings an arm gets.
        executor: where to train.
        on_event: is told of progress.

    Raises:
        ConfigError: if there is nothing to measure on.
    """
    source = open_source(source_ref(config.source))
    info = source.info
    job = make_job(config, info).resolved(config, skipped_ids)
    population = job.population(info.labels_N)
    name, test_samples, test_print = _test_of(job, population, info)
    prepared = executor.prepare(job, source)
    job = job.resolved(prepared.config, prepared.skipped_ids)
    tasks = _tasks(subsets, population, seeds, config.seed)
    folder = Folder(job.out)
    keys = {(task.arm, task.repeat): _key(job, task, population, test_print) for task in tasks}
    known = _known(folder)
    results = {place: known[key] for place, key in keys.items() if key in known}

    def keep(event: Progress | Receipt | EvalResult) -> None:
        if isinstance(event, EvalResult):
            results[event.arm, event.repeat] = event
            _store(folder, {keys[place]: result for place, result in results.items()}, known)
        on_event(event)

    executor.evaluate([task for task in tasks if (task.arm, task.repeat) not in results], keep)
    evaluation = Evaluation(
        test=name,
        test_samples=test_samples,
        model=str(jsonable(job.config.model)),
        recipe=job.config.recipe.model_dump(),
        environment=prepared.environment,
        arms=tuple(_arm(arm, [results[arm, repeat] for repeat in range(seeds)]) for arm in subsets),
    )
    _store(folder, {keys[place]: result for place, result in results.items()}, known, evaluation)
    clear_checkpoints(folder)
    return evaluation


def check_evaluable(config: PruneConfig, seeds: int) -> None:
    """Refuse what cannot be measured before anything is trained.

    Raises:
        ConfigError: if there are no seeds, no model, or nothing to measure on.
        DataError: if the test set has classes that the source does not have.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds} must be 1 or more; 3 is the usual least.")
    if config.fit is not None:
        raise ConfigError(
            "this run trained by its own `fit`, which evaluate cannot call. Name what to train: --model small_cnn --recipe quick."
        )
    info = open_source(source_ref(config.source)).info
    job = make_job(config, info)
    _test_of(job, job.population(info.labels_N), info)


def _test_of(job: Job, population: Population, info: SourceInfo) -> tuple[str, int, str]:
    if job.test is not None:
        test = open_source(job.test).info
        check_test_classes(test, job.num_classes)
        asked = job.config.test
        return asked if isinstance(asked, str) else test.name, len(test), test.fingerprint
    if not len(population.holdout_ids):
        raise ConfigError(
            f"there is nothing to measure on: source {info.name} has no test split of its own. Give --test SOURCE with the same "
            "classes, or prune with holdout: 0.2, which sets a part of the source aside."
        )
    return f"holdout of {info.name}", len(population.holdout_ids), digest_ids(population.holdout_ids)


def _tasks(subsets: dict[str, IdArray], population: Population, seeds: int, seed: int) -> list[EvalTask]:
    size = len(subsets["coreset"])
    tasks: list[EvalTask] = []
    for arm, ids in subsets.items():
        for repeat in range(seeds):
            train: IdSet = ArrayIds(ids)
            if arm == "full":
                train = AllIds()
            elif arm == "random":
                train = ArrayIds(_random_ids(population, size, derive(derive(seed, "evaluate random"), str(repeat))))
            tasks.append(EvalTask(index=len(tasks), arm=arm, repeat=repeat, train=train))
    return tasks


def _random_ids(population: Population, size: int, seed: int) -> IdArray:
    none = np.zeros(population.num_classes, np.int64)
    scores = np.zeros(len(population), np.float32)
    picked = select.random(scores, population.labels_N, population.ids_N, size, kept_C=none, seed=seed)
    return np.sort(population.ids_N[picked])


def _arm(name: str, results: list[EvalResult]) -> Arm:
    per_class = np.array([result.class_accuracy for result in results])
    return Arm(
        name=name,
        samples=results[0].trained,
        accuracies=tuple(result.accuracy for result in results),
        class_accuracy=tuple(float(value) for value in per_class.mean(axis=0)),
        seconds=round(sum(result.seconds for result in results), 3),
    )


def _key(job: Job, task: EvalTask, population: Population, test_fingerprint: str) -> str:
    return fingerprint_of(job.fit_key(task.train.resolve(population), task), test_fingerprint)


def _known(folder: Folder) -> dict[str, EvalResult]:
    data = folder.read(EVALUATION)
    try:
        stored = json.loads(data)["results"] if data else {}
        return {
            key: EvalResult(
                **{**value, "class_accuracy": tuple(math.nan if a is None else a for a in value["class_accuracy"])}
            )
            for key, value in stored.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _store(
    folder: Folder, results: dict[str, EvalResult], known: dict[str, EvalResult], evaluation: Evaluation | None = None
) -> None:
    stored = {key: asdict(result) for key, result in {**known, **results}.items()}
    table = evaluation.to_json() if evaluation else None
    folder.write(EVALUATION, (json.dumps(_without_nan({"table": table, "results": stored}), indent=1) + "\n").encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
