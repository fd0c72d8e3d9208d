"""One Parquet file of a source, opened only while it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from unseen_ray.errors import DataError, first_line
from unseen_ray.storage.retry import retried_inline

__all__ = ["ParquetShard"]

_OPEN = 64
_MOST_BYTES = 2**30  # 32-bit offsets of an Arrow array end at 2 GiB
_FEW_ROWS = 16
_MUCH_BYTES = 2**30
_MOST_GROWTH = 1000  # of a file in memory; zeros compress further, images hardly at all
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")


class ParquetShard:
    """A file's footer, which is kept, and its rows, which are read on demand.

    Args:
        fs: its file system.
        name: its name in messages.
        path: its path there.
        where: the source's name in messages.
        opened: `ParquetShard.open`, cached over the shards of a source.

    Raises:
        DataError: if it is not a Parquet file, or cannot be read.
    """

    def __init__(
        self, fs: FileSystem, name: str, path: str, where: str, opened: Callable[[ParquetShard], pq.ParquetFile]
    ) -> None:
        self.name, self.path = name, path
        self._fs, self._where, self._opened = fs, where, opened
        try:
            self.metadata = retried_inline(path, self._footer, fs)
        except pa.ArrowInvalid as error:
            if name.endswith(_ARCHIVES):
                raise DataError(
                    f"{name} of source {where} is an archive. Unpack it, and name the folder of the images."
                ) from None
            raise DataError(
                f"{name} of source {where} is not a Parquet file: {first_line(error).rstrip('.')}."
            ) from None
        except OSError as error:
            raise DataError(f"{name} of source {where} cannot be read: {first_line(error).rstrip('.')}.") from None
        self._check_size(fs, path)
        self.schema = self.metadata.schema.to_arrow_schema()

    def _footer(self) -> pq.FileMetaData:
        with self._fs.open_input_file(self.path) as file:
            return pq.read_metadata(file)

    def _check_size(self, fs: FileSystem, path: str) -> None:
        """DataError for a file that would grow beyond measure, by its footer."""
        held = sum(self.metadata.row_group(group).total_byte_size for group in range(self.metadata.num_row_groups))
        stored = fs.get_file_info(path).size or 0
        if held > _MUCH_BYTES and held > _MOST_GROWTH * stored:
            raise DataError(
                f"{self.name} of source {self._where} holds {held:,} bytes in {stored:,}, more than {_MOST_GROWTH} times as many: "
                "no images compress like this. Write it again with real images."
            )

    @staticmethod
    def opener() -> Callable[[ParquetShard], pq.ParquetFile]:
        """Opens shards and keeps the last few open: a process may have about a thousand files open."""
        return lru_cache(maxsize=_OPEN)(
            lambda shard: pq.ParquetFile(shard._fs.open_input_file(shard.path), metadata=shard.metadata)
        )

    @property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        return [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]

    def identity(self) -> tuple[tuple[Any, ...], list[int]]:
        """Name, rows and size of the footer; and the size of each row group."""
        groups = range(self.metadata.num_row_groups)
        sizes = [self.metadata.row_group(group).total_byte_size for group in groups]
        return (self.name, self.metadata.num_rows, self.metadata.serialized_size), sizes

    def stored_bytes(self, column: str) -> int:
        """The compressed size of a column."""
        groups = (self.metadata.row_group(group) for group in range(self.metadata.num_row_groups))
        columns = (group.column(place) for group in groups for place in range(group.num_columns))
        return sum(each.total_compressed_size for each in columns if each.path_in_schema.split(".")[0] == column)

    def read(self, columns: Sequence[str], group: int | None = None) -> pa.Table:
        """Some columns of all rows, or of one row group.

        Raises:
            DataError: if the file is damaged.
        """
        return pa.concat_tables(self.tables(columns, range(self.metadata.num_row_groups) if group is None else [group]))

    def tables(self, columns: Sequence[str], groups: Sequence[int]) -> Iterator[pa.Table]:
        """The same in tables of less than 1 GiB each, as far as the sizes of rows are even."""
        chosen = [self.metadata.row_group(group) for group in groups]
        rows = sum(group.num_rows for group in chosen)
        size = sum(
            group.column(place).total_uncompressed_size
            for group in chosen
            for place in range(group.num_columns)
            if group.column(place).path_in_schema.split(".")[0] in columns
        )
        if size < _MOST_BYTES:
            yield self._guarded(lambda file: file.read_row_groups(list(groups), columns=list(columns)))
            return
        yield from self._batches(columns, groups, max(_FEW_ROWS, int(rows * _MOST_BYTES / size)), rows)

    def _batches(self, columns: Sequence[str], groups: Sequence[int], at_once: int, rows: int) -> Iterator[pa.Table]:
        """Groups too large for one table; after an error, those that were given already are read again and passed over."""
        given, batches, done = 0, None, 0

        def following(file: pq.ParquetFile) -> pa.RecordBatch | None:
            nonlocal batches
            try:
                if batches is None:
                    batches = file.iter_batches(at_once, list(groups), list(columns))
                    for _ in range(given):
                        next(batches)
                return next(batches, None)
            except (pa.ArrowException, OSError):
                batches = None  # its error has ended it
                raise

        while (batch := self._guarded(following)) is not None:
            given, done = given + 1, done + batch.num_rows
            yield pa.Table.from_batches([batch])
        if done != rows:
            raise DataError(f"{self.name} of source {self._where} is damaged: {done} of {rows} rows can be read.")

    def _guarded(self, read: Any) -> Any:
        try:
            return retried_inline(f"{self.name} of {self._where}", lambda: read(self._opened(self)), None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.name} of source {self._where} is damaged: {first_line(error).rstrip('.')}."
            ) from None
