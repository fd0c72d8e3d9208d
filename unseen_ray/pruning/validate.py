"""Checks before anything starts: functions can be called and are as they were, the test set matches the source, folders hold runs."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.score_columns import CONSISTENCY, of_probabilities, score_name
from unseen_ray.data.sources.class_numbers import numbers_as_in
from unseen_ray.data.sources.registry import SourceInfo, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import check_function, function_of, import_target, is_target, name_of, offered, plug_of
from unseen_ray.pruning.trials.plan import candidates_of
from unseen_ray.pruning.warnings import warn_of_beta
from unseen_ray.runs.layout import CORESET, KEYS
from unseen_ray.runs.manifest import read_manifest
from unseen_ray.storage.filesystem import Folder, sha256_of
from unseen_ray.storage.patterns import covers

if TYPE_CHECKING:
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.data.sources.registry import Source
    from unseen_ray.runs.tasks import Job

__all__ = [
    "CODE",
    "check_functions",
    "check_lenders",
    "check_out",
    "check_readable",
    "check_replaced",
    "check_test",
    "check_test_set",
    "code_of",
    "warn_of_edits",
]

CODE = "code"
"""What the environment of a manifest calls the digests of the user's own functions."""

logger = logging.getLogger(__name__)


def check_functions(resolved: ResolvedRun) -> None:
    """Import the functions that a configuration names and check their options; ConfigError if one is not allowed."""
    # not the model: importing it would import torch
    config, policy = resolved.config, resolved.policy
    _check_sources(config)
    _check_scores(resolved)
    warn_of_beta(config)
    if resolved.guard is not None:
        resolved.guard.check(config.seed)
    _check_policy(resolved, with_features=resolved.keeps_features)
    for candidate in candidates_of(config):
        _check_policy(resolved.with_policy(candidate), with_features=False)
    if config.fit is not None:
        function_of(config.fit, None, field="fit")
        if policy.needs_features:
            raise ConfigError(
                f"policy {policy.name} reads the features of a model, but fit gives only probabilities. "
                "Choose another policy, or set model and recipe instead of fit."
            )


def _check_policy(resolved: ResolvedRun, *, with_features: bool) -> None:
    """Call a built-in policy on one sample, because it checks its own options."""
    config, policy = resolved.config, resolved.policy
    if policy.is_own:
        return
    one = np.zeros(1, np.int64)
    tried: dict[str, np.ndarray] = {"pred_M": one, "p_label_M": np.full(1, 0.5, np.float32)}
    if config.combine == "mean" and CONSISTENCY in resolved.scores.over_epochs:
        tried[f"{CONSISTENCY}_M"] = np.full(1, 0.5, np.float32)
    if with_features:
        tried |= {"features_MD": np.zeros((1, 1), np.float32), "kept_features_KD": np.zeros((0, 1), np.float32)}
        tried["kept_labels_K"] = np.empty(0, np.int64)
    more = offered(policy.function, tried)
    policy.function(np.zeros(1, np.float32), one, one, 1, kept_C=one, seed=config.seed, **more)


def _check_sources(config: PruneConfig) -> None:
    """Refuse functions that a resumed run could not know again."""
    for field, value in (("source", config.source), ("test", config.test)):
        use = None if value is None else source_ref(value, field=field).use
        if callable(use) and (problems := check_function(use, field=field)):
            raise ConfigError(problems)


def _check_scores(resolved: ResolvedRun) -> None:
    config, stored = resolved.config, resolved.scores
    name = score_name(config.score)
    problems: list[str] = []
    for read, by in {
        name: "the choice",
        **dict.fromkeys(resolved.guard.scores if resolved.guard else (), "the guard"),
    }.items():
        known = read in (*stored.of_votes, *stored.of_stages) or (
            read in stored.single and of_probabilities(stored.single[read])
        )
        if config.combine == "mean_prob" and not known:
            problems.append(
                f"combine=mean_prob does not work for score {read}, which {by} reads: it cannot be computed from mean probabilities. "
                "Use combine: mean or rank_mean."
            )
    problems += [*_problems_of_votes(resolved), *_problems_of_stages(resolved)]
    alone = config.mode == "fitting" or len(config.fractions()) > 1
    if stored.over_epochs and config.gpus_per_fit > 1 and alone:
        problems.append(
            f"score over epochs: {', '.join(stored.over_epochs)} cannot be computed for a model that gpus_per_fit={config.gpus_per_fit} "
            "workers train together. Set gpus_per_fit: 1, or also_score: none and a score of the trained model."
        )
    if config.score_every is not None and not stored.over_epochs:
        problems.append(
            f"score_every={config.score_every} has no effect: no score over epochs is stored. Set also_score: all, or name one."
        )
    if problems:
        raise ConfigError(problems)


def _problems_of_votes(resolved: ResolvedRun) -> list[str]:
    """Whether a score of several votes has two of every sample, in every stage."""
    config, stored = resolved.config, resolved.scores
    if not resolved.of_models or not stored.of_votes:
        return []
    stages = range(len(config.fractions()))
    if min(map(resolved.votes_each, stages)) >= 2:
        return []
    given, cure = f"mode: fitting, repeats={config.repeats}", "repeats: 2"
    if config.mode == "unseen":
        scoring = config.scoring.to_json()
        few = "".join(f"scoring.{name}={scoring[name]}, " for name in ("votes", "models") if name in scoring)
        given = (
            f"folds={config.folds}, train_on={config.train_on}, {few}repeats={config.repeats} and {len(stages)} stages"
        )
        cure = f"folds: 3 or more, scoring.votes: 2 or scoring.models: 3 at least, and no schedule, or {cure}"
    said = f"score {stored.of_votes[0]} compares a sample's votes, and some samples have one vote"
    return [f"{said}: with {given}. Set {cure}."]


def _problems_of_stages(resolved: ResolvedRun) -> list[str]:
    """Whether a score of two stages has two, and losses to compare."""
    config, stored = resolved.config, resolved.scores
    if not stored.of_stages:
        return []
    said, problems = f"score {stored.of_stages[0]} compares the loss of a later stage with that of stage 0", []
    if config.combine == "rank_mean":
        problems.append(f"{said}, and combine=rank_mean makes ranks of losses. Set combine: mean or mean_prob.")
    if len(config.fractions()) == 1 and config.mode == "unseen" and score_name(config.score) in stored.of_stages:
        problems.append(f"{said}, and there is one stage. Give a schedule, or score: loss.")
    return problems


def check_test_set(test: SourceInfo, info: SourceInfo) -> None:
    """Refuse a test set with other classes than the source's; warn if it is the source itself."""
    if test.is_of_same_data(info):
        logger.warning(
            "test %s is the data that you prune, so models are measured on their training data. Give a separate test set.",
            test.name,
        )
    numbers_as_in(test, info.class_names, info.num_classes)
    if bool(test.class_names) != bool(info.class_names) and not all(
        map(str.isdecimal, test.class_names or info.class_names)
    ):
        named, other = (info.name, test.name) if info.class_names else (test.name, info.name)
        logger.warning(
            "%s names its classes and %s does not: so it cannot be checked that their numbers mean the same classes.",
            named,
            other,
        )


def check_out(config: PruneConfig) -> None:
    """Refuse a run's folder in the source, where its files would be taken for data."""
    for place in source_ref(config.source).places:
        if config.out is not None and covers(place, config.out, (CORESET, KEYS)):
            raise ConfigError(
                f"out={config.out} lies in the source {place}, which it would change. Name a folder elsewhere with --out."
            )


def check_test(config: PruneConfig, info: SourceInfo) -> None:
    """Refuse a missing or unsuitable test set before the training rather than after it."""
    if config.test is None:
        return
    check_test_set(open_source(source_ref(config.test, field="test")).info, info)


def check_lenders(config: PruneConfig, info: SourceInfo) -> None:
    """Refuse to reuse the work of folders that hold no run, or one on the same source before its pixels changed."""
    for lender in config.reuse or []:
        manifest = read_manifest(Folder(lender))
        if manifest is None:
            raise ConfigError(f"reuse={lender} holds no run. Give the folder of an `unseen-ray prune`.")
        if manifest.source.fingerprint == info.fingerprint and not manifest.source.is_same_data(info):
            raise ConfigError(
                f"reuse={lender} holds a run on {info.name} before the content of its files changed. Leave it out of reuse."
            )
        warn_of_edits(lender, manifest.environment, code_of(config))


def check_replaced(config: PruneConfig) -> None:
    """Refuse to reuse the work of a run that a fresh start removes."""
    for lender in config.reuse or []:
        if config.out is not None and covers(config.out, lender):
            raise ConfigError(
                f"reuse={lender} lies in out={config.out}, whose run a fresh start removes. Name another out, or leave out fresh: "
                "a resumed run keeps its own work."
            )


def code_of(config: PruneConfig) -> dict[str, str]:
    """SHA-256 of the source text of each function of your own that a configuration names, by its name, as far as there is one.

    Of the function alone, not of what it calls: who runs a script again has often edited another part of it.
    """
    also = config.also_score if isinstance(config.also_score, (list, tuple)) else ()
    plugs = (
        config.score,
        *also,
        config.policy,
        *candidates_of(config),
        config.guard,
        config.model,
        config.scoring.model,
        config.fit,
    )
    found = {}
    for use in (source_ref(config.source).use, *(plug_of(value)[0] for value in plugs)):
        function = import_target(use) if isinstance(use, str) and is_target(use) else use
        if callable(function) and not name_of(use).startswith("unseen_ray."):
            with contextlib.suppress(OSError, TypeError):  # where there is no text, as of a function in C
                found[name_of(use)] = sha256_of(inspect.getsource(function).encode())
    return found


def warn_of_edits(place: str, environment: Mapping[str, Any], code: Mapping[str, str]) -> None:
    """Warn where work of a run is taken over that functions of your own have done, and these were edited since.

    Args:
        place: the folder of the run.
        environment: of its manifest.
        code: of the functions now, see `code_of`.
    """
    before = environment.get(CODE, {})
    for name in sorted(name for name, digest in code.items() if before.get(name, digest) != digest):
        logger.warning(
            "%s was edited since the run in %s began, and what that has finished is by the code of then. To use the new code for all of "
            "it, begin anew: with --fresh (fresh=True), or without reuse.",
            name,
            place,
        )


def check_readable(source: Source, begun: Job, now: Job) -> None:
    """Refuse to go on without samples that finished work has used; DataError if one cannot be read any more."""
    if len(lost := np.setdiff1d(now.skipped_ids, begun.skipped_ids)):
        raise DataError(
            f"images that could be read before cannot be read now: {len(lost)}, the first of sample {source.keys(lost[:1].tolist())[0]}. "
            "Restore them and run the same line again, or prune anew in another folder."
        )
