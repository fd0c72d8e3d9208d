"""Folders that `datasets` writes with `save_to_disk`, and single Arrow files."""

from __future__ import annotations

import json
import os

from pyarrow.fs import FileSystem, FileType

from unseen_ray.data.listing.files import FileStat
from unseen_ray.data.sources.tables.held_shard import HeldShard, read_arrow
from unseen_ray.data.sources.tables.source import Tables, TableSource
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import filesystem_of, read_file

__all__ = ["SPLITS_FILE", "STATE_FILE", "ArrowSource"]

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"


class ArrowSource(TableSource):
    """A data set as `datasets` saves it to a disk, or one .arrow file; see `TableSource`."""

    kind = "arrow"

    @staticmethod
    def _find(path: str) -> Tables:
        fs, root = filesystem_of(path)
        is_file = root.endswith(".arrow")
        base, names = (os.path.dirname(root), [os.path.basename(root)]) if is_file else (root, _names(fs, root, path))
        places = [f"{base.rstrip('/')}/{name}" for name in names]
        shards = [
            HeldShard(name, place, read_arrow(fs, place, path)) for name, place in zip(names, places, strict=True)
        ]
        return Tables(fs, shards, [FileStat(int(entry.size), entry.mtime_ns) for entry in fs.get_file_info(places)])


def _names(fs: FileSystem, root: str, path: str) -> list[str]:
    """The files of a saved data set, in order."""
    if fs.get_file_info(f"{root}/{SPLITS_FILE}").type == FileType.File:
        splits = json.loads(read_file(fs, f"{root}/{SPLITS_FILE}")).get("splits", [])
        train = "train" if "train" in splits else next(iter(splits), "train")
        raise DataError(
            f"source {path} holds the splits {', '.join(map(str, splits))}. Set source: {path.rstrip('/')}/{train} "
            "(and test: the split to measure on)."
        )
    try:
        state = json.loads(read_file(fs, f"{root}/{STATE_FILE}"))
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{STATE_FILE} of source {path} cannot be read: {error}. Save the data set again with save_to_disk."
        ) from None
    if not names or any("/" in name or name.startswith(".") for name in names):
        raise DataError(
            f"{STATE_FILE} of source {path} names no files in its folder. Save the data set again with save_to_disk."
        )
    return names
