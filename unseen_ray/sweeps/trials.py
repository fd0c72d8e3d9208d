"""A sweep's trials: the runs of each configuration, checked before any starts, with stored scores that let them share work."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.samples.population import Population, make_population
from unseen_ray.data.related.grouping import group_ref
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.registry import SourceInfo
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import jsonable
from unseen_ray.pruning.plan import plan_run
from unseen_ray.pruning.validate import check_functions
from unseen_ray.storage.filesystem import absolute_path
from unseen_ray.sweeps.config import SweepConfig
from unseen_ray.sweeps.space import Knobs, corners, draws, fields_of, grid

__all__ = ["Keeping", "Trial", "keeping_for", "planned_trials", "populations_by_run", "trial_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What every trial stores beyond its own needs, so that other trials can reuse its work.

    Attributes:
        also_score: the scores of all trials; None if all store the same scores anyway.
        score_every, save_probs, save_features: fields of every run.
    """

    also_score: list[Any] | None = None
    score_every: int | None = None
    save_probs: bool = False
    save_features: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration.

    Attributes:
        name: digest of everything that its result depends on.
        knobs: its hyperparameters.
        runs: one for each seed, without `out`.
    """

    name: str
    knobs: Knobs
    runs: tuple[PruneConfig, ...]

    @property
    def said(self) -> str:
        """The hyperparameters as text."""
        return ", ".join(f"{knob}={jsonable(value)}" for knob, value in self.knobs.items())


def planned_trials(sweep: SweepConfig, info: SourceInfo) -> tuple[list[Trial], Keeping]:
    """Every trial of a grid or a random search, without repeats; for an open search, trials that try every value once.

    Args:
        sweep: what is swept.
        info: the source's.

    Returns:
        The trials, and what all of them store for the others.

    Raises:
        ConfigError: with the problems of each invalid trial.
    """
    if sweep.search == "grid":
        combinations = grid(sweep.space)
    elif sweep.search == "random":
        assert sweep.trials is not None
        combinations = draws(sweep.space, sweep.trials, sweep.seed)
    else:
        combinations = corners(sweep.space)
    population_of = populations_by_run(info)
    plain: dict[str, tuple[Knobs, list[PruneConfig]]] = {}
    problems: dict[str, str] = {}
    for knobs in combinations:
        try:
            runs = _runs_of(sweep, knobs, Keeping())
            for run in runs:
                _check(run, info, population_of)
            plain.setdefault(_named(sweep, runs), (knobs, runs))
        except ConfigError as error:
            said = ", ".join(f"{knob}={value}" for knob, value in knobs.items())
            # Many trials share a problem; it is reported with the first one.
            problems |= {problem: said for problem in error.problems if problem not in problems}
    if problems:
        raise ConfigError([f"trial {said}: {problem}" for problem, said in problems.items()])
    keeping = keeping_for([runs[0] for _, runs in plain.values()])
    return [trial_of(sweep, knobs, keeping) for knobs, _ in plain.values()], keeping


def populations_by_run(info: SourceInfo) -> Callable[[PruneConfig], Population]:
    """A function that gives a run's samples; labels are partitioned once for each holdout and seed, not for each run."""

    @functools.cache
    def made(holdout: float, seed: int) -> Population:
        return make_population(info.labels_N, info.num_classes, holdout=holdout, seed=seed, groups=info.groups)

    return lambda run: made(run.holdout, run.seed)


def trial_of(sweep: SweepConfig, knobs: Knobs, keeping: Keeping) -> Trial:
    """The trial with these hyperparameters.

    Raises:
        ConfigError: if they do not make a valid run.
    """
    # By the plain run: what it stores for others depends on them, and must not change its name.
    named = _named(sweep, _runs_of(sweep, knobs, Keeping()))
    return Trial(name=named, knobs=dict(knobs), runs=tuple(_runs_of(sweep, knobs, keeping)))


def keeping_for(runs: Sequence[PruneConfig]) -> Keeping:
    """What runs must store so that each can reuse the trainings and scores of the others."""
    runs = [run for run in runs if run.fit is None]
    resolved = [ResolvedRun(run) for run in runs]
    stored = [run.scores for run in resolved]
    save: dict[str, Any] = {
        "save_probs": len({run.keeps_probs for run in resolved}) > 1,
        "save_features": len({run.keeps_features for run in resolved}) > 1,
    }
    if len({(scores.named, scores.every) for scores in stored}) < 2:
        return Keeping(**save)
    wanted: dict[str, Any] = {}  # by column; a requested score takes precedence over one stored beside it
    asked: dict[str, str] = {}
    for scores in stored:
        for text in scores.named:
            name = score_name(json.loads(text))
            if name in scores.asked:
                # Two variants of one score share a column: their trials store different ones.
                if asked.setdefault(name, text) != text:
                    return Keeping(**save)
                wanted[name] = json.loads(text)
            elif name not in scores.over_epochs:
                wanted.setdefault(name, json.loads(text))
    every = min((scores.every for scores in stored if scores.over_epochs), default=None)
    return Keeping(also_score=[wanted[name] for name in sorted(wanted)], score_every=every, **save)


def _runs_of(sweep: SweepConfig, knobs: Knobs, keeping: Keeping) -> list[PruneConfig]:
    fields = fields_of(sweep.run, knobs)
    fields |= {name: True for name in ("save_probs", "save_features") if getattr(keeping, name)}
    if keeping.also_score is not None:
        fields["also_score"] = keeping.also_score
    if keeping.score_every is not None:
        fields["score_every"] = keeping.score_every
    return [PruneConfig(**{**fields, "seed": sweep.seed + number, "address": None}) for number in range(sweep.seeds)]


def _named(sweep: SweepConfig, runs: Sequence[PruneConfig]) -> str:
    said = [json.dumps(run.to_json(), sort_keys=True) for run in runs]
    return fingerprint_of(*said, json.dumps(jsonable(sweep.proxy.model_dump()), sort_keys=True))[:12]


def _check(run: PruneConfig, info: SourceInfo, population_of: Callable[[PruneConfig], Population]) -> None:
    recipes = {"recipe.init": run.recipe, "scoring.recipe.init": run.scoring.recipe}
    files = {field: recipe.init for field, recipe in recipes.items() if recipe is not None}
    if run.group is not None:
        files["group"] = group_ref(run.group).file
    for field, path in files.items():
        if path is not None and path != absolute_path(path):
            raise ConfigError(
                f"{field}={path} is a relative path, but every trial runs in a folder of its own. Give {absolute_path(path)}."
            )
    resolved = ResolvedRun.of(run, info.size_px)
    check_functions(resolved)
    plan_run(resolved, population_of(run))
