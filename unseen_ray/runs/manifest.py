"""The manifest: what a run folder holds, and what made it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY, is_result
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.filesystem import Folder

__all__ = ["SCHEMA_VERSION", "Manifest", "has_copy", "read_manifest", "write_manifest"]

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
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
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    kind: str = "prune"
    config: dict[str, Any]
    asked: dict[str, Any]
    source: dict[str, Any]
    stages: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    finished: bool = False


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Put the manifest in place, then a copy of it, if that can be; readers see the old one or the new one, whole."""
    data = to_checked_json(asdict(manifest))
    folder.write(MANIFEST, data, durable=True)
    try:
        folder.write(MANIFEST_COPY, data, durable=True)
    except StorageError as error:
        logger.warning("the manifest has no copy: %s", error)


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a run folder, or None where there is none; its copy, with a warning, where it is damaged or lost.

    Raises:
        StorageError: if it is damaged, and its copy no better.
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
        logger.warning("%s; its copy is used", damage or f"{folder.path(MANIFEST)} is missing")
    return manifest


def has_copy(folder: Folder) -> bool:
    """Whether the manifest's copy is the same, byte for byte, as it is but for a crash between the two."""
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
        manifest = Manifest(**{name: values[name] for name in Manifest.__slots__ if name in values})
        _check_form(manifest)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path} is damaged: {type(error).__name__}: {error}. Restore it, or start in a new folder."
        ) from None
    return manifest


def _check_form(manifest: Manifest) -> None:
    """TypeError or KeyError if a part that is relied on is missing or of another kind."""
    kinds = {
        "config": dict,
        "asked": dict,
        "source": dict,
        "stages": list,
        "files": dict,
        "cost": dict,
        "environment": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(manifest, name), kind):
            raise TypeError(f"{name} is a {type(getattr(manifest, name)).__name__}, not a {kind.__name__}")
    if strangers := [name for name in manifest.files if not is_result(name)]:
        raise ValueError(f"files names {strangers[0]!r}, which no run of ours has")
    needed = {"fingerprint", "num_samples", "num_classes", "class_names"}
    if manifest.finished:
        needed |= {"class_counts", "holdout", "skipped", "skipped_ids"}
    if missing := needed - manifest.source.keys():
        raise KeyError(f"source lacks {', '.join(sorted(missing))}")
    if manifest.finished and not {"keep", "recipe", "model", "fit", "combine"} <= manifest.config.keys():
        raise KeyError("config lacks fields")
