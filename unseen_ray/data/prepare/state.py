"""The state of a folder that is being prepared: its plan, its finished files, and its completion."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.prepare.shards import Form, Shard, ShardReceipt, receipt_file
from unseen_ray.data.sources.info import Source, SourceInfo
from unseen_ray.data.sources.prepared import PLAN, PREPARED, PREPARING
from unseen_ray.errors import ConfigError, DataError, StorageError
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.fence import LOCK
from unseen_ray.storage.filesystem import Folder

__all__ = ["Begun", "begin", "finish"]

logger = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_PROBED = 32
_ROW_BYTES = 64  # label, key and what Parquet adds
_OURS = re.compile(r"part-\d{5,}\.parquet")
_ASIDE = re.compile(r"(part-\d{5,}\.parquet|prepared\.json|lease\.json)\.[0-9a-f]{8}\.tmp")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Begun:
    """A folder whose preparation has begun.

    Attributes:
        plan: what it will hold.
        receipts: the receipts of finished files, by name; the files are not yet checked.
    """

    plan: dict[str, Any]
    receipts: dict[str, ShardReceipt]

    @property
    def shards(self) -> list[Shard]:
        """Its files, in the order of their rows."""
        rows, each = self.plan["source"]["num_samples"], self.plan["rows_a_shard"]
        width = max(5, len(str(math.ceil(rows / each) - 1)))
        return [
            Shard(name=f"part-{place:0{width}d}.parquet", start=start, stop=min(start + each, rows))
            for place, start in enumerate(range(0, rows, each))
        ]


def begin(folder: Folder, source: Source, form: Form, shard_mb: float) -> Begun:
    """Begin a folder, or resume one that was begun with the same source and form."""
    info, names = source.info, folder.names()
    found = _read(folder, PREPARED) or _read(folder, PLAN)
    others = [name for name in names if name not in (PREPARED, PREPARING, LOCK) and not _ASIDE.fullmatch(name)]
    others = [name for name in others if found is None or not _OURS.fullmatch(name)]
    if others:
        raise ConfigError(
            f"out={folder.root} holds {', '.join(others[:3])}, which `prepare` did not make. Name a new or empty folder."
        )
    if found is not None:
        _check_same(folder, found, info, form)
        return Begun(found, _receipts(folder, found))
    plan = {
        "schema_version": _SCHEMA_VERSION,
        "source": {
            "name": info.name,
            "fingerprint": info.fingerprint,
            "sample": info.sample,
            "num_samples": len(info),
            "num_classes": info.num_classes,
        },
        "kind": form.kind,
        "size": form.size_px,
        "quality": form.quality,
        "rows_a_shard": max(1, int(shard_mb * 1e6 / _row_bytes(source, form))),
        "unseen_ray": version("unseen_ray"),
        "pillow": version("pillow"),
    }
    folder.write(PLAN, to_checked_json(plan))  # before any shard: a later call must cut the rows in the same places
    return Begun(plan, {})


def _check_same(folder: Folder, found: dict[str, Any], info: SourceInfo, form: Form) -> None:
    """Refuse to resume with another source or form."""
    before, other = found["source"], "Name another folder, or remove this one."
    is_same = before["fingerprint"] == info.fingerprint and before.get("sample", info.sample) == info.sample
    if not is_same and before["name"] == info.name:
        raise DataError(
            f"source {info.name} has changed since {folder.root} was begun: it had {before['num_samples']:,} samples and "
            f"now has {len(info):,}, or different ones. {other}"
        )
    if not is_same:
        raise ConfigError(f"out={folder.root} holds another source, {before['name']}, not {info.name}. {other}")
    there = Form(kind=found["kind"], size_px=found["size"], quality=found["quality"])
    if there != form:
        raise ConfigError(f"out={folder.root} holds this source as {there}, not as {form}. {other}")


def _receipts(folder: Folder, found: dict[str, Any]) -> dict[str, ShardReceipt]:
    """The receipts of the shards by name; `settled` checks the files themselves."""
    receipts = {values["name"]: ShardReceipt.from_json(values) for values in found.get("shards", ())}
    for file in Folder(folder.path(PREPARING)).names():
        name = file.removesuffix(".json")
        if _OURS.fullmatch(name) and file != name:
            try:
                receipts[name] = ShardReceipt.from_json(
                    from_checked_json(folder.read(receipt_file(name)) or b"")["shard"]
                )
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is damaged: making %s again", receipt_file(name), name)
    return receipts


def _read(folder: Folder, name: str) -> dict[str, Any] | None:
    data = folder.read(name)
    if data is None:
        return None
    try:
        values = from_checked_json(data)
        if values.get("schema_version") != _SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {values.get('schema_version')}, not {_SCHEMA_VERSION}")
        return values
    except ValueError as error:
        raise StorageError(
            f"{folder.path(name)} is damaged: {error}. Remove {folder.root} and prepare it again."
        ) from None


def _row_bytes(source: Source, form: Form) -> float:
    """The approximate bytes of a row, from a sample of rows."""
    sizes = []
    for _, raw in source.read(np.unique(np.linspace(0, len(source.info) - 1, _PROBED).astype(int)).tolist()):
        try:
            sizes.append(len(form.encode(raw)))
        except UndecodableError:
            continue
    return _ROW_BYTES + (sum(sizes) / len(sizes) if sizes else 0)


def finish(folder: Folder, begun: Begun, receipts: Sequence[ShardReceipt]) -> None:
    """Write the list of the folder's files, then remove what is only needed while preparing."""
    bad = [sample for receipt in receipts for sample in receipt.bad]
    for sample in bad[:_SHOWN]:
        logger.warning("no bytes for %s: %s", sample.key, sample.reason)
    if len(bad) > _SHOWN:
        logger.warning("%d samples have no image data; %s lists them", len(bad), PREPARED)
    shards = [receipt.to_json() for receipt in receipts]
    # the list before the plan goes: without either, a reader would take the folder for ordinary Parquet files
    if begun.plan.get("shards") != shards:
        folder.write(PREPARED, to_checked_json({**begun.plan, "shards": shards}), durable=True)
    folder.delete_folder(PREPARING)
    for name in folder.names():
        if _ASIDE.fullmatch(name):  # left by a process that was killed while writing
            folder.delete(name)
