"""Checks of a configuration beyond the type of a single field.

Each check takes the values of its fields and the fields that were set, and returns messages: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from unseen_ray.config.models import LOGGERS, check_model
from unseen_ray.config.scoring import check_scoring
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import check_plug, did_you_mean, plug_of
from unseen_ray.storage.plain_text import holds_secret, secret_problem

__all__ = ["AUTO_NEEDS_UNSEEN", "CHECKS", "UNSEEN_FIELDS", "check_schedule", "keep_message"]

UNSEEN_FIELDS = ("folds", "train_on", "stratify", "schedule", "guard")
"""Fields that mode: fitting refuses because they have no effect there."""
AUTO_NEEDS_UNSEEN = (
    "policy auto needs the accuracy on unseen samples, which mode: fitting does not measure. Name another policy."
)
"""What to say where both are asked for."""

_MOST_STAGES = 10_000  # each one trains at least one model
_NAME = "[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL = re.compile(f"(?:[a-zA-Z0-9.-]{{1,253}}/)?{_NAME}")  # as Ray and Kubernetes have them
_SELECTED = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


def keep_message(given: Any) -> str:
    """The message for a `keep` that is not a fraction."""
    return f"keep={given!r} is outside (0, 1). It is the fraction kept: 30 % pruning is keep: 0.7."


def _check_keep(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    keep = values["keep"]
    if not _is_number(keep) or 0 < keep < 1:
        return []
    return [keep_message(given["keep"])]


def check_schedule(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The problems of `schedule`, beside `keep`."""
    schedule, keep = values["schedule"], values["keep"]
    if schedule is None or not isinstance(keep, (int, float)):
        return []
    if isinstance(schedule, Mapping):
        return _check_spacing(schedule, keep)
    if (
        not isinstance(schedule, Sequence)
        or isinstance(schedule, str)
        or not schedule
        or not all(map(_is_number, schedule))
    ):
        return [
            f"schedule={schedule!r} must be a list of fractions such as [0.5, 0.6, 0.7], or {{first: 0.4, stages: 3, spacing: even}}."
        ]
    problems = []
    if any(later <= earlier for earlier, later in pairwise(schedule)) or schedule[0] <= 0:
        problems.append(
            f"schedule={list(schedule)} must increase strictly from above 0: each entry is a cumulative fraction of N."
        )
    if not math.isclose(schedule[-1], keep):
        problems.append(f"schedule={list(schedule)} ends in {schedule[-1]} but keep is {keep}; end it in keep.")
    return problems


def _check_spacing(schedule: Mapping[str, Any], keep: float) -> list[str]:
    allowed = ("first", "stages", "spacing")
    problems = [
        f"schedule has no field {key!r}; it takes {', '.join(allowed)}.{did_you_mean(str(key), allowed)}"
        for key in schedule
        if key not in allowed
    ]
    problems += [
        f"schedule needs {key!r}: {{first: 0.4, stages: 3, spacing: even}}."
        for key in ("first", "stages")
        if key not in schedule
    ]
    if problems:
        return problems
    first, stages, spacing = schedule["first"], schedule["stages"], schedule.get("spacing", "even")
    if not isinstance(stages, int) or isinstance(stages, bool) or not 1 <= stages <= _MOST_STAGES:
        problems.append(
            f"schedule.stages={stages!r} must be a whole number, 1 or more and at most {_MOST_STAGES}; it counts every target."
        )
    elif stages == 1 and first != keep:
        problems.append(
            f"schedule.first={first!r} has no effect with one stage, whose target is keep ({keep}). For one shot, leave out schedule."
        )
    elif stages > 1 and not (_is_number(first) and 0 < first < keep):
        problems.append(
            f"schedule.first={first!r} must be above 0 and below keep ({keep}): it is the fraction kept by the first stage."
        )
    if spacing not in ("even", "geometric"):
        problems.append(
            f"schedule.spacing={spacing!r} is neither even nor geometric.{did_you_mean(str(spacing), ['even', 'geometric'])}"
        )
    return problems


def _check_plugs(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    from unseen_ray.core import dynamics, guard, scores, select
    from unseen_ray.core.combine_votes import OF_STAGES, OF_VOTES

    names = (*scores.__all__, *dynamics.__all__, *OF_VOTES, *OF_STAGES)
    problems = check_plug(values["score"], field="score", names=names, kind="score")
    problems += check_plug(values["policy"], field="policy", names=select.__all__, kind="policy")
    if values["guard"] != "none":
        problems += check_plug(values["guard"], field="guard", names=["none", *guard.__all__], kind="guard")
    also = values["also_score"]
    if isinstance(also, (list, tuple)):
        for entry in also:
            problems += check_plug(entry, field="also_score", names=names, kind="score")
    elif also not in ("all", "none"):
        problems.append(f"also_score={also!r} must be all, none, or a list of scores.")
    if values["model"] is not None:
        problems += check_model(values["model"], field="model")
    if values["fit"] is not None:
        problems += check_plug(values["fit"], field="fit", names=(), kind="training function")
    return problems


def _check_sources(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    from unseen_ray.data.related.grouping import group_ref
    from unseen_ray.data.sources.registry import source_ref

    problems: list[str] = []
    for field in ("source", "test"):
        if given.get(field) is not None and not _check_no_password({field: given[field]}, given):
            try:
                source_ref(given[field], field=field)
            except ConfigError as error:
                problems += error.problems
    if given.get("group") is not None:
        try:
            group_ref(given["group"])
        except ConfigError as error:
            problems += error.problems
    return problems


def _check_effect(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Refuse fields that were set but have no effect: you would expect one."""
    problems = []
    if values["mode"] == "fitting":
        if given.get("guard", "none") != "none":
            problems.append(
                f"guard={given['guard']!r} needs predictions of unseen samples, which mode: fitting does not make. Remove one of the two."
            )
        if plug_of(values["policy"])[0] == "auto":
            problems.append(AUTO_NEEDS_UNSEEN)
        for field in UNSEEN_FIELDS:
            if field != "guard" and given.get(field) is not None:
                problems.append(
                    f"{field}={given[field]!r} has no effect in mode: fitting, which trains once on all data. Remove one of the two."
                )
    if values["fit"] is not None:
        for field in ("model", "recipe", "score_every", "save_features"):
            if given.get(field) is not None:
                problems.append(
                    f"{field} has no effect with fit, which does the training itself. Remove one of the two."
                )
    gpus = given.get("gpus_per_fold")
    if isinstance(gpus, (int, float)) and gpus > 1:
        problems.append(
            f"gpus_per_fold={gpus:g} has no effect beyond 1: a fold trains on one GPU. Set 1, or less to share one."
        )
    alone = {"executor: local, which is one process": values["executor"] == "local", "fit": values["fit"] is not None}
    fit_gpus = given.get("gpus_per_fit")
    if isinstance(fit_gpus, int) and fit_gpus > 1:
        for reason in [reason for reason, holds in alone.items() if holds]:
            problems.append(f"gpus_per_fit={fit_gpus} has no effect with {reason}. Remove one of the two.")
    if values["executor"] == "local" and given.get("address") is not None:
        problems.append(f"address={given['address']!r} has no effect with executor: local. Remove one of the two.")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_share(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Workers must share a batch evenly, so that the mean of their gradients is the gradient of the batch."""
    workers, fewest, recipes = values["gpus_per_fit"], values["min_gpus_per_fit"], {"recipe": values["recipe"]}
    recipes["scoring.recipe"] = getattr(values["scoring"], "recipe", None)
    sizes = {field: getattr(recipe, "batch_size", None) for field, recipe in recipes.items()}
    problems = []
    if fewest is not None and fewest >= workers:
        problems.append(
            f"min_gpus_per_fit={fewest} must be less than gpus_per_fit={workers}. Lower it or leave it out."
        )
    if fewest is not None and getattr(values["recipe"], "deterministic", False):
        problems.append(
            f"min_gpus_per_fit={fewest} has no effect with recipe.deterministic: true: another number of workers computes other bits. "
            "Remove one of the two."
        )
    return problems + [
        f"{field}.batch_size={size} is not divisible by gpus_per_fit={workers}. Use {max(size // workers, 1) * workers}, for example."
        for field, size in sizes.items()
        if size is not None and size % workers
    ]


def _check_init(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Initial weights that saw the samples would leak into unseen scores; only the user knows whether they did."""
    scoring, recipes = values["scoring"], {"recipe": values["recipe"]}
    if getattr(scoring, "recipe", None) is not None:
        recipes["scoring.recipe"] = scoring.recipe
    addresses = {f"{field}.init": getattr(recipe, "init", None) for field, recipe in recipes.items()}
    if any(map(holds_secret, addresses.values())):
        return _check_no_password(addresses, given)
    # What the scoring models start from; with a model of their own, they start anew.
    field = list(recipes)[-1]
    init, saw = (getattr(recipes[field], name, None) for name in ("init", "init_saw"))
    starts_anew = field == "recipe" and getattr(scoring, "model", None) is not None
    if init is None or saw == "none" or values["mode"] == "fitting" or starts_anew:
        return []
    return [
        f"{field}.init={init} may have been trained on the samples that are to be scored unseen, and this cannot be checked. If these "
        f"weights were never trained on a sample of the source, assert it with {field}.init_saw: none (the manifest and the report "
        f"state it). Otherwise leave out {field}.init, or use mode: fitting."
    ]


def _check_placement(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    placement = values["placement"]
    if placement is None:
        return []
    if values["executor"] == "local":
        return ["placement has no effect with executor: local, which is one process. Remove one of the two."]
    allowed = ("fits", "fallback", "aggregator", "driver")
    problems = [
        f"placement has no field {name!r}; it takes {', '.join(allowed)}.{did_you_mean(name, allowed)}"
        for name in placement
        if name not in allowed
    ]
    fallback = placement.get("fallback", [])
    if not isinstance(fallback, list) or (fallback and not placement.get("fits")):
        problems.append(
            f"placement.fallback={fallback!r} must be a list of mappings of labels, for where no node of placement.fits is free."
        )
        fallback = []
    selectors = {f"placement.{name}": placement[name] for name in allowed if name in placement and name != "fallback"}
    selectors |= {f"placement.fallback[{index}]": each for index, each in enumerate(fallback)}
    return problems + [problem for field, each in selectors.items() for problem in _check_selector(field, each)]


def _check_selector(field: str, selector: Any) -> list[str]:
    """The problems of one selector of nodes, which Ray would name one at a time and only as it starts an actor."""
    if not isinstance(selector, Mapping) or not selector:
        return [f"{field}={selector!r} must be a mapping of labels, such as {{ray.io/accelerator-type: H100}}."]
    return [
        f"{field}: {label}={value!r} must be text: a value, !value, in(a, b) or !in(a, b); numbers, true and false in quotes."
        for label, value in selector.items()
        if not isinstance(value, str) or not _SELECTED.fullmatch(value)
    ] + [
        f"{field}: {label!r} is not the name of a label, such as market or ray.io/market-type."
        for label in selector
        if not isinstance(label, str) or not _LABEL.fullmatch(label)
    ]


def _check_log_to(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    asked = values["log_to"]
    if asked is None or asked == "none":
        return []
    problems = []
    names: list[Any] = []
    for entry in asked if isinstance(asked, (list, tuple)) else [asked]:
        options = dict(entry) if isinstance(entry, Mapping) else {"use": entry}
        name = options.pop("use", None)
        if not isinstance(name, str) or name not in LOGGERS:
            allowed = f"{', '.join(LOGGERS)}, a list of them, or none alone"
            problems.append(f"log_to={name!r} is not a logger. Allowed: {allowed}.{did_you_mean(str(name), LOGGERS)}")
            continue
        if name in names:
            problems.append(f"log_to names {name!r} more than once; name each logger once.")
        names.append(name)
        takes = ", ".join(LOGGERS[name]) or "none"
        problems += [
            f"log_to: {name} takes no option {option!r}; it takes {takes}. Passwords and keys come from the environment "
            "(WANDB_API_KEY, MLFLOW_TRACKING_TOKEN)."
            for option in options
            if option not in LOGGERS[name]
        ]
        kinds = {"tags": Mapping if name == "mlflow" else (list, tuple)}
        problems += [
            f"log_to: {name} needs {option} as {'a mapping' if kinds.get(option) is Mapping else 'a list' if option in kinds else 'text'}."
            for option, value in options.items()
            if option in LOGGERS[name] and not isinstance(value, kinds.get(option, str))
        ]
        if holds_secret(options.get("tracking_uri")):
            problems.append(
                "log_to: tracking_uri must not hold a password. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
    return problems


def _check_no_password(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Refuse addresses that hold a key, since they are logged, shown and stored."""
    problems = []
    for field, value in values.items():
        texts = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
        if any(map(holds_secret, texts)):
            problems.append(secret_problem(field))
    return problems


Check = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]
CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("keep",), _check_keep),
    (("keep", "schedule"), check_schedule),
    (("score", "also_score", "policy", "guard", "model", "fit"), _check_plugs),
    (("source", "test"), _check_sources),
    (("mode", "fit", "executor", "guard", "policy"), _check_effect),
    (("gpus_per_fit", "min_gpus_per_fit", "recipe", "scoring"), _check_share),
    (("mode", "recipe", "scoring"), _check_init),
    (("scoring", "folds", "mode", "train_on", "recipe", "fit"), check_scoring),
    (("placement", "executor"), _check_placement),
    (("log_to",), _check_log_to),
    (("source", "test", "group", "out", "reuse", "pixel_folder", "address"), _check_no_password),
)
