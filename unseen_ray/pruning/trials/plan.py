"""The trials of `policy: auto`: which policies, in how many rounds, for how many epochs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unseen_ray.config.models import SCORING_SPEEDUP, relative_cost
from unseen_ray.core import select
from unseen_ray.core.policies.auto import BY_RULE
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.plugins import check_plug, jsonable, plug_of

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig

__all__ = ["RANDOM", "TrialPlan", "candidates_of", "chosen_policy", "plan_trials", "rounds_of", "with_candidate"]

_CANDIDATES: tuple[Any, ...] = (
    "ccs",
    {"use": "ccs", "cut": 0.1},
    {"use": "mix", "share": 0.5},
    {"use": "class_quota", "by": "recall", "inside": "random"},
    "top",
)
RANDOM = "random"
"""What every candidate is compared with, and what is used where none is better."""

_NAMES = [name for name in select.__all__ if name not in ("auto", "d2", "k_center")]  # trials have no features
_LEAST_SET_ASIDE, _MOST_SET_ASIDE = 100, 10_000  # an accuracy has a standard error of 5 points, or of half a point
_SET_ASIDE = 0.2  # of all samples, at most
_LEFT = 3  # one in so many candidates stays in the next round
_FINAL_SEEDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """The sizes of the trials.

    Attributes:
        candidates: the policies.
        rounds: of each round, how many candidates train, and with how many seeds.
        set_aside: rows on which each training is measured; each seed has others.
        trained: samples of each training.
        epochs: of each training.
    """

    candidates: tuple[Any, ...]
    rounds: tuple[tuple[int, int], ...]
    set_aside: int
    trained: int
    epochs: int

    @property
    def trainings(self) -> int:
        """How many models are trained, the random ones included."""
        return _trainings(self.rounds)


def candidates_of(config: PruneConfig) -> tuple[Any, ...]:
    """The policies that a run tries; none without trials.

    Raises:
        ConfigError: if `candidates` is no list of at least one.
    """
    use, options = plug_of(config.policy)
    if use != "auto":
        return ()
    if not options.get("trials"):
        if "candidates" in options:
            raise ConfigError("policy option candidates has no effect without trials, which try them. Give trials too.")
        return ()
    given = options.get("candidates", _CANDIDATES)
    if not isinstance(given, (list, tuple)) or not given:
        raise ConfigError(f"policy option candidates={given!r} must be a list of policies, such as [ccs, top].")
    problems = [
        problem for each in given for problem in check_plug(each, field="candidates", names=_NAMES, kind="policy")
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(given)


def chosen_policy(config: PruneConfig, stored: Any) -> Any:
    """The policy that a manifest says `auto` used, from the configuration: nothing that a folder names is imported.

    Raises:
        StorageError: if it is no candidate, or none that the rule may name.
    """
    # `select` goes by the rule, whatever the run that it chooses from tried
    for candidate in (*candidates_of(config), *BY_RULE):
        if jsonable(candidate) == stored:
            return candidate
    raise StorageError(
        f"the manifest says that policy auto used {stored!r}, which it cannot have. Start in a new folder."
    )


def with_candidate(resolved: ResolvedRun, policy: Any) -> ResolvedRun:
    """The run with a candidate, or with random, which goes without the guard that `auto` brings along, as candidates are to beat it."""
    return resolved.with_policy(policy, guard=resolved.config.guard if policy == RANDOM else None)


def rounds_of(candidates: int) -> tuple[tuple[int, int], ...]:
    """How many candidates train in each round, and with how many new seeds; the last round has one."""
    rounds, left, seeds = [], candidates, 1
    while left > 1:
        rounds.append((left, seeds))
        left, seeds = -(-left // _LEFT), 2 * seeds
    return (*rounds, (1, _FINAL_SEEDS))


def plan_trials(asked: PruneConfig, scoring: PruneConfig, total: int, target: int) -> TrialPlan | None:
    """How long the trials train, so that they cost what `trials` allows; None without trials.

    Args:
        asked: the run's configuration.
        scoring: the same with the model and the recipe that score, which the trials train too.
        total, target: samples, and how many stage 0 keeps.

    Raises:
        ConfigError: if it allows less than an epoch of each, or what an epoch costs is not known.
    """
    candidates = candidates_of(asked)
    if not candidates:
        return None
    each = _cost_of_an_image(asked, scoring)
    rounds, price = rounds_of(len(candidates)), plug_of(asked.policy)[1]["trials"]
    trainings, set_aside = _trainings(rounds), _rows_set_aside(total, rounds)
    trained, measuring = round(target / total * (total - set_aside)), set_aside / SCORING_SPEEDUP
    if set_aside < _LEAST_SET_ASIDE or trained < 2:
        raise ConfigError(
            f"policy option trials: of {total} samples, each training would get {trained} and be measured on {set_aside}; it needs 2 and "
            f"{_LEAST_SET_ASIDE}. Leave trials out: a rule decides then."
        )
    images = price * asked.recipe.image_passes(total, workers=asked.gpus_per_fit) / each / trainings
    epochs = int((images - measuring) / trained)
    if epochs < 1:
        raise ConfigError(
            f"policy option trials={price:g} of a training pays for less than one epoch of each of {trainings} trainings. Give "
            f"{price * (trained + measuring) / images + 0.005:.2f} or more, fewer candidates, or a smaller scoring.model; without "
            "trials, a rule decides."
        )
    return TrialPlan(
        candidates=candidates,
        rounds=rounds,
        set_aside=set_aside,
        trained=trained,
        epochs=min(epochs, scoring.recipe.epochs_in_all(trained)),
    )


def _cost_of_an_image(asked: PruneConfig, scoring: PruneConfig) -> float:
    """What the scoring model costs beside the target; ConfigError where that is not known."""
    each = None if asked.fit is not None else relative_cost(scoring.model, asked.model)
    if each is None:
        unknown = (
            "fit trains by itself" if asked.fit is not None else "what scoring.model costs beside model is not known"
        )
        raise ConfigError(f"policy option trials cannot be used: {unknown}. Leave it out: a rule decides then.")
    return each


def _trainings(rounds: Iterable[tuple[int, int]]) -> int:
    return sum((candidates + 1) * seeds for candidates, seeds in rounds)


def _rows_set_aside(total: int, rounds: Iterable[tuple[int, int]]) -> int:
    """How many rows each training is measured on: no two seeds share one."""
    return min(total // sum(seeds for _, seeds in rounds), round(_SET_ASIDE * total), _MOST_SET_ASIDE)
