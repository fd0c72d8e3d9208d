"""Recognises folders made by `unseen-ray prepare`, complete or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from unseen_ray.errors import DataError
from unseen_ray.storage.checked_json import from_checked_json
from unseen_ray.storage.filesystem import read_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["PLAN", "PREPARED", "PREPARING", "is_prepared"]

PREPARED = "prepared.json"
"""Lists the folder's files; written last."""
PREPARING = "_preparing"
"""The subfolder that exists until the work is done."""
PLAN = f"{PREPARING}/plan.json"


def is_prepared(fs: FileSystem, base: str, path: str, names: Iterable[str]) -> bool:
    """Whether `unseen-ray prepare` made a folder; an unfinished one is refused.

    Args:
        fs: the folder's file system.
        base: its path there.
        path: its name in messages.
        names: the Parquet files found in it.

    Raises:
        DataError: if `unseen-ray prepare` has not finished it, or files that it made are missing.
    """
    from pyarrow.fs import FileType

    whole, begun = fs.get_file_info([f"{base}/{PREPARED}", f"{base}/{PLAN}"])
    again = "Run the same `unseen-ray prepare` line again to resume it."
    if whole.type == FileType.NotFound:
        if begun.type != FileType.NotFound:
            raise DataError(f"source {path} is not fully prepared: samples are missing. {again}")
        return False
    try:
        shards: list[dict[str, Any]] = from_checked_json(read_file(fs, whole.path))["shards"]
        missing = sorted({shard["name"] for shard in shards} - set(names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{PREPARED} of source {path} cannot be read: {error}. Prepare the folder again.") from None
    if missing:
        raise DataError(f"source {path} lacks {len(missing)} of its {len(shards)} files, such as {missing[0]}. {again}")
    return True
