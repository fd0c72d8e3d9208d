"""The configurations of a search space: all of a grid, or some drawn at random. A hyperparameter is called a knob in the code."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unseen_ray.config.checks import UNSEEN_FIELDS
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.scoring import scoring_by_default
from unseen_ray.core.seeds import derive, rng_for
from unseen_ray.plugins import did_you_mean, jsonable

__all__ = [
    "SWEEPABLE",
    "Knobs",
    "check_space",
    "corners",
    "draws",
    "fields_of",
    "grid",
    "knobs_of",
    "plain_knobs",
    "plain_value",
    "value_range",
]

Knobs = dict[str, Any]

_FIELDS = [
    "keep",
    "mode",
    "folds",
    "train_on",
    "stratify",
    "combine",
    "repeats",
    "score",
    "policy",
    "guard",
    "model",
    "recipe",
    "threads",
    "cpus_per_fold",
    "gpus_per_fold",
]
_SCHEDULE = ("stages", "first", "first_share", "spacing")
SWEEPABLE = (
    *_FIELDS,
    *(f"schedule.{name}" for name in _SCHEDULE),
    *(f"recipe.{name}" for name in Recipe.model_fields if name != "use"),
    *(f"scoring.{name}" for name in ("share", "model", "votes", "models")),
)
"""What a space may vary. `schedule.first_share` is the first target as a share of the budget, `schedule.first` as one of N."""


def check_space(space: Mapping[str, Any], *, ranges: bool) -> list[str]:
    """The problems of a search space.

    Args:
        space: values by knob.
        ranges: whether {min, max, log} is allowed.
    """
    if not space:
        return ["space is empty: name hyperparameters and their values, such as folds: [2, 4, 8]."]
    problems = []
    for knob, values in space.items():
        if knob not in SWEEPABLE:
            problems.append(
                f"space.{knob} cannot be swept.{did_you_mean(str(knob), SWEEPABLE)} Allowed: {', '.join(SWEEPABLE)}."
            )
        elif isinstance(values, Mapping):
            problems += (
                _check_range(knob, values)
                if ranges
                else [
                    f"space.{knob}={dict(values)} is a range, which search: grid cannot enumerate. Give a list, or set search: random."
                ]
            )
        elif not isinstance(values, Sequence) or isinstance(values, str) or not values:
            problems.append(f"space.{knob}={values!r} must be a list of values, such as [2, 4, 8].")
        # By their text: 1, 1.0 and True are equal to Python, and different values here.
        elif len({_text(value) for value in values}) < len(values):
            problems.append(f"space.{knob}={list(values)} names a value twice; name each once.")
    if {"schedule.first", "schedule.first_share"} <= space.keys():
        problems.append(
            "space names both schedule.first and schedule.first_share, which set the same value. Keep one of them."
        )
    return problems


def value_range(values: Any) -> tuple[float, float, bool, bool] | None:
    """Lower end, upper end, whether logarithmic, whether integers; None if the values are a list."""
    if not isinstance(values, Mapping):
        return None
    low, high = values["min"], values["max"]
    return low, high, bool(values.get("log", False)), isinstance(low, int) and isinstance(high, int)


def grid(space: Mapping[str, Sequence[Any]]) -> list[Knobs]:
    """Every combination of the values, the last knob varying fastest."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def draws(space: Mapping[str, Any], count: int, seed: int) -> list[Knobs]:
    """Combinations drawn independently; a larger `count` only adds combinations."""
    return [{knob: _draw(values, seed, number, knob) for knob, values in space.items()} for number in range(count)]


def corners(space: Mapping[str, Any]) -> list[Knobs]:
    """Combinations that try each value at least once, to check an open search before it begins."""
    ends = {
        knob: [values["min"], values["max"]] if isinstance(values, Mapping) else list(values)
        for knob, values in space.items()
    }
    first = {knob: values[0] for knob, values in ends.items()}
    return [first, *({**first, knob: value} for knob, values in ends.items() for value in values[1:])]


def fields_of(run: Mapping[str, Any], knobs: Knobs) -> dict[str, Any]:
    """The fields of a run with these hyperparameters, without fields that would have no effect.

    Args:
        run: fields that all trials share.
        knobs: a combination.
    """
    fields = dict(run)
    schedule = dict(run["schedule"]) if isinstance(run.get("schedule"), Mapping) else {}
    # A whole field before its parts, whichever the space names first.
    for knob, value in sorted(knobs.items(), key=lambda item: "." in item[0]):
        group, _, name = knob.partition(".")
        if group == "schedule":
            schedule[name] = value
        elif name:
            before = fields.get(group)
            fields[group] = {
                **(before if isinstance(before, Mapping) else {"use": before} if before else {}),
                name: value,
            }
        else:
            fields[knob] = value
    if "mode" in knobs:
        fields.setdefault("policy", "top")  # the two have different defaults, and are to be compared
    if any(knob.startswith("schedule.") for knob in knobs):
        fields["schedule"] = _schedule_of(schedule, fields.get("keep"))
    if fields.get("mode") == "fitting":
        scoring = (fields | scoring_by_default(fields)).get("scoring") or {}  # as long as beside a guard
        fields = {name: value for name, value in fields.items() if name not in UNSEEN_FIELDS}
        fields["scoring"] = {name: value for name, value in scoring.items() if name not in ("votes", "models")} or None
    return {name: value for name, value in fields.items() if value is not None}


def plain_knobs(knobs: Knobs) -> Knobs:
    """Hyperparameters in a form that Ray Tune and Optuna can store: mappings and lists as text."""
    return {knob: plain_value(value) for knob, value in knobs.items()}


def knobs_of(space: Mapping[str, Any], plain: Knobs) -> Knobs:
    """The inverse of `plain_knobs`."""
    known = {knob: [] if isinstance(values, Mapping) else list(values) for knob, values in space.items()}
    return {
        knob: next((value for value in known.get(knob, ()) if plain_value(value) == given), given)
        for knob, given in plain.items()
    }


def plain_value(value: Any) -> Any:
    """The value itself if it is a number, text, bool or None; else as JSON text."""
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(jsonable(value))


def _schedule_of(schedule: dict[str, Any], keep: Any) -> dict[str, Any] | None:
    stages = schedule.get("stages", 1)
    if stages == 1:
        return None
    share = schedule.pop("first_share", None)
    if share is not None and isinstance(keep, (int, float)):
        schedule["first"] = share * keep
    return schedule


def _check_range(knob: str, values: Mapping[str, Any]) -> list[str]:
    low, high = values.get("min"), values.get("max")
    said = f"space.{knob}={dict(values)}"
    if unknown := set(values) - {"min", "max", "log"}:
        return [f"{said} has no {sorted(unknown)[0]!r}; a range is {{min, max, log: true|false}}."]
    if not all(
        isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)
    ):
        return [f"{said} needs numbers for min and max."]
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    if low >= high:
        return [f"{said}: min must be below max."]
    if values.get("log") and low <= 0:
        return [f"{said}: a logarithmic range must be above 0."]
    return []


def _draw(values: Any, seed: int, number: int, knob: str) -> Any:
    # A generator for each hyperparameter and trial: more of either leave earlier draws alone.
    rng = rng_for(derive(seed, f"sweep {knob}"), number)
    found = value_range(values)
    if found is None:
        return values[int(rng.integers(len(values)))]
    low, high, log, whole = found
    if whole and not log:  # after rounding, the ends are then as likely as the numbers between them
        low, high = low - 0.5, high + 0.5
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return int(np.clip(round(value), values["min"], values["max"])) if whole else float(value)


def _text(value: Any) -> str:
    return repr(value)
