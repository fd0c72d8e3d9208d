"""Trainings that are measured: each is made once and its result stored at once; and how well a difference of them is known."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unseen_ray.runs.evaluation_file import known_results, store_results, stored_tables
from unseen_ray.runs.result_cache import ResultCache, once
from unseen_ray.runs.tasks import EvalResult, Progress

if TYPE_CHECKING:
    from unseen_ray.core.tasks import EvalTask
    from unseen_ray.pruning.executor import Executor, Observer
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.storage.filesystem import Folder

__all__ = ["LEVEL", "MeasuredTrainings", "interval"]

LEVEL = 0.95
"""Confidence of every interval."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredTrainings:
    """Makes the trainings that are left.

    Attributes:
        folder: of the run, whose evaluation.json keeps the results.
        key: what determines a training's result: equal keys give equal models, whoever asks.
        executor: where to train.
        on_event: called with every progress event and result.
        check: raises if another driver has taken over the folder.
        cache: results shared with other runs that are active at the same time.
        former_key: the key by which an earlier version may have stored a result; None if it is the same.
    """

    folder: Folder
    key: Callable[[EvalTask], str]
    executor: Executor
    on_event: Observer
    check: Callable[[], None]
    cache: ResultCache | None = None
    former_key: Callable[[EvalTask], str] | None = None

    def results(self, tasks: Iterable[EvalTask]) -> dict[str, EvalResult]:
        """Results by key: those that the folder already holds, and those of the remaining trainings."""
        stored, tables = known_results(self.folder), stored_tables(self.folder)
        asked = {self.key(task): task for task in tasks}  # two arms may train on the same samples
        keys = {task.name: key for key, task in asked.items()}
        if (former_key := self.former_key) is not None:
            former = {key: former_key(task) for key, task in asked.items() if key not in stored}
            stored.update({key: stored[name] for key, name in former.items() if name in stored})

        def keep(event: Progress | Receipt | EvalResult) -> None:
            self.check()
            if isinstance(event, EvalResult):
                stored[key := keys[event.task]] = event
                # After every training, so that an interruption loses none.
                store_results(self.folder, stored, tables)
                if self.cache is not None:
                    self.cache.put_result(key, event)
                    self.cache.release([key])
            self.on_event(event)

        left = [task for key, task in asked.items() if key not in stored]
        if done := len(asked) - len(left):
            logger.info("reusing the results of %d of %d trainings", done, len(asked))
        if self.cache is None:
            self.executor.evaluate(left, keep)
        else:
            self._shared(self.cache, left, keys, stored, keep)
        return stored

    def _shared(
        self,
        cache: ResultCache,
        tasks: list[EvalTask],
        keys: dict[str, str],
        stored: dict[str, EvalResult],
        keep: Observer,
    ) -> None:
        """The same with other runs, which may make some of the trainings."""

        def known(task: EvalTask) -> EvalResult | None:
            result = cache.get_result(keys[task.name])
            if result is not None:
                stored[keys[task.name]] = result
                self.on_event(result)
            return result

        names = [keys[task.name] for task in tasks]
        once(
            tasks,
            names,
            known=known,
            do=lambda its: self.executor.evaluate(its, keep),
            cache=cache,
            rest=self.executor.rest,
        )


def interval(ours: Sequence[float], theirs: Sequence[float], *, paired: bool) -> tuple[float, float]:
    """The 95 % interval of the difference of two means, by the paired t-test or by Welch's; NaN where the values tell of no spread."""
    from scipy.stats import ttest_ind, ttest_rel

    # scipy warns about a single training, of which NaN is what we want, and about equal results.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_rel(ours, theirs) if paired else ttest_ind(ours, theirs, equal_var=False)
        found = test.confidence_interval(LEVEL)
    # Trainings that came out alike, as on a small test set, do not show that all would.
    return (float(found.low), float(found.high)) if found.low < found.high else (math.nan, math.nan)
