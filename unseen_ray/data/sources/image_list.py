"""A list of image files with their labels, as CSV, TSV or JSON lines."""

from __future__ import annotations

import os
from typing import ClassVar

from unseen_ray.data.listing.files import FileStat
from unseen_ray.data.sources.tables.held_shard import HeldShard, read_list
from unseen_ray.data.sources.tables.source import TableSource
from unseen_ray.storage.filesystem import absolute_path, filesystem_of

__all__ = ["ListSource"]


class ListSource(TableSource):
    """Images that a table names by path, absolute, as a URI, or relative to the table's folder; see `TableSource`.

    Args:
        path: a file that ends in .csv, .tsv or .jsonl; local or a URI. The first line of a CSV or TSV names the columns.
        image: the column of paths; None for the first of `image`, `img`, `file_name`, `filename`, `file` and `path` that exists.
        label: the label column.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` rows; None for all.
    """

    kind = "list"
    image_names: ClassVar[tuple[str, ...]] = ("image", "img", "file_name", "filename", "file", "path")

    def __init__(
        self,
        *,
        path: str,
        image: str | None = None,
        label: str = "label",
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        fs, place = filesystem_of(path)
        fields = {"image": image, "label": label, "size": size, "limit": limit}
        shard = HeldShard(os.path.basename(place), place, *read_list(fs, place, path))
        entry = fs.get_file_info(place)
        super().__init__(
            fs,
            [shard],
            [FileStat(int(entry.size), entry.mtime_ns)],
            path=path,
            reopen={"path": absolute_path(path), **fields},
            **fields,  # type: ignore[arg-type]
        )
