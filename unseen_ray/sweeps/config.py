"""The configuration of a sweep: fields that all trials share, the search space, the search, and what to measure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from unseen_ray.config.fields.base import Fields
from unseen_ray.config.fields.describe import described
from unseen_ray.config.messages import field_messages
from unseen_ray.config.run import PruneConfig, load_yaml
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import did_you_mean, jsonable
from unseen_ray.storage.path_validation import given_path
from unseen_ray.sweeps.space import SWEEPABLE, check_space

__all__ = ["AGAINST", "Halving", "Proxy", "SweepConfig", "SweepFields"]

AGAINST = ("random", "random_matched", "full")
_NOT_SHARED = {
    "out": "set the sweep's own `out`; the trials go into folders below it",
    "mode": "put it into the space: mode: [unseen, fitting]",
    "seed": "set the sweep's own `seed`",
    "reuse": "trials share their work anyway",
    "log_to": "Ray Tune writes the sweep's TensorBoard files",
}


class Proxy(Fields):
    """The proxy: one model and recipe that measures the coreset of every trial."""

    model: Any = Field(default=None, description="model trained on each coreset; default the run's")
    recipe: Any = Field(default=None, description="its recipe; default the run's")
    trainings: int = Field(default=1, ge=1, description="trainings of each coreset, with different seeds")


class Halving(Fields):
    """Asynchronous successive halving (ASHA): after a stage, trials whose coreset measures badly are stopped."""

    use: Literal["asha"] = Field(default="asha", description="Ray Tune's ASHAScheduler")
    reduction: float = Field(
        default=2, gt=1, description="one in this many of the trials that reached a stage continues"
    )
    grace: float = Field(default=0, ge=0, lt=1, description="fraction of N below which no trial is stopped")


class SweepFields(TypedDict, total=False):
    """The fields of `SweepConfig` as keywords, which describes them."""

    run: Mapping[str, Any]
    space: Mapping[str, Any]
    out: str | os.PathLike[str] | None
    search: Literal["grid", "random", "optuna"]
    trials: int | None
    seeds: int
    seed: int
    proxy: Mapping[str, Any] | Proxy
    against: str | Sequence[str]
    objective: Literal["accuracy", "pareto"]
    scheduler: Literal["none", "asha"] | Mapping[str, Any] | Halving | None
    max_concurrent_trials: int | None
    max_failures: int
    address: str | None


@described
class SweepConfig(Fields):
    """A sweep.

    Raises:
        ConfigError: with every problem at once.
    """

    run: dict[str, Any] = Field(description="fields of a run that all trials share; they are measured on its holdout")
    space: dict[str, Any] = Field(
        description="values to try of each hyperparameter: a list, or {min, max, log} for random and optuna"
    )
    out: str | None = Field(
        default=None, description="the sweep's folder, local or a URI; on a cluster it must be on shared storage"
    )
    search: Literal["grid", "random", "optuna"] = Field(default="grid", description="how the space is searched")
    trials: int | None = Field(default=None, ge=1, description="how many configurations random and optuna try")
    seeds: int = Field(default=1, ge=1, description="runs of each configuration, with seed, seed + 1, ...")
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,  # the most that Optuna's samplers take
        description="of the first run of each configuration, and of the search, from 0 to 2**32 - 1",
    )
    proxy: Proxy = Field(default_factory=Proxy, description="{model, recipe, trainings}: how coresets are measured")
    against: tuple[str, ...] = Field(
        ("random", "full"), description="baselines to measure, too: random, random_matched, full"
    )
    objective: Literal["accuracy", "pareto"] = Field(
        default="accuracy", description="what optuna optimises: accuracy alone, or accuracy and cost (pareto)"
    )
    scheduler: Halving | None = Field(default=None, description="none, asha, or {use: asha, reduction, grace}")
    max_concurrent_trials: int | None = Field(
        default=None,
        ge=1,
        description="trials that run at the same time; default as many as the cluster can train at once, at most 8",
    )
    max_failures: int = Field(default=2, ge=0, description="how often a trial is restarted after its process was lost")
    address: str | None = Field(
        default=None, description="Ray cluster to join; default: RAY_ADDRESS, else a private one on this machine"
    )

    def __init__(self, /, **values: Unpack[SweepFields]) -> None:
        problems: list[str] = []
        try:
            super().__init__(**dict(values))
        except ValidationError as error:
            parts: dict[str, type[BaseModel]] = {"proxy": Proxy, "scheduler": Halving}
            problems = field_messages(error.errors(), SweepConfig, parts=parts)
        # Checked even if other fields are wrong, to report all problems at once.
        if isinstance(values.get("space"), Mapping):
            problems += check_space(values["space"], ranges=values.get("search", "grid") != "grid")
        if isinstance(values.get("run"), Mapping):
            problems += _check_run(values["run"], values.get("space"))
        # Checks across fields need valid fields.
        if not problems:
            problems = self._problems()
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **changes: Unpack[SweepFields]) -> SweepConfig:
        """A sweep from a YAML file, some fields changed."""
        return cls(**{**load_yaml(os.path.expanduser(path)), **changes})

    @classmethod
    def of(cls, config: SweepConfig | str | os.PathLike[str] | None, fields: SweepFields) -> SweepConfig:
        """The sweep that a function was given: a configuration, a YAML file, or neither, with some fields changed."""
        if isinstance(config, (str, os.PathLike)):
            return cls.from_yaml(config, **fields)
        if config is not None and not isinstance(config, cls):
            raise ConfigError(
                f"config is of type {type(config).__name__}; it must be a SweepConfig or the path of a YAML file. Give single fields "
                "as keywords: run={...}, space={...}."
            )
        if config is None or not fields:
            return cls(**fields) if config is None else config
        return cls(**{**{name: getattr(config, name) for name in config.model_fields_set}, **fields})

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler_by_name(cls, value: Any) -> Any:
        return None if value in (None, "none") else {"use": value} if isinstance(value, str) else value

    @field_validator("against", mode="before")
    @classmethod
    def _known_baselines(cls, value: Any) -> Any:
        names = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
        for name in names:
            if name not in AGAINST:
                raise ValueError(
                    f"against={name!r} is not a baseline of a sweep. Allowed: {', '.join(AGAINST)}.{did_you_mean(str(name), AGAINST)}"
                )
        return tuple(dict.fromkeys(names))

    @field_validator("out", "address", mode="before")
    @classmethod
    def _text(cls, value: Any, info: ValidationInfo) -> Any:
        return given_path(str(info.field_name), value)

    def measured_against(self) -> tuple[str, ...]:
        """The baselines; a scheduler adds `random`, because it compares trials by their lead over a random subset."""
        return self.against if self.scheduler is None else tuple(dict.fromkeys(["random", *self.against]))

    def to_json(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        values: dict[str, Any] = jsonable(self.model_dump())
        return values

    def _problems(self) -> list[str]:
        problems = []
        if self.search == "grid" and self.trials is not None:
            problems.append(
                f"trials={self.trials} has no effect with search: grid, which tries every combination. Remove one of the two."
            )
        if self.search != "grid" and self.trials is None:
            problems.append(f"search: {self.search} needs `trials`: how many configurations to try.")
        if self.objective == "pareto" and self.search != "optuna":
            problems.append(
                "objective=pareto has an effect only with search: optuna; the Pareto front is always reported. Remove it."
            )
        if self.scheduler is not None and self.seeds > 1:
            problems.append(
                f"scheduler: asha compares single runs, but seeds={self.seeds}. Set seeds: 1, or scheduler: none."
            )
        return problems


def _check_run(run: Mapping[str, Any], space: Any) -> list[str]:
    """Problems with a sweep's `run`; whether each trial makes a valid run is checked later."""
    problems = [f"run.{name} is not allowed in a sweep: {why}." for name, why in _NOT_SHARED.items() if name in run]
    for name in ("source", "keep"):
        if run.get(name) is None and not (isinstance(space, Mapping) and name in space and name in SWEEPABLE):
            problems.append(f"run.{name} is missing: {PruneConfig.model_fields[name].description}.")
    if run.get("executor", "ray") != "ray":
        problems.append(f"run.executor={run['executor']!r}: a sweep runs on Ray Tune. Remove it.")
    if run.get("address") is not None:
        problems.append("run.address: name the cluster by the sweep's own `address`.")
    if not run.get("holdout"):
        problems.append(
            "there is nothing to measure trials on: a sweep never uses a test set, since choosing the best trial would overfit it. "
            "Set run.holdout: 0.1, which sets a part of the source aside."
        )
    if run.get("fit") is not None:
        problems.append(
            "run.fit: your own training function cannot be measured in a sweep. Remove it, or give a model and a recipe."
        )
    return problems
