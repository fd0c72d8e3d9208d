"""The tasks of a stage: those that are done already, in this run or in others, and those that are left to do."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from unseen_ray.core.samples.population import Population
from unseen_ray.core.tasks import ScoreTask
from unseen_ray.pruning.executor import Executor, Observer
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.result_cache import ResultCache, once
from unseen_ray.runs.run import Run
from unseen_ray.runs.tasks import EvalResult, Job, Progress
from unseen_ray.runs.votes import borrow_votes, find_receipt
from unseen_ray.storage.filesystem import Folder

__all__ = ["StageWork"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageWork:
    """A run's way to have tasks done.

    Attributes:
        run, job, population: the run.
        executor: where the work is done.
        on_event: is told of progress and of finished tasks.
        shelf: work that is shared with other runs; None for a run by itself.
    """

    run: Run
    job: Job
    population: Population
    executor: Executor
    on_event: Observer
    cache: ResultCache | None = None

    def receipts(self, tasks: list[ScoreTask]) -> list[Receipt]:
        """Receipts in the order of the tasks; work that is on storage already is not done again."""
        known = {task.index: self._found(task) for task in tasks}
        reused = [receipt for receipt in known.values() if receipt is not None]
        for receipt in reused:
            logger.info("%s was finished before; its votes are used", receipt.task)
            self.on_event(receipt)
        left = [task for task in tasks if known[task.index] is None]
        return sorted([*reused, *self._done(left)], key=lambda receipt: receipt.index)

    def _done(self, tasks: list[ScoreTask]) -> list[Receipt]:
        """Do tasks, or have them from another run that does them meanwhile."""
        if not tasks:
            return []
        if self.cache is None:
            return self.executor.score(tasks, self.on_event)
        keys = [self.job.task_key(task, self.population) for task in tasks]
        return once(tasks, keys, known=self._awaited, do=self._lending, cache=self.cache, rest=self.executor.rest)

    def _awaited(self, task: ScoreTask) -> Receipt | None:
        receipt = self._in_cache(task)
        if receipt is not None:
            self.on_event(receipt)
        return receipt

    def _lending(self, tasks: list[ScoreTask]) -> list[Receipt]:
        """Do tasks, and put each one's votes on the shelf as it is done."""
        cache, by_index = self.cache, {task.index: task for task in tasks}
        assert cache is not None

        def lend(event: Progress | Receipt | EvalResult) -> None:
            if isinstance(event, Receipt):
                task = by_index[event.index]
                key = self.job.task_key(task, self.population)
                cache.lend_votes(self.run.folder, task.stage, task.index, key)
                cache.release([key])
            self.on_event(event)

        return self.executor.score(tasks, lend)

    def _found(self, task: ScoreTask) -> Receipt | None:
        """The receipt of a task that this run, or one whose work it may use, has done."""
        keys, folder = self.job.task_keys(task, self.population), self.run.folder
        for key in keys:
            if (receipt := find_receipt(folder, task.stage, task.index, key)) is not None:
                if self.cache is not None:  # the run may have been killed before it could lend
                    self.cache.lend_votes(folder, task.stage, task.index, key)
                return receipt
        for lender in self.job.config.reuse or []:
            for key in keys:
                if (receipt := borrow_votes(Folder(lender), folder, task.stage, task.index, key)) is not None:
                    return receipt
        return self._in_cache(task)

    def _in_cache(self, task: ScoreTask) -> Receipt | None:
        if self.cache is None:
            return None
        for key in self.job.task_keys(task, self.population):
            receipt = self.cache.borrow_votes(self.run.folder, task.stage, task.index, key, task.name)
            if receipt is not None:
                return receipt
        return None
