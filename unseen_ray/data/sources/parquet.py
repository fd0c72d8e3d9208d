"""Parquet files in the Hugging Face schema for image data sets: an image column and a label."""

from __future__ import annotations

from unseen_ray.data.listing.shard_files import find_shards
from unseen_ray.data.sources.label_columns import ROWS_IN_MEMORY
from unseen_ray.data.sources.prepared import is_prepared
from unseen_ray.data.sources.tables.parquet_shard import ParquetShard
from unseen_ray.data.sources.tables.source import TableSource
from unseen_ray.storage.filesystem import absolute_path

__all__ = ["ParquetSource"]


class ParquetSource(TableSource):
    """One or more Parquet files; see `TableSource`. A folder made by `unseen-ray prepare` stores its keys.

    Args:
        path: a file, a glob or a folder; local or a URI.
        image: the image column; None for `image` or `img`, whichever exists.
        label: the label column.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` rows; None for all.
        rows_in_memory: with more rows than this, labels are kept in a file; see `gather_labels`.
    """

    kind = "parquet"

    def __init__(
        self,
        *,
        path: str,
        image: str | None = None,
        label: str = "label",
        size: int | None = None,
        limit: int | None = None,
        rows_in_memory: int = ROWS_IN_MEMORY,
    ) -> None:
        found, opener = find_shards(path), ParquetShard.opener()
        fs = found.fs
        has_keys = found.is_folder and is_prepared(fs, found.base.rstrip("/"), path, found.names)
        fields = {"image": image, "label": label, "size": size, "limit": limit, "rows_in_memory": rows_in_memory}
        super().__init__(
            fs,
            [ParquetShard(fs, name, place, path, opener) for name, place in zip(found.names, found.paths, strict=True)],
            found.stats,
            path=path,
            has_keys=has_keys,
            note=found.note,
            reopen={"path": absolute_path(path), **fields},
            **fields,  # type: ignore[arg-type]
        )
