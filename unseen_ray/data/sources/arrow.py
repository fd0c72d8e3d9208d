"""Folders that `datasets` writes with `save_to_disk`, and single Arrow files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from pyarrow.fs import FileSystem, FileType

from unseen_ray.data.listing.files import FileStat
from unseen_ray.data.sources.tables.held_shard import HeldShard, read_arrow
from unseen_ray.data.sources.tables.source import TableSource
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import absolute_path, filesystem_of, read_file

__all__ = ["SPLITS_FILE", "STATE_FILE", "ArrowSource"]

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"


class ArrowSource(TableSource):
    """A data set as `datasets` saves it to a disk; see `TableSource`.

    Args:
        path: the folder, or one .arrow file; local or a URI.
        image: the image column; None for `image` or `img`, whichever exists.
        label: the label column.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` rows; None for all.
    """

    kind = "arrow"

    def __init__(
        self,
        *,
        path: str,
        image: str | None = None,
        label: str = "label",
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        fs, root = filesystem_of(path)
        base, names = (
            (os.path.dirname(root), [os.path.basename(root)])
            if root.endswith(".arrow")
            else (root, _names(fs, root, path))
        )
        places = [f"{base.rstrip('/')}/{name}" for name in names]
        fields = {"image": image, "label": label, "size": size, "limit": limit}
        super().__init__(
            fs,
            [HeldShard(name, place, read_arrow(fs, place, path)) for name, place in zip(names, places, strict=True)],
            _stats(fs, places),
            path=path,
            reopen={"path": absolute_path(path), **fields},
            **fields,  # type: ignore[arg-type]
        )


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


def _stats(fs: FileSystem, places: Sequence[str]) -> list[FileStat]:
    return [FileStat(int(entry.size), entry.mtime_ns) for entry in fs.get_file_info(list(places))]
