"""One trial of a sweep, as Ray Tune calls it: prune, measure the coreset on the holdout, write a record."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import tune

from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.core.arrays import IdArray
from unseen_ray.errors import UnseenError
from unseen_ray.evaluation.arms import ArmSubsets
from unseen_ray.evaluation.trainings import train_and_measure
from unseen_ray.pruning.pipeline import run_pipeline
from unseen_ray.runs.evaluation_file import known_results
from unseen_ray.runs.layout import CORESET, vote_file
from unseen_ray.runs.manifest_entries import Receipt, StageEntry
from unseen_ray.runs.result_cache import ResultCache
from unseen_ray.runs.run import Run
from unseen_ray.runs.tasks import EvalResult, Progress
from unseen_ray.runs.votes import read_key
from unseen_ray.storage.filesystem import Folder
from unseen_ray.sweeps.config import SweepConfig
from unseen_ray.sweeps.context import CONFIG_KEY, SweepContext, trial_name
from unseen_ray.sweeps.layout import CACHE, trial_folder
from unseen_ray.sweeps.records import (
    FAILED,
    FINISHED,
    RUNNING,
    Record,
    is_done,
    read_record,
    write_record,
)
from unseen_ray.sweeps.space import knobs_of
from unseen_ray.sweeps.trials import Trial, trial_of

if TYPE_CHECKING:
    from unseen_ray.execution.ray.executor import ClusterContext, RayExecutor

__all__ = ["run_trial"]

_PAUSE_S = 1.0


class _Claims:
    """`TaskClaims` kept by an actor, for all trials."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def claim(self, owner: str, keys: list[str]) -> list[str]:
        claimed: list[str] = ray.get(self._actor.claim.remote(owner, keys))
        return claimed

    def release(self, owner: str, keys: list[str]) -> None:
        ray.get(self._actor.release.remote(owner, keys))

    def beat(self, owner: str) -> None:
        self._actor.beat.remote(owner)


def run_trial(config: dict[str, Any], *, context: SweepContext) -> None:
    """Run the trial of a Tune configuration.

    An error of ours would happen again, so it ends the trial and goes into its record; Tune starts the trial anew after
    any other one.
    """
    knobs = knobs_of(context.sweep.space, config.get(CONFIG_KEY, config))
    folder, began = context.folder, time.monotonic()
    try:
        trial = trial_of(context.sweep, knobs, context.keeping)
        owner = tune.get_context().get_trial_id()
        with ResultCache(folder.path(CACHE), owner, _Claims(context.claims)) as cache:
            # An open search may propose one configuration twice at a time: the second trial waits for the first one's record.
            while not cache.claim([trial.name]):
                time.sleep(_PAUSE_S)
            _Trial(context, trial, cache, began).run()
            cache.release([trial.name])
    except UnseenError as error:
        seconds = round(time.monotonic() - began, 3)
        failed = Record(name=trial_name(context, knobs), knobs=knobs, status=FAILED, error=str(error), seconds=seconds)
        write_record(folder, failed)
        tune.report({"failed": 1})  # Tune complains on stdout about a trial that reports nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The results of one run of a trial; see `Record`."""

    kept: int
    fraction: float  # of N that the schedule keeps at this stage
    accuracies: dict[str, tuple[float, ...]]  # of the coreset and of each baseline
    choosing_seconds: float
    gpu_seconds: float
    image_passes: int
    measured: tuple[str, ...]
    trainings: tuple[tuple[int, str], ...] = ()


class _Trial:
    """The runs of one configuration, one after the other."""

    def __init__(self, context: SweepContext, trial: Trial, cache: ResultCache, began: float) -> None:
        self._context, self._trial, self._cache, self._began = context, trial, cache, began
        self._root = context.folder

    def run(self) -> None:
        """Make every run, then report their mean; a trial that an earlier start finished only reports its record."""
        known = read_record(self._root, self._trial.name)
        if known is not None and is_done(known, self._context.sweep):
            tune.report(_metrics(known))
            return
        outcomes: list[_Outcome] = []
        for asked in self._trial.runs:
            out = self._root.path(f"{trial_folder(self._trial.name)}/seed-{asked.seed}")
            outcomes.append(self._outcome_of(asked.model_copy(update={"source": self._context.source, "out": out})))
        self._note(FINISHED, outcomes)

    def _outcome_of(self, config: PruneConfig) -> _Outcome:
        executor = self._context.new_executor()
        # A folder of its own: the run's own folder gets the measurement of its last stage alone.
        aside = config.model_copy(update={"out": f"{config.out}/measured"})
        before: list[str] = []

        def on_stage(stages: list[StageEntry], ids: IdArray) -> None:
            outcome = self._measure(executor.sharing_pool(), aside, ids, stages)
            before.extend(outcome.measured)
            self._note(RUNNING, [outcome])

        try:
            run = run_pipeline(
                config,
                executor=executor,
                on_event=_drop,
                cache=self._cache,
                # Only a scheduler needs the coresets of earlier stages, and each costs trainings.
                on_stage=on_stage if self._context.sweep.scheduler is not None else None,
                checked=True,
            )
            ids = np.asarray(run.table(CORESET, ["id"]).column("id"))
            outcome = self._measure(executor.sharing_pool(), config, ids, run.manifest.stages)
        finally:
            executor.close()
        return replace(outcome, measured=(*dict.fromkeys([*before, *outcome.measured]),), trainings=_trainings_of(run))

    def _measure(self, executor: RayExecutor, config: PruneConfig, ids: IdArray, stages: list[StageEntry]) -> _Outcome:
        """Train the proxy on a coreset and on its baselines, and measure on the holdout."""
        sweep = self._context.sweep
        try:
            table = train_and_measure(
                _proxied(sweep, config, self._context.cluster),
                {"coreset": ArmSubsets((ids,), None)},
                against=sweep.measured_against(),
                skipped_ids=self._context.cluster.skipped_ids,
                seeds=sweep.proxy.trainings,
                budget="epochs",
                executor=executor,
                on_event=_drop,
                on_holdout=True,
                cache=self._cache,
            )
        finally:
            executor.close()
        assert config.out is not None
        return _Outcome(
            kept=len(ids),
            fraction=config.fractions()[len(stages) - 1],
            accuracies={arm.name: arm.accuracies for arm in table.arms},
            choosing_seconds=sum(stage.fit_seconds for stage in stages),
            gpu_seconds=sum(stage.gpu_seconds for stage in stages),
            image_passes=sum(stage.image_passes + stage.scored for stage in stages),
            measured=tuple(known_results(Folder(config.out))),
        )

    def _note(self, status: str, outcomes: Sequence[_Outcome]) -> None:
        """Write a record, then report to Tune."""
        joined: dict[str, tuple[float, ...]] = {}
        for outcome in outcomes:
            for name, values in outcome.accuracies.items():
                joined[name] = (*joined.get(name, ()), *values)
        record = Record(
            name=self._trial.name,
            knobs=self._trial.knobs,
            status=status,
            kept=outcomes[-1].kept,
            accuracies=joined.pop("coreset"),
            baselines=joined,
            choosing_seconds=round(statistics.fmean(outcome.choosing_seconds for outcome in outcomes), 3),
            gpu_seconds=round(statistics.fmean(outcome.gpu_seconds for outcome in outcomes), 3),
            image_passes=round(statistics.fmean(outcome.image_passes for outcome in outcomes)),
            trainings=tuple(each for outcome in outcomes for each in outcome.trainings),
            measured=tuple(each for outcome in outcomes for each in outcome.measured),
            seconds=round(time.monotonic() - self._began, 3),
        )
        # In this order: the scheduler may stop this process as soon as it has the report.
        write_record(self._root, record)
        tune.report({**_metrics(record), "kept_percent": 100 * outcomes[-1].fraction})


def _metrics(record: Record) -> dict[str, float]:
    """The metrics that Tune's search and scheduler read."""
    leads = {f"over_{name}": record.accuracy - statistics.fmean(its) for name, its in record.baselines.items()}
    return {"accuracy": record.accuracy, "cost": record.cost, **leads}


def _proxied(sweep: SweepConfig, config: PruneConfig, cluster: ClusterContext) -> ResolvedRun:
    """The run with the proxy's model and recipe, which are the same for every trial, whichever model scored."""
    recipe = Recipe(**recipe_values(sweep.proxy.recipe or sweep.run.get("recipe") or "quick"))
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": cluster.worker_info["precision"]})
    model = sweep.proxy.model or sweep.run.get("model")
    return ResolvedRun.of(config.model_copy(update={"model": model, "recipe": recipe}), cluster.size_px)


def _trainings_of(run: Run) -> tuple[tuple[int, str], ...]:
    """Stage and key of every scoring model of a run, whether this trial or another one trained it."""
    return tuple(
        (stage.index, (read_key(run.folder, vote_file(stage.index, task.index)) or "unknown")[:16])
        for stage in run.manifest.stages
        for task in stage.tasks
    )


def _drop(event: Progress | Receipt | EvalResult) -> None:
    """Progress inside a trial is not shown."""
