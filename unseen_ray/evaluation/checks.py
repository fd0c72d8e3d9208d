"""What an evaluation may ask for, and what it measures on; refused before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from unseen_ray.core.seeds import digest_ids
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.labels_only import SCORE_WITH_IMAGES, has_labels_alone
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.evaluation.arms import fixed_share
from unseen_ray.evaluation.precision import MOST_SEEDS
from unseen_ray.plugins import did_you_mean
from unseen_ray.pruning.validate import check_test_set
from unseen_ray.runs.tasks import Job, make_job

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.samples.population import Population
    from unseen_ray.evaluation.table import AskedBudget

__all__ = [
    "ARMS",
    "BUDGETS",
    "DEFAULT_AGAINST",
    "DEFAULT_SEEDS",
    "PRECISE_AGAINST",
    "MeasuredSet",
    "check_evaluable",
    "test_set_of",
]

ARMS = ("random", "random_matched", "full", "fitting", "resampled")
BUDGETS: tuple[AskedBudget, ...] = ("epochs", "iterations", "both")
DEFAULT_SEEDS = 3
DEFAULT_AGAINST = ("random", "full")
PRECISE_AGAINST = "random"
"""The baseline whose interval `until` is about."""


class MeasuredSet(NamedTuple):
    """The data that accuracies are measured on."""

    name: str
    samples: int
    fingerprint: str
    sample: str = ""  # of the stored bytes, see `SourceInfo`
    source: SourceInfo | None = None  # None for a holdout


def check_evaluable(
    resolved: ResolvedRun,
    *,
    against: Sequence[str],
    seeds: int,
    selections: int,
    budget: str,
    until: float | None = None,
) -> None:
    """Refuse an evaluation that cannot be made, before anything is trained.

    Raises:
        ConfigError: with every problem at once, or if there is nothing to measure on.
        DataError: if the test set has classes that the source does not have.
    """
    config = resolved.config
    problems = [*_problems_of_numbers(against, seeds, selections, budget), *_problems_of_run(config)]
    if until is not None:
        problems += _problems_of_until(until, against, seeds, selections)
    if budget == "both" and config.recipe.steps is not None:
        problems.append(
            f"budget='both' needs a recipe that counts epochs; with recipe.steps={config.recipe.steps} every set takes as many steps. "
            "Leave budget out, or set recipe.epochs."
        )
    # Samples held out under one seed would be trained on under the next.
    if selections > 1 and config.holdout:
        problems.append(
            f"selections={selections} uses several seeds, but the seed also determines the samples of holdout={config.holdout:g}. "
            "Measure on a test set, from a run without a holdout."
        )
    if problems:
        raise ConfigError(problems)
    info = with_groups(open_source(source_ref(config.source)), config.group)
    job = make_job(resolved, info)
    test_set_of(job, job.population(info.labels_N), info)


def _problems_of_run(config: PruneConfig) -> Iterator[str]:
    if has_labels_alone(config.source):
        yield f"this run's source has labels and no images to train on. {SCORE_WITH_IMAGES}"
    if config.fit is not None:
        yield "this run used your own `fit`, which evaluate cannot call. Name what to train: --model small_cnn --recipe quick."


def _problems_of_numbers(against: Sequence[str], seeds: int, selections: int, budget: str) -> Iterator[str]:
    if isinstance(against, str):
        yield f"against={against!r} is text; it must be a list of baselines, such as {against.split(',')}."
        against = ()
    for name in against:
        if name not in ARMS and fixed_share(name) is None:
            known = f"{', '.join(ARMS)}, and resampled:fixed=SHARE with a share of 0 or more and below 1"
            yield f"against={name!r} is not a baseline. Allowed: {known}.{did_you_mean(name, ARMS)}"
    arms = [name if (share := fixed_share(name)) is None else f"resampled:fixed={share:g}" for name in against]
    if twice := sorted({name for name in arms if arms.count(name) > 1}):
        yield f"against names {twice[0].removesuffix(':fixed=0')!r} more than once; name each baseline once."
    if seeds < 1:
        yield f"seeds={seeds} must be 1 or more; use at least 3 for an interval that means something."
    if selections < 1:
        yield f"selections={selections} must be 1 or more: how often the coreset is chosen."
    if budget not in BUDGETS:
        yield f"budget={budget!r} is not allowed: it must be {', '.join(BUDGETS[:-1])} or {BUDGETS[-1]}.{did_you_mean(budget, BUDGETS)}"


def _problems_of_until(until: float, against: Sequence[str], seeds: int, selections: int) -> Iterator[str]:
    if not 0 < until < math.inf:
        yield f"until={until} must be above 0 and finite: half the width of the interval to reach, in percentage points; 0.5 for ±0.5."
    if PRECISE_AGAINST not in against and not isinstance(against, str):
        yield f"until={until:g} is about the lead over random, which against={','.join(against)} lacks. Add random to against."
    if seeds > MOST_SEEDS:
        yield f"seeds={seeds} is more than the {MOST_SEEDS} that until trains at most. Lower seeds, where it starts, or leave until out."
    if selections > 1:
        yield (
            f"until={until:g} adds trainings of one selection, which narrow no interval over selections={selections}. "
            "Leave one of the two out."
        )


def test_set_of(job: Job, population: Population, info: SourceInfo) -> MeasuredSet:
    """The job's test set, else the holdout of its source.

    Raises:
        ConfigError: if there is neither.
        DataError: if the test set has classes that the source does not have.
    """
    if job.test is not None:
        test = open_source(job.test).info
        check_test_set(test, info)
        asked = job.config.test
        name = asked if isinstance(asked, str) else test.name
        if test.is_of_same_data(info):
            name += " (the very data that is pruned)"
        return MeasuredSet(name, len(test), test.fingerprint, test.sample, test)
    if not len(population.holdout_ids):
        raise ConfigError(
            f"there is nothing to measure on: source {info.name} has no test split of its own. Give --test SOURCE with the same "
            "classes, or prune with holdout: 0.2, which sets a part of the source aside."
        )
    holdout_ids = population.holdout_ids
    return MeasuredSet(f"holdout of {info.name}", len(holdout_ids), digest_ids(holdout_ids))
