"""A run's configuration with all defaults resolved: made once, then passed to everything that does the work.

`PruneConfig` holds what the user asked for. `ResolvedRun` adds what follows from it and from the data: the model's name, the digest of
the initial weights, the functions that it names with their options bound, and what these read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unseen_ray.config.guards import Guard, guard_of, guard_value
from unseen_ray.config.initial_weights import check_digest, with_initial_weights
from unseen_ray.config.models import default_model
from unseen_ray.config.score_columns import StoredScores, score_name, stored_scores
from unseen_ray.config.scoring import with_scoring_model
from unseen_ray.core import select
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import function_of, is_target, plug_of

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.config.run import PruneConfig

__all__ = ["Policy", "ResolvedRun", "with_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The function that selects samples by their scores, with its options bound.

    Attributes:
        function: see `core.select`.
        name: its name in messages.
        is_own: whether it is the user's own function.
        reads_features: whether it takes features.
        needs_features: whether it requires them.
    """

    function: Callable[..., Any]
    name: str
    is_own: bool
    reads_features: bool
    needs_features: bool


def _policy_of(config: PruneConfig) -> Policy:
    """The policy of a run.

    Raises:
        ConfigError: if it cannot be imported, or does not take its options.
    """
    function, (use, _) = function_of(config.policy, select, field="policy"), plug_of(config.policy)
    features = inspect.signature(function).parameters.get("features_MD")
    return Policy(
        function=function,
        name=score_name(config.policy),
        is_own=not isinstance(use, str) or is_target(use),
        reads_features=features is not None,
        needs_features=features is not None and features.default is inspect.Parameter.empty,
    )


@dataclass(frozen=True, eq=False)
class ResolvedRun:
    """See the module. `ResolvedRun.of` makes one that trains; to select only, which needs no model, use `ResolvedRun(config)`.

    Attributes:
        config: the configuration with its model and the digest of its initial weights.
        of_models: whether our models give the predictions; else there are only the user's probabilities to score.
        exact: whether scores tell nearly certain samples apart; not in a run that an earlier version began.
    """

    config: PruneConfig
    of_models: bool = True
    exact: bool = True

    @classmethod
    def of(cls, config: PruneConfig, size_px: int) -> ResolvedRun:
        """Resolve a configuration for images of `size_px`; reads the initial weights once.

        Raises:
            ConfigError: if the recipe does not suit images of this size, or the initial weights cannot be read.
        """
        return cls(with_initial_weights(with_model(config, size_px)))

    def __reduce__(self) -> tuple[Any, ...]:
        # the receiver resolves the functions again: they may hold closures, and the worker has its own imports
        return type(self), (self.config, self.of_models, self.exact)

    @cached_property
    def scores(self) -> StoredScores:
        """The scores that are stored; ConfigError if one cannot be computed."""
        return stored_scores(self.config, self.guard, of_models=self.of_models, exact=self.exact)

    @cached_property
    def guard(self) -> Guard | None:
        """The guard; None if there is none."""
        return guard_of(self.config)

    @cached_property
    def policy(self) -> Policy:
        """The policy."""
        return _policy_of(self.config)

    @property
    def keeps_probs(self) -> bool:
        """Whether votes carry N x C probabilities."""
        config, guard = self.config, self.guard
        of_guard = guard is not None and guard.needs_probs
        return config.save_probs or config.combine == "mean_prob" or of_guard or bool(self.scores.of_votes)

    @property
    def keeps_features(self) -> bool:
        """Whether the features of a model are kept: on request, or because the policy requires them."""
        return self.config.save_features or self.policy.needs_features

    def workers_of_fit(self, *, of_fold: bool) -> int:
        """Number of workers that share a fit: `gpus_per_fit` outside the folds, 1 for a fold or a user's fit."""
        return 1 if of_fold or self.config.fit is not None else self.config.gpus_per_fit

    def votes_each(self, stage: int) -> int:
        """Number of votes for every candidate of a stage."""
        config = self.config
        if stage == 0 and config.mode == "unseen" and config.train_on == "fold":
            scoring = config.scoring
            return (scoring.votes or (scoring.models or config.folds) - 1) * config.repeats
        return config.repeats

    def as_begun(self, begun: Mapping[str, Any], *, exact: bool) -> ResolvedRun:
        """The same with the values with which the run was begun, so that another machine or version does not change the bits.

        Args:
            begun: the configuration of the begun run, as resolved.
            exact: whether its scores are exact.

        Raises:
            ConfigError: if the initial weights are different ones now.
        """
        ours, theirs = self.config, begun.get("scoring", {}).get("recipe")
        for recipe, before in ((ours.recipe, begun["recipe"]), (ours.scoring.recipe, theirs)):
            if recipe is not None and recipe.init is not None and recipe.init_sha256 is not None:
                check_digest(recipe.init, recipe.init_sha256, (before or {}).get("init_sha256"))
        return replace(self.with_recipe(precision=begun["recipe"]["precision"]), exact=exact)

    def for_scoring(self) -> ResolvedRun:
        """The same with the model and the recipe that score."""
        return replace(self, config=with_scoring_model(self.config))

    def with_recipe(self, **changes: Any) -> ResolvedRun:
        """The same with some fields of the recipe changed."""
        return self._changed(recipe=self.config.recipe.model_copy(update=changes))

    @property
    def guard_value(self) -> Any:
        """What the guard is, without importing it: as asked for, or the one of `policy: auto`."""
        return guard_value(self.config.guard, policy=self.config.policy, mode=self.config.mode)

    @property
    def guards_by_rows(self) -> float | None:
        """The share of suspects above which `unlikely_label`, which judges each sample by itself, leaves them out; None for others."""
        use, options = plug_of(self.guard_value)
        return options.get("many", 0.0) if use == "unlikely_label" else None

    def with_policy(self, policy: Any, *, guard: Any = None) -> ResolvedRun:
        """The same with another policy; with the same guard, if no other is given."""
        return self._changed(policy=policy, guard=self.guard_value if guard is None else guard)

    def with_seed(self, seed: int) -> ResolvedRun:
        """The same with another seed."""
        return self._changed(seed=seed)

    def with_hardware(self, *, precision: str, cpus_per_fold: float, gpus_per_fold: float) -> ResolvedRun:
        """The same with the values that depend on the machines."""
        changed = self.with_recipe(precision=precision)
        return changed._changed(cpus_per_fold=cpus_per_fold, gpus_per_fold=gpus_per_fold)

    def on_hardware_of(self, config: PruneConfig) -> ResolvedRun:
        """The same with the values of another configuration that depend on the machines."""
        changed = self.with_recipe(precision=config.recipe.precision)
        return changed._changed(cpus_per_fold=config.cpus_per_fold, gpus_per_fold=config.gpus_per_fold)

    def keeping(self, *fields: str) -> ResolvedRun:
        """The same with `save_probs` or `save_features` set."""
        return self._changed(**dict.fromkeys(fields, True))

    def _changed(self, **values: Any) -> ResolvedRun:
        return replace(self, config=self.config.model_copy(update=values))


def with_model(config: PruneConfig, size_px: int) -> PruneConfig:
    """The configuration with the default model, if it trains one and names none.

    Raises:
        ConfigError: if a recipe sets what has no effect on images of this size, or `train_px` larger than they are.
    """
    for field, recipe in (("recipe", config.recipe), ("scoring.recipe", config.scoring.recipe)):
        if recipe is not None:
            _check_augment(field, recipe, size_px)
    if config.fit is not None or config.model is not None:
        return config
    return config.changed(model=default_model(size_px))


def _check_augment(field: str, recipe: Recipe, size_px: int) -> None:
    augment, largest = recipe.augment_at(size_px), recipe.largest_crop()
    if idle := recipe.idle_with(augment):
        raise ConfigError(
            f"{field}.{idle} has no effect: images of {size_px} px are augmented by {augment}. "
            f"Remove it, or set {field}.augment."
        )
    if largest is not None and largest > size_px:
        raise ConfigError(
            f"{field}.train_px={largest} is larger than the images, which have {size_px} px. Store them larger with "
            f"source.size, or set {field}.train_px to at most {size_px}."
        )
