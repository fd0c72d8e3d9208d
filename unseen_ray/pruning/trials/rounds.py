"""Which policy to use, by trial: subsets of the candidates train short, beside random subsets, and are measured on rows set aside.

Successive halving (Jamieson and Talwalkar, 2016): all candidates train with one seed, the best third with two more, until one is left.
That one and random train with four more seeds. Each seed sets other rows aside, so that the last round's gain is not the luck by which
the candidate was picked, and the interval of it covers the luck of training, of drawing a subset, and of the rows.
"""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.score_columns import plug_label
from unseen_ray.core.samples.groups import is_related
from unseen_ray.core.samples.id_sets import ArrayIds
from unseen_ray.core.seeds import derive, digest_ids, tie_keys
from unseen_ray.core.tasks import EvalTask
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.plugins import jsonable
from unseen_ray.pruning.selection import Kept, pick
from unseen_ray.pruning.trials.measured import interval
from unseen_ray.pruning.trials.plan import RANDOM, TrialPlan, with_candidate
from unseen_ray.runs.layout import scores_file
from unseen_ray.runs.manifest_entries import PolicyTrial
from unseen_ray.storage.tables import StoredTable

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.pruning.trials.measured import MeasuredTrainings
    from unseen_ray.runs.tasks import EvalResult, Job

__all__ = ["PolicyChoice", "choose_policy", "measured_by"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """What `policy: auto` uses.

    Attributes:
        policy: the policy.
        reason: why; see `RuleChoice`.
        trials: what each candidate reached; empty where the rule decided.
        results: of the trainings.
    """

    policy: Any
    reason: str
    trials: list[PolicyTrial] = field(default_factory=list)
    results: tuple[EvalResult, ...] = ()


def choose_policy(
    job: Job, population: Population, plan: TrialPlan, scores: StoredTable, training: MeasuredTrainings
) -> PolicyChoice:
    """Let trainings decide between the candidates and random.

    Args:
        job: the run, with the model and the recipe that score.
        population: its samples.
        plan: the sizes.
        scores: of stage 0.
        training: makes the trainings.
    """
    return _Trials(job, population, plan, scores.table(), training).choice()


def measured_by(job: Job, population: Population) -> Callable[[EvalTask], str]:
    """What determines the result of a trial: its model, and the rows that it is measured on."""

    def key(task: EvalTask) -> str:
        assert task.measured is not None
        return fingerprint_of(job.fit_key(task, population), digest_ids(task.measured.resolve(population)))

    return key


class _Trials:
    def __init__(
        self, job: Job, population: Population, plan: TrialPlan, table: pa.Table, training: MeasuredTrainings
    ) -> None:
        self._job, self._population, self._plan, self._training = job, population, plan, training
        self._table = table
        ids_N = table.column("id").to_numpy()
        # A group stays together in this order, by the key of its name.
        self._groups_N = ids_N if population.groups_R is None else population.groups_R[ids_N]
        self._order_N = np.argsort(tie_keys(self._groups_N, derive(job.config.seed, "trials")), kind="stable")
        self._results: dict[str, EvalResult] = {}

    def choice(self) -> PolicyChoice:
        plan, seeds = self._plan, itertools.count()
        gains: list[list[float]] = [[] for _ in plan.candidates]
        left, fresh = list(range(len(plan.candidates))), [0.0]
        for candidates, count in plan.rounds:
            left = sorted(left, key=lambda place: (-statistics.fmean(gains[place] or [0.0]), place))[:candidates]
            found = self._gains(left, list(itertools.islice(seeds, count)))
            for place, fresh in found.items():
                gains[place] += fresh
        (best,) = left
        low, _ = interval(fresh, [0.0] * len(fresh), paired=True)
        policy, final = plan.candidates[best] if low > 0 else RANDOM, statistics.fmean(fresh)
        of_best = f"{plug_label(plan.candidates[best])} is {100 * final:+.2f} points from random"
        least = f"at least {100 * low:+.2f} (95 %)" if low == low else "with no spread to tell how surely"
        reason = f"{of_best} in the {len(fresh)} trainings of the last round, {least}"
        return PolicyChoice(
            policy=policy,
            reason=reason,
            trials=[
                PolicyTrial(
                    policy=jsonable(candidate),
                    seeds=len(gains[place]),
                    gain=statistics.fmean(gains[place]),
                    **({"final_gain": final, "final_low": low} if place == best and low == low else {}),
                )
                for place, candidate in enumerate(plan.candidates)
            ],
            results=tuple(self._results.values()),
        )

    def _gains(self, places: Sequence[int], seeds: Sequence[int]) -> dict[int, list[float]]:
        """The accuracy of each candidate less that of random, seed by seed."""
        tasks = {(place, seed): self._task(place, seed) for place in (None, *places) for seed in seeds}
        stored = self._training.results(tasks.values())
        found = {at: stored[self._training.key(task)] for at, task in tasks.items()}
        self._results |= {self._training.key(task): found[at] for at, task in tasks.items()}
        return {place: [found[place, seed].accuracy - found[None, seed].accuracy for seed in seeds] for place in places}

    def _task(self, place: int | None, seed: int) -> EvalTask:
        """The training of a candidate, or of random, with a seed."""
        policy = RANDOM if place is None else self._plan.candidates[place]
        first = seed * self._plan.set_aside
        rows = np.sort(self._order_N[first : first + self._plan.set_aside])
        others = ~is_related(self._groups_N, rows)
        ids = self._table.column("id").to_numpy()
        return EvalTask(
            index=0,
            arm="random subset" if place is None else f"candidate {place + 1}, {plug_label(policy)}",
            selection=0,
            repeat=seed,
            train=ArrayIds(self._picked(policy, self._table.filter(pa.array(others)), seed)),
            epochs=self._plan.epochs,
            measured=ArrayIds(ids[rows]),
        )

    def _picked(self, policy: Any, table: pa.Table, seed: int) -> IdArray:
        """The ids that a policy keeps of a table; its draws differ with the seed."""
        resolved = self._job.resolved
        drawn_by = derive(resolved.config.seed, f"trial {seed}") >> 1  # policies of the user's own get at most an int64
        picked = pick(
            with_candidate(resolved, policy).with_seed(drawn_by),
            StoredTable(self._job.folder, scores_file(0), {}, table),
            # As many as planned, unless groups take further rows with those that are set aside.
            budget=round(self._plan.trained * table.num_rows / (self._table.num_rows - self._plan.set_aside)),
            kept=Kept(np.zeros(self._population.num_classes, np.int64)),
            features=None,
            limits=replace(self._job.limits, rows_in_memory=table.num_rows, rows_held=table.num_rows),
        )
        ids: IdArray = pa.concat_tables(picked()).column("id").to_numpy()
        return ids
