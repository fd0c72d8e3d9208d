"""The manifest of a run folder: its files and their checksums, the configuration and the environment that made them."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import plug_label, score_name
from unseen_ray.errors import ConfigError, RunInUseError, StorageError
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY, is_result
from unseen_ray.runs.manifest_entries import Cost, SourceEntry, StageEntry
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.filesystem import Folder

__all__ = [
    "EXACT_SCORES",
    "SCHEMA_VERSION",
    "Manifest",
    "check_generation",
    "has_copy",
    "read_manifest",
    "write_manifest",
]

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
EXACT_SCORES = "exact_scores"
_OF_FINISHED = {"class_counts", "holdout", "skipped", "skipped_ids"}
_STORED_IF_SET = {"policy_reason", "generation", "suspects"}
_CONFIGURED = {
    "keep",
    "recipe",
    "model",
    "fit",
    "combine",
    "folds",
    "guard",
    "mode",
    "policy",
    "repeats",
    "score",
    "seed",
    "source",
    "test",
}
"""Fields of a configuration that version 0.1.0 wrote, and that readers of a run rely on."""


class Manifest(BaseModel):
    """A run folder's table of contents.

    Attributes:
        schema_version: of this file.
        created: when the run began, ISO 8601 UTC.
        kind: `prune`, `select` for a choice made again from another run's stage 0, or `score` for scores alone.
        config: every field as resolved.
        asked: every field as it was asked for; what a rerun is compared with.
        source: fingerprint, num_samples, num_classes, and what else is known of it.
        stages: the finished ones, each with its sizes, its tasks' receipts and its accuracy.
        files: SHA-256 of every finished file, by name.
        environment: versions and hardware.
        cost: seconds, GPU-seconds, samples trained and scored.
        finished: whether coreset.parquet is final.
        policy_reason: why `policy: auto` used what it used first; stored where it did.
        generation: how often a driver has taken up the folder again; stored once it is not 0.
        suspects: how many samples the guard of a choice made again suspects; stored where there are any.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    created: str
    kind: str = "prune"
    config: dict[str, Any]
    asked: dict[str, Any]
    source: SourceEntry
    stages: list[StageEntry] = []
    files: dict[str, str] = {}
    environment: dict[str, Any] = {}
    cost: Cost = Cost()
    finished: bool = False
    policy_reason: str = ""
    generation: int = 0
    suspects: int = 0

    @model_validator(mode="after")
    def _holds_what_is_relied_on(self) -> Manifest:
        if strangers := [name for name in self.files if not is_result(name)]:
            raise ValueError(f"files names {strangers[0]!r}, which is not a file of a run")
        if self.finished:
            missing = _OF_FINISHED - self.source.model_fields_set
            if missing or len(self.source.class_counts) != self.source.num_classes:
                raise ValueError(f"source lacks {', '.join(sorted(missing or {'class_counts'}))}")
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name not in _STORED_IF_SET or value}

    @property
    def is_of_given_probs(self) -> bool:
        """Whether its scores are of probabilities that the user gave, by models that no run trained."""
        return self.config.get("model") is None and self.config.get("fit") is None

    @property
    def has_exact_scores(self) -> bool:
        """Whether its scores tell nearly certain samples apart; False for a run that an earlier version began, which goes on so."""
        return bool(self.environment.get(EXACT_SCORES, not self.environment))

    @property
    def policy_used(self) -> Any:
        """The policy as asked for, or the one that `auto` used first."""
        used = self.stages[0].policy if self.stages else None
        return self.config["policy"] if used is None else used

    @property
    def policy_label(self) -> str:
        """The policy in words, with those that `auto` used, in the order of the stages."""
        asked = self.asked["policy"]
        return (
            score_name(asked) if self.policy_used == asked else f"{score_name(asked)}: {', then '.join(self._used())}"
        )

    @property
    def suspected(self) -> int:
        """How many samples its guard suspects; 0 without a guard."""
        return self.suspects or sum(stage.suspects or 0 for stage in self.stages[:1])

    @property
    def is_random(self) -> bool:
        """Whether a random subset was kept, asked for or by `auto`, from which no guard kept suspects out."""
        guarded = self.suspected or self.asked.get("guard", "none") != "none"
        return self.policy_label in ("random", "auto: random") and not guarded

    @property
    def policy_why(self) -> str:
        """Why `auto` used what it used first, as a clause; empty for other policies."""
        return self.policy_reason and "at first " * (len(self._used()) > 1) + self.policy_reason

    def _used(self) -> list[str]:
        """The policies that the stages used, in words, each once in a row."""
        used = [self.policy_used, *(stage.policy for stage in self.stages[1:] if stage.policy is not None)]
        return [label for label, _ in groupby(map(plug_label, used))]

    def changed(self, **values: Any) -> Manifest:
        """A manifest with some fields changed, checked again."""
        return Manifest(**{**dict(self), **values})


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest, then its copy; a reader sees the old one or the new one, never half of either."""
    data = to_checked_json(manifest.model_dump())
    folder.write(MANIFEST, data, durable=True, conditional=True)
    # The copy guards against damage to the file; a run goes on without one, but not without the manifest.
    try:
        folder.write(MANIFEST_COPY, data, durable=True, conditional=True)
    except StorageError as error:
        logger.warning("the manifest has no copy: %s", error)


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a run folder, or None if there is none; if it is damaged or lost, its copy, with a warning.

    Raises:
        StorageError: if it and its copy are damaged.
        ConfigError: if a newer unseen_ray wrote it.
    """
    damage: StorageError | None = None
    try:
        manifest = _read(folder, MANIFEST)
    except StorageError as error:
        manifest, damage = None, error
    if manifest is not None:
        return manifest
    try:
        manifest = _read(folder, MANIFEST_COPY)
    except StorageError as error:
        damage = damage or error
    if manifest is None and damage is not None:
        raise damage
    if manifest is not None:
        logger.warning("%s Its copy is used.", damage or f"{folder.path(MANIFEST)} is missing.")
    return manifest


def check_generation(folder: Folder, manifest: Manifest) -> None:
    """RunInUseError if the folder holds the manifest of a driver that has taken it up later."""
    try:
        found = _read(folder, MANIFEST)
    except StorageError:  # a damaged one is written again
        return
    if found is not None and found.generation > manifest.generation:
        raise RunInUseError(
            f"this driver has lost {folder.root} and stops: another driver has written its manifest since. Once no other driver works "
            "on it, the same line resumes the run."
        )


def has_copy(folder: Folder) -> bool:
    """Whether the copy equals the manifest, byte for byte; a crash between the two writes leaves an old copy."""
    data = folder.read(MANIFEST)
    return data is not None and data == folder.read(MANIFEST_COPY)


def _read(folder: Folder, name: str) -> Manifest | None:
    data = folder.read(name)
    if data is None:
        return None
    path = folder.path(name)
    try:
        values = from_checked_json(data)
        version = values["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has schema_version {version}; this unseen_ray reads up to {SCHEMA_VERSION}. Upgrade unseen_ray."
            )
        manifest = Manifest.model_validate(values)
        if manifest.kind != "sweep":
            _check_fields(manifest)
        return manifest
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        problem = _problem_of(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise StorageError(f"{path} is damaged: {problem}. Restore it, or start in a new folder.") from None


def _check_fields(manifest: Manifest) -> None:
    """ValueError if a configuration of a run lacks a field that readers rely on, or has one of another type."""
    for name, fields in {"config": manifest.config, "asked": manifest.asked}.items():
        if missing := _CONFIGURED - fields.keys():
            raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        if problem := PruneConfig.problem_of_stored(fields):
            raise ValueError(f"{name}: {problem}")


def _problem_of(error: ValidationError) -> str:
    """The first problem, with its field."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))
