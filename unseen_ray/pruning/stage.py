"""The stages of a run, one after the other: tasks, merged scores, a larger coreset, a commit to the manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unseen_ray.config.score_columns import plug_label
from unseen_ray.plugins import jsonable
from unseen_ray.pruning.coreset_builder import CoresetBuilder
from unseen_ray.pruning.merge import MergeRequest, merge_request, scores_of
from unseen_ray.pruning.plan import tasks_of
from unseen_ray.pruning.selection import choice_by_rule
from unseen_ray.pruning.trials.measured import MeasuredTrainings
from unseen_ray.pruning.trials.plan import TrialPlan
from unseen_ray.pruning.trials.rounds import PolicyChoice, choose_policy, measured_by
from unseen_ray.pruning.warnings import suggest_weights, warn_of_chance
from unseen_ray.runs.manifest_entries import Cost, Receipt, StageEntry, StageSummary, stage_entry
from unseen_ray.runs.result_cache import ResultCache, once
from unseen_ray.runs.votes import copy_votes, find_receipt
from unseen_ray.storage.filesystem import Folder

if TYPE_CHECKING:
    from unseen_ray.core.samples.population import Population
    from unseen_ray.core.schedule import Stage
    from unseen_ray.core.tasks import ScoreTask
    from unseen_ray.pruning.executor import Executor, Observer
    from unseen_ray.runs.run import Run
    from unseen_ray.runs.tasks import EvalResult, Job, Progress
    from unseen_ray.storage.tables import StoredTable

__all__ = ["StageRunner"]

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class StageRunner:
    """Runs the stages of a run that are left.

    Attributes:
        run: with its finished stages; each stage adds its own.
        job, population: what the run's tasks share.
        executor: where tasks run.
        observer: receives progress and the receipts of finished tasks.
        cache: work shared with concurrent runs; None for a run on its own.
        started: `time.monotonic()` when this process took up the run.
        trials: that decide on the policy; None without.
        builder: the coreset so far.
    """

    run: Run
    job: Job
    population: Population
    executor: Executor
    observer: Observer
    cache: ResultCache | None
    started: float
    trials: TrialPlan | None = None
    builder: CoresetBuilder = field(init=False)
    _earlier: Cost = field(init=False)

    def __post_init__(self) -> None:
        self.builder = CoresetBuilder(self.run, self.job, self.population)
        self._earlier = self.run.manifest.cost  # earlier starts, up to their last finished stage

    def elapsed(self) -> Cost:
        """The time that the run has taken, with that of earlier starts."""
        seconds = round(self._earlier.seconds + time.monotonic() - self.started, 3)
        waited = round((self._earlier.waiting_seconds or 0.0) + self.executor.waited_s(), 3)
        return Cost(seconds=seconds, **({"waiting_seconds": waited} if waited else {}))

    def extend(self, stage: Stage) -> None:
        """Run a stage: score its candidates, merge their scores, add the top, commit."""
        began, executor = time.monotonic(), self.executor
        tasks = tasks_of(stage, self.job.config, self.builder.ids, limits=self.job.limits)
        receipts = self._reused(tasks)
        done = {receipt.index for receipt in receipts}
        if left := [task for task in tasks if task.index not in done]:
            receipts += executor.score(left, self._observe) if self.cache is None else self._score_shared(left)
        receipts.sort(key=lambda receipt: receipt.index)
        self.run.check_ours()  # another process may have taken over the run while these tasks trained
        merged = executor.merge(self._merge_request(stage, tasks))
        self.run.check_ours()
        scores = scores_of(merged, self.run.folder, stage.index)
        if (decision := self._decision(stage, scores)) is not None:
            logger.info("policy auto uses %s: %s", plug_label(decision.policy), decision.reason)
        policy = None if decision is None or self.trials is not None else decision.policy
        grown = self.builder.extend(self.run, stage, scores, receipts, policy)
        files = {**self.run.manifest.files, **merged.files, **grown}
        for receipt in receipts:
            files |= receipt.files
        entry = _finished_stage(stage, merged.summary, receipts, time.monotonic() - began, decision)
        suggest_weights(self.job.config, entry, samples=merged.summary.rows, size_px=self.job.size_px)
        # Last: a manifest names complete files only, and a restart repeats from the first stage that it does not name.
        stages = [*self.run.manifest.stages, entry]
        why = {"policy_reason": decision.reason} if decision is not None and not stage.index else {}
        self.run = self.run.commit(stages=stages, files=files, cost=self.elapsed(), **why)

    def _merge_request(self, stage: Stage, tasks: list[ScoreTask]) -> MergeRequest:
        return merge_request(
            self.job,
            self.population,
            stage=stage.index,
            kept=self.builder.ids,
            num_kept=self.builder.count,
            num_parts=len(tasks),
            votes_each=self.job.resolved.votes_each(stage.index),
            files=self.run.manifest.files,
        )

    def _decision(self, stage: Stage, scores: StoredTable) -> PolicyChoice | None:
        """What `policy: auto` uses; None for other policies, and in stages after the one whose trials decided for them."""
        if self.trials is not None and stage.index:
            return None
        if self.trials is None:
            by_rule = choice_by_rule(self.job.config, scores, stage.added, self.builder.counts_C)
            return None if by_rule is None else PolicyChoice(policy=by_rule.policy, reason=by_rule.reason)
        key, check = measured_by(self.job, self.population), self.run.check_ours
        training = MeasuredTrainings(self.run.folder, key, self.executor, self.observer, check)
        decision = choose_policy(self.job, self.population, self.trials, scores, training)
        self.builder.use(decision.policy)
        return decision

    def _reused(self, tasks: list[ScoreTask]) -> list[Receipt]:
        """Receipts of the tasks whose votes are on storage already, in this run or in others that it may use."""
        receipts = [receipt for task in tasks if (receipt := self._find(task)) is not None]
        for receipt in receipts:
            logger.info("%s was finished before; its scores are reused", receipt.task)
            self._observe(receipt)
        return receipts

    def _find(self, task: ScoreTask) -> Receipt | None:
        keys, folder = self.job.task_keys(task, self.population), self.run.folder
        for key in keys:  # several: votes stored with more columns than this run keeps serve it as well
            if (receipt := find_receipt(folder, task.stage, task.index, key)) is not None:
                if self.cache is not None:  # the run may have been killed before it could lend
                    self.cache.put_votes(folder, task.stage, task.index, key)
                return receipt
        for lender in self.job.config.reuse or []:
            for key in keys:
                if (receipt := copy_votes(Folder(lender), folder, task.stage, task.index, key)) is not None:
                    return receipt
        return None if self.cache is None else self._find_in_cache(self.cache, task)

    def _find_in_cache(self, cache: ResultCache, task: ScoreTask) -> Receipt | None:
        for key in self.job.task_keys(task, self.population):
            receipt = cache.get_votes(self.run.folder, task.stage, task.index, key, task.name)
            if receipt is not None:
                return receipt
        return None

    def _score_shared(self, tasks: list[ScoreTask]) -> list[Receipt]:
        """Score tasks, each once among all runs that share the cache; wait for those that another run is scoring."""
        cache = self.cache
        assert cache is not None
        key_of = {task.index: self.job.task_key(task, self.population) for task in tasks}

        def find(task: ScoreTask) -> Receipt | None:
            if (receipt := self._find_in_cache(cache, task)) is not None:
                self._observe(receipt)
            return receipt

        def lend(event: Progress | Receipt | EvalResult) -> None:
            if isinstance(event, Receipt):
                key = key_of[event.index]
                cache.put_votes(self.run.folder, tasks[0].stage, event.index, key)
                cache.release([key])
            self._observe(event)

        return once(
            tasks,
            [key_of[task.index] for task in tasks],
            known=find,
            do=lambda mine: self.executor.score(mine, lend),
            cache=cache,
            rest=self.executor.rest,
        )

    def _observe(self, event: Progress | Receipt | EvalResult) -> None:
        self.run.check_ours()
        self.observer(event)


def _finished_stage(
    stage: Stage, summary: StageSummary, receipts: list[Receipt], seconds: float, decision: PolicyChoice | None
) -> StageEntry:
    """The manifest's entry of a stage whose coreset is on storage."""
    entry = stage_entry(stage, summary, receipts, seconds)
    if decision is not None:
        entry = entry.model_copy(
            update={
                "policy": jsonable(decision.policy),
                "trials": decision.trials,
                "fit_seconds": round(entry.fit_seconds + _seconds_of(decision.results), 3),
                "gpu_seconds": round(
                    entry.gpu_seconds + _seconds_of(each for each in decision.results if each.device != "cpu"), 3
                ),
            }
        )
    warn_of_chance(entry, summary)
    logger.info(
        "stage=%d kept=%d added=%d accuracy=%.4f seconds=%.1f",
        stage.index,
        stage.target,
        stage.added,
        entry.vote_accuracy,
        seconds,
    )
    return entry


def _seconds_of(results: Iterable[EvalResult]) -> float:
    return sum(result.worker_seconds for result in results)
