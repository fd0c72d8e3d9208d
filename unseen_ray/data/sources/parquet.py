"""Parquet files in the Hugging Face schema for image data sets: an image column and a label."""

from __future__ import annotations

from unseen_ray.data.listing.shard_files import find_shards
from unseen_ray.data.sources.prepared import is_prepared
from unseen_ray.data.sources.tables.parquet_shard import ParquetShard
from unseen_ray.data.sources.tables.source import Tables, TableSource

__all__ = ["ParquetSource"]


class ParquetSource(TableSource):
    """One or more Parquet files: a file, a pattern or a folder; see `TableSource`.

    A folder made by `unseen-ray prepare` stores its keys.
    """

    kind = "parquet"

    @staticmethod
    def _find(path: str) -> Tables:
        found, opener = find_shards(path), ParquetShard.opener()
        has_keys = found.is_folder and is_prepared(found.fs, found.base.rstrip("/"), path, found.names)
        places = zip(found.names, found.paths, strict=True)
        shards = [ParquetShard(found.fs, name, place, path, opener) for name, place in places]
        return Tables(found.fs, shards, found.stats, has_keys=has_keys, note=found.note)
