"""`evaluate`: prune what an evaluation still lacks (further selections, the fitting baseline), then train and measure every arm."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from unseen_ray.config.checks import UNSEEN_FIELDS
from unseen_ray.config.fields.keywords import MeasureFields, SourceLike, with_keywords
from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import EXECUTOR_FIELDS, NAMED_FIELDS, PruneConfig
from unseen_ray.config.scoring import Scoring, scoring_given, scoring_stored
from unseen_ray.core.samples.dealing import digest_of_groups
from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.evaluation.arms import ArmSubsets, fixed_share
from unseen_ray.evaluation.checks import DEFAULT_AGAINST, DEFAULT_SEEDS, check_evaluable
from unseen_ray.evaluation.trainings import train_and_measure
from unseen_ray.execution.api import PruneResult, executor_for, ignore, load, prune
from unseen_ray.execution.progress import shown_progress
from unseen_ray.execution.tracking import tracked
from unseen_ray.plugins import current_names, is_target, jsonable, plug_of, refuse_unnamed
from unseen_ray.pruning.suspects import drawable_ids
from unseen_ray.pruning.trials.plan import candidates_of, chosen_policy
from unseen_ray.runs.layout import FITTING, selection_folder
from unseen_ray.runs.run import choosing_s
from unseen_ray.storage.filesystem import sha256_of

if TYPE_CHECKING:
    from unseen_ray.evaluation.table import AskedBudget, Evaluation
    from unseen_ray.pruning.executor import Observer

__all__ = ["evaluate", "resampled_arm", "subsets_of"]

logger = logging.getLogger(__name__)

_CHANGES = ("model", "recipe", "threads", "gpus_per_fit", "min_gpus_per_fit", "log_to", "group", *EXECUTOR_FIELDS)


@with_keywords(MeasureFields)
def evaluate(
    result: PruneResult | str | os.PathLike[str],
    *,
    test: SourceLike | None = None,
    seeds: int = DEFAULT_SEEDS,
    until: float | None = None,
    against: Sequence[str] = DEFAULT_AGAINST,
    selections: int = 1,
    budget: AskedBudget = "epochs",
    on_event: Observer | None = None,
    progress: bool = True,
    **changes: Unpack[MeasureFields],
) -> Evaluation:
    """Train the same recipe on the coreset and on baselines, and measure each model after the last epoch.

    Args:
        result: a finished run, or its folder.
        test: a source with the same classes; None for the run's `test`, else its holdout.
        seeds: number of trainings of each selection, with `until` at least.
        until: more of them, up to 20, until the interval of the lead over `random` is at most ± this many percentage points.
        against: baselines: `random` (another random subset for each training), `random_matched` (with the coreset's class counts),
            `full`, `fitting` (the coreset in `mode: fitting`), `resampled` (random, drawn anew every epoch), `resampled:fixed=0.5`
            (half of an epoch is always the coreset's first, as in `KeptSampler`).
        selections: how often the coreset is chosen: by the run, and by the same configuration with `seed` + 1, + 2, ...
        budget: `epochs`: every arm passes equally often over its own samples; `iterations`: every arm takes as many steps
            as a training on all samples; `both`: the first, with the second in `by_budget`.
        on_event: called with every progress event and result.
        progress: whether a notebook or a terminal shows the progress; `on_event` takes its place.
        changes: `model`, `recipe` (a mapping without `use` changes the run's own), `threads`, `log_to`, and where to run; and
            again functions of your own that only the run's folder names: `source`, ...

    Raises:
        ConfigError: if there is nothing to measure on, a baseline is unknown, or only the folder names a function it needs.
    """
    done = result if isinstance(result, PruneResult) else load(result)
    resolved = _evaluated(done, dict(changes), test, prunes=selections > 1 or "fitting" in against)
    check_evaluable(resolved, against=against, seeds=seeds, selections=selections, budget=budget, until=until)
    with shown_progress(on_event, progress=progress) as shown:
        chosen = _chosen_arms(done, resolved.config, against, selections, shown)
        return _measured(done, resolved, chosen, shown, against=against, seeds=seeds, budget=budget, until=until)


def _measured(
    done: PruneResult,
    resolved: ResolvedRun,
    chosen: dict[str, ArmSubsets],
    on_event: Observer | None,
    *,
    against: Sequence[str],
    seeds: int,
    budget: AskedBudget,
    until: float | None,
) -> Evaluation:
    config = resolved.config
    tasks = seeds * len(chosen["coreset"].subsets) * (1 + len(against)) * (2 if budget == "both" else 1)
    within = f"evaluate-{budget}-{_digest(config)}"
    with executor_for(config, tasks) as executor, tracked(config, on_event or ignore, within=within) as observer:
        return train_and_measure(
            resolved,
            chosen,
            against=against,
            skipped_ids=np.array(done.manifest.source.skipped_ids, np.int64),
            seeds=seeds,
            budget=budget,
            until=until,
            executor=executor,
            on_event=observer,
        )


def _chosen_arms(
    done: PruneResult, config: PruneConfig, against: Sequence[str], selections: int, on_event: Observer | None
) -> dict[str, ArmSubsets]:
    """The arms whose subsets a run chooses, each pruned now unless its folder holds it: the coreset, and `fitting`."""
    runs = [done, *(_again(done, config, number, on_event) for number in range(1, selections))]
    chosen = {"coreset": subsets_of(runs)}
    if "fitting" in against:
        chosen["fitting"] = subsets_of([_fitting(run, config, on_event) for run in runs])
    shares = {arm: share for arm in against if (share := fixed_share(arm)) is not None}
    return chosen | {arm: resampled_arm(runs, share) for arm, share in shares.items()}


def resampled_arm(runs: Sequence[PruneResult], share: float) -> ArmSubsets:
    """As many samples as each coreset has, of which `share` are always those picked first, and the others drawn anew every epoch."""
    chosen = subsets_of(runs)
    draws = tuple(
        EpochDraw(fixed_ids=run.coreset.first(round(share * len(ids)), run.config.seed), size=len(ids), seed=0)
        for run, ids in zip(runs, chosen.subsets, strict=True)
    )
    subsets = tuple(drawable_ids(run.run, ids) for run, ids in zip(runs, chosen.subsets, strict=True))
    if not share and all(len(ids) == run.manifest.source.num_samples for run, ids in zip(runs, subsets, strict=True)):
        return ArmSubsets(subsets, 0.0, (), draws)  # it would draw the same without a run
    return ArmSubsets(subsets, chosen.seconds, chosen.devices, draws)


def subsets_of(runs: Sequence[PruneResult]) -> ArmSubsets:
    """The coresets of runs, with the mean time of a choice."""
    costs = [choosing_s(run.manifest) for run in runs]
    known = [cost for cost in costs if cost is not None]
    mean = sum(known) / len(runs) if len(known) == len(runs) else None
    devices = {task.device for run in runs for stage in run.manifest.stages for task in stage.tasks}
    return ArmSubsets(tuple(run.coreset.ids for run in runs), mean, tuple(sorted(devices)))


def _evaluated(done: PruneResult, changes: dict[str, Any], test: Any, *, prunes: bool) -> ResolvedRun:
    """The run's configuration with the changes of an evaluation, after a check that the data is still the same."""
    _check_changes(done, changes)
    if prunes and done.manifest.is_of_given_probs:
        raise ConfigError(
            f"{done.path} was chosen by probabilities that you gave; more selections than one, and the baseline fitting, would train "
            "scoring models of their own and mix two methods. Leave both out, or evaluate a run of `unseen-ray prune`."
        )
    asked = {**changes, "out": done.path} | ({"test": test} if test is not None else {})
    asked.pop("scoring", None)  # as the run's: checked above
    recipe = asked.get("recipe")
    # Only the fields that are given change; the others are the run's, not the defaults.
    if isinstance(recipe, dict) and "use" not in recipe:
        asked["recipe"] = recipe_values(recipe, base=done.config.recipe)
    # The run's values of these mean something only on Ray, and one process refuses them.
    if asked.get("executor") == "local":
        asked = {"address": None, "gpus_per_fit": 1, "min_gpus_per_fit": None, "placement": None, **asked}
    if done.config.fit is not None and "model" in changes:
        asked["fit"] = None
    config = done.config.changed(**asked)
    # A run folder is data, so a function that only it names may be anybody's code.
    if not done.in_hand:
        _check_named(config, changes if test is None else {**changes, "test": test}, prunes=prunes)
    source, path = open_source(source_ref(config.source)), done.path
    if not done.manifest.source.is_same_data(source.info):
        raise ConfigError(
            f"source {source.info.name} is not the data that {path} was pruned from: of {done.manifest.source.rows} samples there and "
            f"{len(source.info)} here, the labels, names or pixels differ. Restore the data, or prune again."
        )
    info = with_groups(source, config.group)
    if done.manifest.source.groups != digest_of_groups(info.groups):
        raise ConfigError(
            f"group={config.group!r} gives other groups than those that {path} was pruned with, or another drop. Give both as they were."
        )
    # Without the scoring models, which an evaluation does not train: their initial weights may be gone.
    config = _started_alike(config, done).model_copy(update={"scoring": Scoring()})
    return ResolvedRun.of(config, info.size_px)


def _check_changes(done: PruneResult, changes: dict[str, Any]) -> None:
    """Refuse changes that an evaluation does not take, or that would choose another coreset."""
    if unknown := sorted(changes.keys() - {*_CHANGES, *NAMED_FIELDS}):
        raise ConfigError(f"evaluate takes no {unknown[0]!r}; it takes {', '.join((*_CHANGES, *NAMED_FIELDS))}.")
    other = [
        name
        for name in NAMED_FIELDS
        if name in changes
        and name != "source"
        and _asked_again(done.config, name, changes[name]) != current_names(done.config.to_json().get(name))
    ]
    if other:
        raise ConfigError(
            f"{other[0]}={changes[other[0]]!r} differs from the run's {getattr(done.config, other[0])!r}. evaluate measures what the "
            "run chose; use `unseen-ray select` or a new run to choose differently."
        )


def _asked_again(config: PruneConfig, name: str, value: Any) -> Any:
    """A field that names functions, in the form in which a run stores it; of `scoring`, what is not given is the run's."""
    if name != "scoring":
        return current_names(jsonable(value))
    if isinstance(value, (dict, Scoring)):
        value = config.changed(scoring={**scoring_stored(config.scoring.to_json()), **scoring_given(value)}).scoring
    return current_names(value.to_json() if isinstance(value, Scoring) else value) or None


def _started_alike(config: PruneConfig, done: PruneResult) -> PruneConfig:
    """Pin the run's own initial weights to the digest that the run recorded: the file may have changed since."""
    if config.recipe.init is None or config.recipe.init != done.config.recipe.init:
        return config
    before = {name: done.manifest.config["recipe"].get(name) for name in ("init", "init_sha256")}
    return config.model_copy(update={"recipe": config.recipe.model_copy(update=before)})


def _check_named(config: PruneConfig, given: dict[str, Any], *, prunes: bool) -> None:
    """Log which functions are going to be imported, and refuse those that only the run's folder names."""
    fields = ("source", "test", "model", "fit", *(("score", "also_score", "policy", "guard") if prunes else ()))
    values = {name: getattr(config, name) for name in fields}
    if prunes:
        values["scoring.model"] = config.scoring.model
    each = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    if prunes:
        each["policy"] = [config.policy, *candidates_of(config)]
    named = [(name, target) for name, its in each.items() for one in its if is_target(target := _use_of(one))]
    refuse_unnamed((name, target) for name, target in named if not _is_named(name, given))
    for name, target in named:
        logger.info("importing %s for %s", target, name)


def _is_named(name: str, given: dict[str, Any]) -> bool:
    """Whether the user named a field, and not just others of the same mapping."""
    field, _, option = name.partition(".")
    value = given.get(field)
    if not option:
        return field in given
    return value.get(option) is not None if isinstance(value, dict) else getattr(value, option, None) is not None


def _use_of(value: Any) -> Any:
    return value.get("use") if isinstance(value, dict) else value


def _again(done: PruneResult, config: PruneConfig, number: int, on_event: Observer | None) -> PruneResult:
    """The coreset that the same configuration chooses with another seed."""
    given = {**_given(done, config), "seed": done.config.seed + number}
    return prune(PruneConfig(**given, out=done.run.folder.path(selection_folder(number))), on_event=on_event)


def _fitting(done: PruneResult, config: PruneConfig, on_event: Observer | None) -> PruneResult:
    """The coreset of the usual baseline: the same score and policy, but models that were trained on what they score."""
    given = _given(done, config)
    if plug_of(done.config.policy)[0] == "auto":  # not by its rule, which reads the accuracy on unseen samples
        given["policy"] = chosen_policy(done.config, done.manifest.policy_used)
    given = {name: value for name, value in given.items() if name not in UNSEEN_FIELDS}
    # one model on all data has no folds to choose from
    given["scoring"] = given["scoring"].model_copy(update={"votes": None, "models": None})
    return prune(PruneConfig(**{**given, "mode": "fitting"}, out=done.run.folder.path(FITTING)), on_event=on_event)


def _given(done: PruneResult, config: PruneConfig) -> dict[str, Any]:
    """The fields that the run was given, except its folders, with the evaluation's choice of where to run."""
    # Without the defaults: a field that is set and has no effect, such as folds in mode: fitting, would be refused.
    given = {name: getattr(done.config, name) for name in done.config.model_fields_set - {"out", "reuse"}}
    scoring = done.config.scoring
    # Said, as the run's folder says it: a run without the guard would have another share by default.
    given["scoring"] = scoring.model_copy(update={"share": scoring.share})
    if config.executor == "local":
        given.pop("gpus_per_fit", None)
        given.pop("min_gpus_per_fit", None)
    return given | {name: getattr(config, name) for name in ("log_to", *EXECUTOR_FIELDS)}


def _digest(config: PruneConfig) -> str:
    """Six hexadecimal digits that differ between evaluations of one run that train or measure differently."""
    values = config.to_json()
    said = [values[name] for name in ("model", "recipe", "threads", "test", "gpus_per_fit")]
    said += [] if config.min_gpus_per_fit is None else [config.min_gpus_per_fit]
    return sha256_of(json.dumps(said, sort_keys=True).encode())[:6]
