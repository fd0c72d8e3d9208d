"""One trial of a sweep, as Ray Tune calls it: prune, measure the coreset on the holdout, leave a record."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray import tune

from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.core.arrays import IdArray
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.errors import UnseenError
from unseen_ray.evaluation.trainings import Chosen, evaluate
from unseen_ray.execution.ray.executor import ClusterContext, RayExecutor
from unseen_ray.pruning.pipeline import prune
from unseen_ray.runs.entries import Receipt, StageEntry
from unseen_ray.runs.evaluation_file import known_results
from unseen_ray.runs.layout import CORESET, vote_file
from unseen_ray.runs.run import Run
from unseen_ray.runs.tasks import EvalResult, Progress
from unseen_ray.runs.votes import read_key
from unseen_ray.runs.work_cache import WorkCache
from unseen_ray.storage.filesystem import Folder
from unseen_ray.sweep.config import SweepConfig
from unseen_ray.sweep.records import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Record,
    is_done,
    read_record,
    trial_folder,
    write_record,
)
from unseen_ray.sweep.space import Knobs, knobs_of
from unseen_ray.sweep.trials import Keeping, Trial, trial_of

__all__ = ["KNOBS", "Common", "ended", "run_trial"]

KNOBS = "knobs"
CACHE = "work"
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Common:
    """What all trials of a sweep are given.

    Attributes:
        sweep: the sweep.
        keeping: what every run stores for the others.
        root: the sweep's folder.
        source: the data, by absolute paths: a trial runs in another folder.
        claims: the actor of a `sharing.ClaimBook`.
        groundwork: decoded pixels and what the first worker said of itself.
    """

    sweep: SweepConfig
    keeping: Keeping
    root: str
    source: Any
    claims: Any
    groundwork: ClusterContext


class _Claims:
    """TaskClaims that an actor keeps."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def claim(self, owner: str, keys: list[str]) -> list[str]:
        claimed: list[str] = ray.get(self._actor.claim.remote(owner, keys))
        return claimed

    def release(self, owner: str, keys: list[str]) -> None:
        ray.get(self._actor.release.remote(owner, keys))

    def beat(self, owner: str) -> None:
        self._actor.beat.remote(owner)


def run_trial(config: dict[str, Any], *, common: Common) -> None:
    """What Tune calls: a failure that would come again ends the trial, and is in its record."""
    knobs = knobs_of(common.sweep.space, config.get(KNOBS, config))
    folder, began = Folder(common.root), time.monotonic()
    try:
        trial = trial_of(common.sweep, knobs, common.keeping)
        owner = tune.get_context().get_trial_id()
        with WorkCache(folder.path(CACHE), owner, _Claims(common.claims)) as cache:
            while not cache.claim([trial.name]):  # an open search may come to the same place twice
                time.sleep(_PAUSE_S)
            _Trial(common, trial, cache, began).run()
            cache.release([trial.name])
    except UnseenError as error:
        seconds = round(time.monotonic() - began, 3)
        failed = Record(name=_name_of(common, knobs), knobs=knobs, status=FAILED, error=str(error), seconds=seconds)
        write_record(folder, failed)
        tune.report({"failed": 1})  # without any report Tune says so on stdout


def ended(common: Common, config: Mapping[str, Any], error: str) -> Record:
    """The record of a trial whose process is over, put in order: what is still running there was stopped, or lost."""
    knobs = knobs_of(common.sweep.space, dict(config.get(KNOBS, config)))
    name, folder = _name_of(common, knobs), Folder(common.root)
    record = read_record(folder, name)
    if record is None or error or record.status == RUNNING:
        begun = record or Record(name=name, knobs=knobs, status=RUNNING)
        lost = error or not begun.accuracies
        record = replace(
            begun, status=FAILED if lost else STOPPED, error=error or ("it left no result" if lost else "")
        )
        write_record(folder, record)
    return record


def _name_of(common: Common, knobs: Knobs) -> str:
    try:
        return trial_of(common.sweep, knobs, common.keeping).name
    except UnseenError:  # a place in the space where no run can be
        return fingerprint_of(*map(repr, sorted(knobs.items())))[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What came out of one run of a trial; see `Record`."""

    kept: int
    fraction: float  # of N that the schedule has it keep
    accuracies: dict[str, tuple[float, ...]]  # of the coreset and of each baseline
    choosing_seconds: float
    gpu_seconds: float
    image_passes: int
    measured: tuple[str, ...]
    trainings: tuple[tuple[int, str], ...] = ()


class _Trial:
    """The runs of one configuration, one after the other."""

    def __init__(self, common: Common, trial: Trial, cache: WorkCache, began: float) -> None:
        self._common, self._trial, self._cache, self._began = common, trial, cache, began
        self._root = Folder(common.root)

    def run(self) -> None:
        """Do every run; the last report stands for all of them. What an earlier start has finished is only told."""
        known = read_record(self._root, self._trial.name)
        if known is not None and is_done(known, self._common.sweep):
            tune.report(_said(known))
            return
        outcomes: list[_Outcome] = []
        for asked in self._trial.runs:
            out = self._root.path(f"{trial_folder(self._trial.name)}/seed-{asked.seed}")
            outcomes.append(self._outcome_of(asked.model_copy(update={"source": self._common.source, "out": out})))
        self._note(FINISHED, outcomes)

    def _outcome_of(self, config: PruneConfig) -> _Outcome:
        executor = RayExecutor(address=None, tasks=0, groundwork=self._common.groundwork)
        aside = config.model_copy(update={"out": f"{config.out}/measured"})
        before: list[str] = []

        def on_stage(stages: list[StageEntry], ids: IdArray) -> None:
            outcome = self._measure(executor.beside(), aside, ids, stages)
            before.extend(outcome.measured)
            self._note(RUNNING, [outcome])

        try:
            run = prune(
                config,
                executor=executor,
                on_event=_unheard,
                cache=self._cache,
                on_stage=on_stage if self._common.sweep.scheduler is not None else None,
                checked=True,
            )
            ids = np.asarray(run.table(CORESET).column("id"))
            outcome = self._measure(executor.beside(), config, ids, run.manifest.stages)
        finally:
            executor.close()
        return replace(outcome, measured=(*dict.fromkeys([*before, *outcome.measured]),), trainings=_trainings_of(run))

    def _measure(self, executor: RayExecutor, config: PruneConfig, ids: IdArray, stages: list[StageEntry]) -> _Outcome:
        """Train the proxy on a coreset and its baselines, and measure on the holdout."""
        sweep = self._common.sweep
        try:
            table = evaluate(
                _proxied(sweep, config, self._common.groundwork),
                {"coreset": Chosen((ids,), None)},
                against=sweep.measured_against(),
                skipped_ids=self._common.groundwork.skipped_ids,
                seeds=sweep.proxy.trainings,
                budget="epochs",
                executor=executor,
                on_event=_unheard,
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
        """Leave a record, then tell Tune, which may end this process upon it."""
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
        write_record(self._root, record)
        tune.report({**_said(record), "kept_percent": 100 * outcomes[-1].fraction})


def _said(record: Record) -> dict[str, float]:
    """What Tune and its schedulers are told."""
    leads = {f"over_{name}": record.accuracy - statistics.fmean(its) for name, its in record.baselines.items()}
    return {"accuracy": record.accuracy, "cost": record.cost, **leads}


def _proxied(sweep: SweepConfig, config: PruneConfig, ground: ClusterContext) -> ResolvedRun:
    """What measures: the proxy's model and recipe, the same for every trial, whatever scored."""
    recipe = Recipe(**recipe_values(sweep.proxy.recipe or sweep.run.get("recipe") or "quick"))
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": ground.probe["precision"]})
    model = sweep.proxy.model or sweep.run.get("model")
    return ResolvedRun.of(config.model_copy(update={"model": model, "recipe": recipe}), ground.size_px)


def _trainings_of(run: Run) -> tuple[tuple[int, str], ...]:
    """Stage and name of every scoring model behind a run, whoever trained it."""
    return tuple(
        (stage.index, (read_key(run.folder, vote_file(stage.index, task.index)) or "unknown")[:16])
        for stage in run.manifest.stages
        for task in stage.tasks
    )


def _unheard(event: Progress | Receipt | EvalResult) -> None:
    """Nobody listens inside a trial."""
