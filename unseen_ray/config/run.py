"""The configuration of a run, and the only place of its defaults: YAML, flags and `--help` are generated from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator

from unseen_ray.config.checks import CHECKS, check_schedule, keep_message
from unseen_ray.config.fields.base import Fields
from unseen_ray.config.fields.describe import described
from unseen_ray.config.fields.listing import setting
from unseen_ray.config.fields.yaml_text import parsed_yaml
from unseen_ray.config.messages import field_messages
from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.scoring import Scoring, scoring_by_default, scoring_stored, scoring_values
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import jsonable, named
from unseen_ray.storage.path_validation import as_text, given_path, path_problem
from unseen_ray.storage.plain_text import reason_of

if TYPE_CHECKING:
    from unseen_ray.config.fields.keywords import NewRunFields, RunFields

__all__ = [
    "EXECUTOR_FIELDS",
    "FREE_FIELDS",
    "LARGEST_SEED",
    "NAMED_FIELDS",
    "SCORE_FIELDS",
    "PruneConfig",
    "load_yaml",
]

NAMED_FIELDS = ("source", "score", "also_score", "policy", "guard", "scoring", "fit")
"""Fields that may name the user's own functions, which `evaluate` takes again: a run's folder alone never causes an import."""
EXECUTOR_FIELDS = (
    "executor",
    "address",
    "cpus_per_fold",
    "gpus_per_fold",
    "placement",
    "max_retries",
    "max_preemptions",
    "wait_s",
)
"""Fields that say where and how to run, but not what to compute."""

SCORE_FIELDS = ("score", "also_score", "combine", "guard", "seed")
"""Fields that `score` shares with a run."""

LARGEST_SEED = 2**63 - 1
"""The largest int64, which numpy's and torch's generators accept: your own policy or guard may pass the seed to them."""

FREE_FIELDS = (
    "out",
    "reuse",
    "save_probs",
    "save_features",
    "log_to",
    "pixel_memory_gb",
    "pixel_folder",
    *EXECUTOR_FIELDS,
)
"""Fields that cannot change which ids are selected: a run may be resumed with other values."""

_LATER: dict[str, Any] = {
    "scoring": {},
    "group": None,
    "placement": None,
    "max_preemptions": 20,
    "min_gpus_per_fit": None,
}
"""Fields that older stored runs do not have, with the values by which they are left out."""

_PLACES, _LISTS = {"source", "test", "group"}, {"also_score", "log_to"}
_FORMS = {*_PLACES, *_LISTS, "score", "policy", "guard", "model", "fit"}
"""Fields of type Any: names, mappings or lists of them."""


@described
class PruneConfig(Fields):
    """What to prune, and how.

    Raises:
        ConfigError: with every problem at once.

    >>> PruneConfig(source="digits", keep=0.7).folds
    4
    """

    source: Any = setting(
        ...,
        "the data to prune (digits, cifar10, cifar100, imagenet, a path or URI, a mapping, or package.module:function)",
        "data",
        "SOURCE",
    )
    keep: float = setting(..., "fraction of the samples to keep, between 0 and 1; 0.7 prunes 30 %", "choice")
    out: str | None = setting(
        None, "folder of the run, a local path or a URI; on a cluster, all nodes must share it", "storage", "FOLDER"
    )
    reuse: list[str] | None = setting(
        None,
        "folders of other runs, whose trainings and scores are reused where they would be identical",
        "storage",
        "FOLDERS",
        rare=True,
    )
    mode: Literal["unseen", "fitting"] = setting(
        "unseen",
        "unseen: each model scores only samples that it was not trained on; fitting, the usual baseline: one "
        "model trains on all samples and scores them",
        "choice",
    )
    folds: int = setting(4, "K, the number of folds, from 2 to N", "choice", ge=2)
    train_on: Literal["fold", "complement"] = setting(
        "fold",
        "fold: each model trains on one fold and scores the others (UNSEEN); complement: each "
        "trains on all folds but one and scores that one",
        "choice",
        rare=True,
    )
    stratify: bool = setting(True, "spread each class evenly over the folds", "choice", rare=True)
    group: Any = setting(
        None,
        "which samples stay together in one fold: a column, such as the patient, or a .npy file with one number "
        "per row; {pattern: REGEX} of the "
        "keys (--group.pattern); with drop: true (--group.drop true) only one of each group is used",
        "data",
        "COLUMN|FILE",
    )
    combine: Literal["mean", "rank_mean", "mean_prob"] = setting(
        "mean",
        "how the scores of a sample by several models become one: their mean, the mean of their ranks, or the score "
        "of the mean probabilities",
        "choice",
        rare=True,
    )
    repeats: int = setting(
        1, "models to train in place of each one, with different seeds", "choice", rare=True, ge=1, le=10_000
    )
    seed: int = setting(
        0, "random seed of folds, training and ties, from 0 to 2**63 - 1", "choice", ge=0, le=LARGEST_SEED
    )
    schedule: Any = setting(
        None,
        "choose in stages: fractions of N that end in keep, or {first, stages, spacing: even|geometric}; default: one stage",
        "choice",
        "FRACTIONS",
    )
    test: Any = setting(
        None, "test set with the same classes, for evaluate; default: the source's own test split", "data", "SOURCE"
    )
    holdout: float = setting(
        0.0, "fraction of each class to set aside for evaluate: never trained on, scored or kept", "data", ge=0, lt=1
    )
    score: Any = setting("entropy", "the score that ranks samples; see `unseen-ray list scores`", "choice", "NAME")
    also_score: Any = setting(
        "all",
        "other scores to store: all (those that cost nothing extra), none, or a list",
        "choice",
        "NAMES",
        rare=True,
    )
    score_every: int | None = setting(
        None, "epochs between two records of the scores over epochs; default: 1", "choice", rare=True, ge=1
    )
    policy: Any = setting(
        "auto",
        "how samples are chosen by their scores; see `unseen-ray list policies`; in mode: fitting, top unless you set it",
        "choice",
        "NAME",
    )
    guard: Any = setting(
        "none",
        "which rule leaves out samples whose labels look wrong: none, or one of `unseen-ray list guards`; policy auto "
        "brings its own unless you set this, be it to none",
        "choice",
        "NAME",
    )
    on_bad_sample: Literal["error", "skip"] = setting(
        "error", "error: stop at an image that cannot be decoded; skip: leave it out", "data"
    )
    save_probs: bool = setting(False, "store the mean out-of-fold probabilities, an N x C array", "storage", rare=True)
    save_features: bool = setting(
        False,
        "store the features before the last layer of the first model of stage 0, an N x D array",
        "storage",
        rare=True,
    )
    pixel_memory_gb: float = setting(
        4.0,
        "GiB of decoded images to hold in memory; a larger source is decoded into files",
        "storage",
        rare=True,
        ge=0,
    )
    pixel_folder: str | None = setting(
        None,
        "folder for the decoded images that memory has no room for, which runs can share; "
        "default: in out, until the run is finished; "
        "none: decode at every read",
        "storage",
        "FOLDER",
        rare=True,
    )
    model: Any = setting(
        None, "model to train; default: by the image size; see `unseen-ray list models`", "training", "NAME"
    )
    recipe: Recipe = setting(
        ...,
        "how to train: a name from `unseen-ray list recipes`, or {use: name, field: value}",
        "training",
        "NAME",
        default_factory=Recipe,
    )
    scoring: Scoring = setting(
        ...,
        "settings of the scoring models alone: {share, recipe, model, votes, models}; they train for a "
        "quarter of the epochs by default, for all with a guard or a score over epochs, and with share: 1",
        "training",
        "MAPPING",
        default_factory=Scoring,
    )
    fit: Any = setting(
        None,
        "your own training function, package.module:function, in place of model and recipe",
        "training",
        "FUNCTION",
        rare=True,
    )
    threads: int = setting(1, "CPU threads per training", "cluster", ge=1)
    cpus_per_fold: float | None = setting(
        None, "CPUs to reserve per training; default: threads", "cluster", rare=True, gt=0
    )
    gpus_per_fold: float | None = setting(
        None,
        "GPUs per training of a fold, or a share of one; default: 1 if the cluster has GPUs, else 0",
        "cluster",
        ge=0,
    )
    gpus_per_fit: int = setting(
        1, "GPUs (or CPU workers) that share one training in later stages and in evaluate", "cluster", rare=True, ge=1
    )
    min_gpus_per_fit: int | None = setting(
        None,
        "fewest of gpus_per_fit with which such a training goes on when workers are lost, until they come back; default: all of them",
        "cluster",
        rare=True,
        ge=1,
    )
    placement: dict[str, Any] | None = setting(
        None,
        "labels of the nodes to use: {fits: {LABEL: VALUE}} for trainings, fallback: a list of others for them where none is "
        "free, aggregator for merges, driver for the job of submit; a value is a, !a, in(a, b) or !in(a, b)",
        "cluster",
        "MAPPING",
        rare=True,
    )
    max_retries: int = setting(
        3, "restarts in a row of a task that loses its worker without making progress", "cluster", rare=True, ge=0
    )
    max_preemptions: int = setting(
        20,
        "moves in a row of a task off nodes that are taken away with notice, as spot nodes are, without making progress",
        "cluster",
        rare=True,
        ge=0,
    )
    wait_s: float = setting(600, "seconds to wait for a node with room for a training", "cluster", rare=True, ge=0)
    executor: Literal["ray", "local"] = setting(
        "ray", "ray: on a Ray cluster; local: in this process, without Ray, with the same result", "cluster"
    )
    log_to: Any = setting(
        None,
        "where to log every epoch of training: tensorboard (default), mlflow, wandb, a list, or none",
        "storage",
        "NAMES",
    )
    address: str | None = setting(
        None, "Ray cluster to join; default: RAY_ADDRESS, else a private one on this machine", "cluster", "ADDRESS"
    )

    def __init__(self, /, **fields_given: Unpack[NewRunFields]) -> None:
        values = {name: _plain(value) for name, value in fields_given.items() if name != "source" or value is not None}
        left = {"policy", "scoring"} - values.keys()
        by_default = scoring_by_default(values)
        values |= _policy_of(values) | by_default
        problems: list[str] = []
        faulty: set[str] = set()
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = [message for detail in error.errors() for message in _messages(detail)]
            faulty = {str(detail["loc"][0]) for detail in error.errors()}
        fields = PruneConfig.model_fields
        if not problems:
            self.model_fields_set.difference_update(left)
            if by_default:  # the share, which other fields may change again
                self.scoring.model_fields_set.discard("share")
        given = {name: value for name, value in values.items() if name in fields}
        valid = given if problems else {name: getattr(self, name) for name in given}
        for names, check in CHECKS:
            if not faulty & set(names):  # a check that reads an invalid field would report the same mistake twice
                problems += check(
                    {name: valid.get(name, fields[name].get_default(call_default_factory=True)) for name in names},
                    given,
                )
        if problems:
            raise ConfigError(problems)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            raise AttributeError(
                f"{name} of a configuration cannot be set. Make another one: config.changed({name}={value!r})."
            )
        super().__setattr__(name, value)

    @field_validator("recipe", mode="before")
    @classmethod
    def _complete_recipe(cls, value: Any) -> Any:
        if not isinstance(value, (str, Mapping, Recipe)):
            raise ValueError(f"recipe={value!r} must be a name or a mapping.")
        return recipe_values(value)

    @field_validator("scoring", mode="before")
    @classmethod
    def _complete_scoring(cls, value: Any, info: ValidationInfo) -> Any:
        return scoring_values(value, info.data.get("recipe"))

    @field_validator("reuse", mode="before")
    @classmethod
    def _one_folder_or_several(cls, value: Any) -> Any:
        folders = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        for folder in folders:
            if problem := path_problem("reuse", folder, "a folder, or a list of folders"):
                raise ValueError(problem)
        return [given_path("reuse", folder) for folder in folders] or None

    @field_validator("out", "pixel_folder", "address", mode="before")
    @classmethod
    def _text(cls, value: Any, info: ValidationInfo) -> Any:
        return given_path(str(info.field_name), value)

    def fractions(self) -> list[float]:
        """The schedule as fractions of N, the last one `keep`."""
        from unseen_ray.core.schedule import spaced_fractions

        if self.schedule is None:
            return [self.keep]
        if isinstance(self.schedule, Mapping):
            return spaced_fractions(
                self.schedule["first"], self.keep, self.schedule["stages"], self.schedule.get("spacing", "even")
            )
        return [float(fraction) for fraction in self.schedule]

    def to_json(self) -> dict[str, Any]:
        """Every field as a JSON value; functions by their names."""
        values = self.model_dump(exclude={"recipe", "scoring"})
        values |= {"recipe": self.recipe.model_dump(), "scoring": self.scoring.to_json()}
        return {
            name: jsonable(values[name])
            for name in type(self).model_fields
            if name not in _LATER or values[name] != _LATER[name]
        }

    def changed(self, **values: Unpack[RunFields]) -> PruneConfig:
        """A configuration with some fields changed, checked again; fields that were not set stay so."""
        fields = type(self).model_fields
        current = {name: getattr(self, name) for name in fields if name in self.model_fields_set}
        return PruneConfig(**{**current, **values})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PruneConfig:
        """The configuration that `to_json` wrote; fields with default values count as not set.

        The sources are not checked, so that a run's folder can be read without its data.
        """
        fields = cls.model_fields
        defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        defaults["recipe"] = Recipe().model_dump()
        given = {name: value for name, value in values.items() if name not in fields or value != defaults[name]}
        given["scoring"] = scoring_stored(values.get("scoring"))
        # a placeholder passes the checks of sources; the stored ones are put back unchecked
        sources: dict[str, Any] = {name: given[name] for name in ("source", "test") if name in given}
        return cls(**{**given, **dict.fromkeys(sources, "digits")}).model_copy(update=sources)

    @classmethod
    def problem_of_stored(cls, values: Mapping[str, Any]) -> str | None:
        """What is wrong with the types of stored fields, as asked for or as resolved; names and effects are not checked."""
        known = {name: values[name] for name in cls.model_fields if name in values}
        if known.get("keep") is None:  # of scores that nothing is chosen by yet
            known["keep"] = 0.5
        try:
            BaseModel.__init__(cls.__new__(cls), **known)  # without the checks of what was given
        except ValidationError as error:
            return _messages(error.errors()[0])[0]
        try:
            for name in _FORMS & known.keys():
                parts = known[name] if name in _LISTS and isinstance(known[name], list) else [known[name]]
                for part in parts:
                    named({"use": "", **part} if name in _PLACES and isinstance(part, dict) else part)
        except ValueError as error:
            return f"{name}: {error}."
        problems = check_schedule({"schedule": values.get("schedule"), "keep": known["keep"]}, {})
        return problems[0] if problems else None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping of fields from a YAML file.

    Raises:
        ConfigError: if it cannot be read, or is not a mapping in YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist. Give the path of a YAML file of fields, or the fields themselves, "
            "such as --source digits, in Python source='digits'."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason_of(error)}. Give the path of a YAML file of fields."
        ) from None
    try:
        values = parsed_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        held = "text" if isinstance(values, str) else f"a {type(values).__name__}"
        raise ConfigError(f"{path} holds {held}; it must hold fields, one `name: value` per line.")
    return values


def _plain(value: Any) -> Any:
    """Convert numpy scalars to Python numbers and paths to text, also in lists and mappings."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else as_text(value)


def _policy_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The policy where other fields decide on it.

    `auto` goes by models that never saw a sample, which `mode: fitting` does not have, and brings no guard beside `guard: none`.
    """
    policy = values.get("policy", "auto")
    options = dict(policy) if isinstance(policy, Mapping) else {"use": policy}
    if options.get("use") != "auto":
        return {}
    if values.get("mode") == "fitting":
        return {} if "policy" in values else {"policy": "top"}
    return {"policy": {"guard": False, **options}} if values.get("guard") == "none" else {}


def _messages(detail: Any) -> list[str]:
    if detail["loc"] == ("keep",) and type(detail["input"]) in (int, float):  # not finite
        return [keep_message(detail["input"])]
    parts: dict[str, type[BaseModel]] = {"recipe": Recipe, "scoring": Scoring, "scoring.recipe": Recipe}
    return field_messages([detail], PruneConfig, parts=parts, hint="`unseen-ray prune --help-all` lists the fields.")
