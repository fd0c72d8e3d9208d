"""A list of image files with their labels, as CSV, TSV or JSON lines."""

from __future__ import annotations

import os
from typing import ClassVar

from unseen_ray.data.listing.files import FileStat
from unseen_ray.data.sources.tables.held_shard import HeldShard, read_list
from unseen_ray.data.sources.tables.source import Tables, TableSource
from unseen_ray.storage.filesystem import filesystem_of

__all__ = ["ListSource"]


class ListSource(TableSource):
    """Images that one .csv, .tsv or .jsonl file names by path, with their labels; see `TableSource`.

    The first line of a CSV or TSV names the columns.
    """

    kind = "list"
    image_names: ClassVar[tuple[str, ...]] = ("image", "img", "file_name", "filename", "file", "path")

    @staticmethod
    def _find(path: str) -> Tables:
        fs, place = filesystem_of(path)
        shard = HeldShard(os.path.basename(place), place, *read_list(fs, place, path))
        entry = fs.get_file_info(place)
        return Tables(fs, [shard], [FileStat(int(entry.size), entry.mtime_ns)])
