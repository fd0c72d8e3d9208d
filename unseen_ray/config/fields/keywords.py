"""The types of a run's fields as keywords, so that editors complete them and type checkers refuse a wrong name or value.

`PruneConfig` holds their defaults, checks and descriptions.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, TypeVar

from unseen_ray.config.recipe import Recipe
from unseen_ray.config.scoring import Scoring

__all__ = [
    "CommonFields",
    "MeasureFields",
    "NewRunFields",
    "PathLike",
    "Plug",
    "RunFields",
    "ScoreFields",
    "SourceLike",
    "with_keywords",
]

PathLike = str | os.PathLike[str]
Plug = str | Mapping[str, Any] | Callable[..., Any]
"""A name, `package.module:function`, `{use: name, option: value}`, or the function itself."""


SourceLike = PathLike | Mapping[str, Any] | Callable[..., Any]
"""A name, a path or URI, `{use: name, option: value}`, or a function that returns the samples."""


class Indexed(Protocol):
    """Samples in memory, by number."""

    def __getitem__(self, index: Any, /) -> Any: ...


class ScoreFields(TypedDict, total=False):
    """What `score` shares with a run."""

    also_score: str | Sequence[Plug]
    combine: Literal["mean", "rank_mean", "mean_prob"]
    guard: Plug
    score: Plug
    seed: int


class CommonFields(ScoreFields, total=False):
    """Every field but `source`, `keep` and `out`."""

    reuse: PathLike | Sequence[PathLike] | None
    mode: Literal["unseen", "fitting"]
    folds: int
    train_on: Literal["fold", "complement"]
    stratify: bool
    group: PathLike | Mapping[str, Any] | None
    repeats: int
    schedule: Sequence[float] | Mapping[str, Any] | None
    test: SourceLike | Indexed | None
    holdout: float
    score_every: int | None
    policy: Plug
    on_bad_sample: Literal["error", "skip"]
    save_probs: bool
    save_features: bool
    pixel_memory_gb: float
    pixel_folder: PathLike | None
    model: Plug | None
    recipe: str | Mapping[str, Any] | Recipe
    scoring: Mapping[str, Any] | Scoring
    fit: Plug | None
    threads: int
    cpus_per_fold: float | None
    gpus_per_fold: float | None
    gpus_per_fit: int
    min_gpus_per_fit: int | None
    placement: Mapping[str, Any] | None
    max_retries: int
    max_preemptions: int
    wait_s: float
    executor: Literal["ray", "local"]
    log_to: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
    address: str | None


class MeasureFields(TypedDict, total=False):
    """What `evaluate` may change of a run, or is given again because it names your own functions."""

    source: SourceLike
    score: Plug
    also_score: str | Sequence[Plug]
    policy: Plug
    guard: Plug
    scoring: Mapping[str, Any] | Scoring
    fit: Plug | None
    model: Plug | None
    recipe: str | Mapping[str, Any] | Recipe
    threads: int
    gpus_per_fit: int
    min_gpus_per_fit: int | None
    log_to: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
    group: PathLike | Mapping[str, Any] | None
    executor: Literal["ray", "local"]
    address: str | None
    cpus_per_fold: float | None
    gpus_per_fold: float | None
    placement: Mapping[str, Any] | None
    max_retries: int
    max_preemptions: int
    wait_s: float


class RunFields(CommonFields, total=False):
    """Every field of `PruneConfig`; those that are not given come from a configuration or are the defaults."""

    source: SourceLike | Indexed
    keep: float
    out: PathLike | None


class _Needed(TypedDict):
    source: SourceLike
    keep: float


class NewRunFields(CommonFields, _Needed, total=False):
    """The fields of a new `PruneConfig`, which needs `source` and `keep`."""

    out: PathLike | None


Function = TypeVar("Function", bound=Callable[..., Any])
_FIRST = ("source", "keep", "out")


def with_keywords(fields: type[Any]) -> Callable[[Function], Function]:
    """A decorator that names the fields in the signature of a function that takes them as `**fields`, for `help` and notebooks."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=hint.__forward_arg__)
            for name, hint in sorted(fields.__annotations__.items(), key=lambda field: field[0] not in _FIRST)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        return function

    return decorate
