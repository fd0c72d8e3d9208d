"""Parquet files in the Hugging Face schema for image data sets: an image column and an integer label."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileType

from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.data.sources.hf_schema import class_names
from unseen_ray.data.sources.info import Encoded, RawImage, SourceInfo, fingerprint_of, probe_size
from unseen_ray.data.sources.label_columns import ROWS_IN_MEMORY, digest_of_labels, gather_labels
from unseen_ray.data.sources.prepared import is_prepared
from unseen_ray.errors import DataError
from unseen_ray.plugins import did_you_mean
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.retry import retried_inline

__all__ = ["ParquetSource"]

_IMAGE_NAMES = ("image", "img")
_SPLITS = ("dev", "test", "train", "val", "validation")
_PROBED = 32
_CACHED_ROW_GROUPS = 4
_TAKEN = 2048
_MUCH_LESS = 100  # a column this many times smaller than its images only names files that lie elsewhere


class ParquetSource:
    """One or more Parquet files of encoded images.

    The image column is `struct<bytes, path>` or plain binary. Ids number the rows of all files, in the order of the
    files' names. A key is the file's name and the row in it, `train-00.parquet:17`; a prepared folder stores its keys.

    Args:
        path: a file, a glob or a folder; local or a URI.
        image: the image column; None for `image` or `img`, whichever exists.
        label: the label column.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` rows; None for all.
        rows_in_memory: with more rows than this, labels are kept in a file; see `gather_labels`.
    """

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
        self._path, self._label, self._size, self._limit = path, label, size, limit
        self._rows_in_memory = rows_in_memory
        self._fs, self._root = filesystem_of(path)
        self._prepared = False
        self._names, paths = self._find()
        self._files = [self._open(name, path) for name, path in zip(self._names, paths, strict=True)]
        self._folders = [os.path.dirname(path) for path in paths]
        self._image = self._image_column(image)
        self._starts = np.cumsum([0, *(file.metadata.num_rows for file in self._files)])
        # caches of this instance: decorated methods would keep every instance alive
        self._row_group = lru_cache(maxsize=_CACHED_ROW_GROUPS)(self._read_row_group)
        self._group_starts = lru_cache(maxsize=None)(self._find_group_starts)
        self._keys_of = lru_cache(maxsize=_CACHED_ROW_GROUPS)(self._read_keys)

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts; reads the label column and the headers of a few images."""
        names = class_names(self._files[0].schema_arrow, self._label)
        total = int(self._starts[-1])
        rows = total if self._limit is None else min(self._limit, total)
        labels, num_classes = gather_labels(
            self._labels(), rows, where=self._path, num_classes=len(names) or None, rows_in_memory=self._rows_in_memory
        )
        probed = np.unique(np.linspace(0, min(len(labels), self._first_group_rows()) - 1, _PROBED).astype(int))
        size_px, original_px = probe_size((raw for _, raw in self.read(list(probed))), self._size)
        # the fingerprint covers footers and labels, since reading all images would take too long
        footers = [
            (name, file.metadata.num_rows, file.metadata.serialized_size)
            for name, file in zip(self._names, self._files, strict=True)
        ]
        sizes = [
            [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
            for file in self._files
        ]
        return SourceInfo(
            name=self._path,
            labels_N=labels,
            num_classes=num_classes,
            size_px=size_px,
            original_px=original_px,
            class_names=names,
            fingerprint=fingerprint_of("parquet", footers, sizes, digest_of_labels(labels), str(len(labels))),
        )

    def encoded(self) -> Encoded | None:
        """The size of the image column from the footers; None if the images are separate files."""
        name, rows, size, groups = self._image.split(".")[0], 0, 0, 0
        for file in self._files:
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                columns = (group.column(place) for place in range(group.num_columns))
                size += sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] == name)
                rows, groups = rows + group.num_rows, groups + 1
        _, first = next(self.read([0]))
        if not rows or size < rows * len(first) / _MUCH_LESS:
            return None
        return Encoded(bytes_each=size / rows, how="the image column's size in the footers / rows", groups=groups)

    def keys(self, ids: Sequence[int]) -> list[str]:
        """File name and row; for a folder made by `unseen-ray prepare`, the keys of the original source."""
        return list(self.key_column(np.asarray(ids, np.int64)).to_pylist())

    def key_column(self, ids_M: IdArray) -> pa.Array:
        """The same for (M,) ids as Arrow strings, without a Python object for each."""
        files = np.searchsorted(self._starts, ids_M, side="right") - 1
        rows = pa.array(ids_M - self._starts[files])
        if not self._prepared:
            names = pa.array(self._names).take(pa.array(files))
            return pc.binary_join_element_wise(names, pc.cast(rows, pa.string()), ":")
        pieces = [self._keys_of(file).take(rows.filter(pa.array(files == file))) for file in np.unique(files).tolist()]
        # the pieces are in file order; the rank of each id in that order puts them back into the order asked for
        back = np.argsort(np.argsort(files, kind="stable"), kind="stable")
        return pa.concat_arrays([pa.array([], pa.string()), *pieces]).take(pa.array(back))

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Encoded images; with ascending ids, each row group is read once."""
        numbers = np.asarray(ids, np.int64)
        files = np.searchsorted(self._starts, numbers, side="right") - 1
        for number, file in zip(numbers.tolist(), files.tolist(), strict=True):
            row = number - int(self._starts[file])
            group = bisect_right(self._group_starts(file), row) - 1
            rows, encoded = self._row_group(file, group)
            place = row - self._group_starts(file)[group]
            value = encoded[place].as_py()
            yield number, value if value is not None else self._bytes(rows[place].as_py(), file, number)

    def tables(self, ids: Sequence[int]) -> Iterator[tuple[str, pa.Table]]:
        """The rows of ascending ids with all their columns and metadata, in pieces of at most 2,048, each with its file name.

        An image that a row only names by path is read and embedded.
        """
        rows = np.asarray(ids, np.int64)
        for place, (file, name) in enumerate(zip(self._files, self._names, strict=True)):
            start = int(self._starts[place])
            for group in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                wanted = rows[(rows >= start) & (rows < start + count)]
                if len(wanted):
                    table = self._read(file, name, file.schema_arrow.names, group)
                    for first in range(0, len(wanted), _TAKEN):
                        some = wanted[first : first + _TAKEN]
                        yield name, self._with_images(table.take(pa.array(some - start)), place, some)
                start += count

    def _with_images(self, table: pa.Table, file: int, ids: IntArray) -> pa.Table:
        place = table.schema.get_field_index(self._image)
        images = table.column(place).combine_chunks()
        if not pa.types.is_struct(images.type) or not images.field("bytes").null_count:
            return table
        kind = images.type
        names = [kind.field(i).name for i in range(kind.num_fields)]
        rows = [
            {**{name: (value or {}).get(name) for name in names}, "bytes": self._bytes(value, file, int(number))}
            for value, number in zip(images.to_pylist(), ids, strict=True)
        ]
        return table.set_column(place, table.schema.field(place), pa.array(rows, kind))

    def _find(self) -> tuple[list[str], list[str]]:
        if any(mark in self._root for mark in "*?["):
            base = self._root[: min(self._root.index(mark) for mark in "*?[" if mark in self._root)].rpartition("/")[0]
            selected = [e for e in self._entries(base) if _matches(e.path, self._root)]
        else:
            base = self._root
            entry = self._entry()
            if entry.type == FileType.NotFound:
                raise DataError(
                    f"source {self._path} does not exist. Check the path; a glob or a folder of *.parquet also works."
                )
            if entry.type == FileType.File:
                return [entry.base_name], [entry.path]
            selected = [e for e in self._entries(base) if e.path.endswith(".parquet")]
            self._check_splits([e.base_name for e in selected])
            self._prepared = is_prepared(self._fs, base.rstrip("/"), self._path, [e.base_name for e in selected])
        if not selected:
            raise DataError(
                f"source {self._path} matches no Parquet file. Check the pattern, or the folder's *.parquet."
            )
        paths = sorted(entry.path for entry in selected)
        return [path[len(base.rstrip("/")) + 1 :] for path in paths], paths

    def _entry(self) -> Any:
        try:
            return retried_inline(self._path, lambda: self._fs.get_file_info(self._root))
        except OSError as error:
            raise DataError(f"source {self._path} cannot be read: {_first_line(error)}.") from None

    def _entries(self, base: str) -> list[Any]:
        selector = FileSelector(base, recursive=True)
        try:
            found = retried_inline(self._path, lambda: self._fs.get_file_info(selector))
        except OSError as error:
            raise DataError(f"source {self._path} cannot be listed: {error}.") from None
        start = len(base.rstrip("/")) + 1
        return [e for e in found if e.type == FileType.File and not _is_hidden(e.path[start:])]

    def _check_splits(self, names: list[str]) -> None:
        splits = sorted({split for name in names for split in _SPLITS if re.match(rf"{split}[-_.\d]", name)})
        if len(splits) > 1:
            raise DataError(
                f"source {self._path} holds the splits {', '.join(splits)}. Name one of them with a glob: "
                f"source: {self._path.rstrip('/')}/{splits[-1]}*.parquet (and test: the split to measure on)."
            )

    def _open(self, name: str, path: str) -> pq.ParquetFile:
        try:
            return retried_inline(path, lambda: pq.ParquetFile(self._fs.open_input_file(path)))
        except pa.ArrowInvalid as error:
            raise DataError(f"{name} of source {self._path} is not a Parquet file: {_first_line(error)}.") from None
        except OSError as error:
            raise DataError(f"{name} of source {self._path} cannot be read: {_first_line(error)}.") from None

    def _image_column(self, given: str | None) -> str:
        wanted = [given] if given else list(_IMAGE_NAMES)
        image = next((name for name in wanted if name in self._files[0].schema_arrow.names), None)
        for file, name in zip(self._files, self._names, strict=True):
            there = file.schema_arrow.names
            for field, column, hint in (("image", image, " or ".join(wanted)), ("label", self._label, self._label)):
                if column is None or column not in there:
                    raise DataError(
                        f"{name} of source {self._path} has no {field} column {hint!r}; it has {', '.join(there)}. "
                        f"Name it: {{use: parquet, path: ..., {field}: <column>}}.{did_you_mean(hint, there)}"
                    )
            kind = file.schema_arrow.field(image).type
            place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
            if not _is_binary(kind.field(place).type if place >= 0 else kind):
                raise DataError(
                    f"column {image!r} of {name} is {kind}; it must hold encoded images, as binary or struct<bytes, path>."
                )
        assert image is not None
        return image

    def _labels(self) -> Iterator[IntArray]:
        """Labels of the first `limit` rows, one row group at a time."""
        left = self._limit if self._limit is not None else int(self._starts[-1])
        for file, name in zip(self._files, self._names, strict=True):
            for group in range(file.metadata.num_row_groups):
                if left <= 0:
                    return
                column = self._read(file, name, [self._label], group).column(0)
                if not pa.types.is_integer(column.type):
                    raise DataError(
                        f"column {self._label!r} of {name} is {column.type}; labels must be integers, 0 to C - 1. "
                        "Map class names to numbers first."
                    )
                column = column.slice(0, left)
                if column.null_count:
                    row = self._group_starts(self._names.index(name))[group] + column.is_null().index(True).as_py()
                    raise DataError(f"row {row} of {name} has no label. Drop unlabelled rows first.")
                yield column.cast(pa.int64()).to_numpy()
                left -= len(column)

    def _read(self, file: pq.ParquetFile, name: str, columns: list[str], group: int | None = None) -> pa.Table:
        def read() -> pa.Table:
            return file.read(columns=columns) if group is None else file.read_row_group(group, columns=columns)

        try:
            return retried_inline(f"{name} of {self._path}", read)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name} of source {self._path} is damaged: {_first_line(error)}.") from None

    def _first_group_rows(self) -> int:
        groups = (f.metadata.row_group(group) for f in self._files for group in range(f.metadata.num_row_groups))
        return next((int(group.num_rows) for group in groups if group.num_rows), 1)

    def _read_row_group(self, file: int, group: int) -> tuple[Any, Any]:
        """The image column of a row group, and the encoded images in it."""
        rows = self._read(self._files[file], self._names[file], [self._image], group).column(0).combine_chunks()
        return rows, rows.field("bytes") if isinstance(rows, pa.StructArray) else rows

    def _read_keys(self, file: int) -> Any:
        """The keys of a prepared file."""
        return self._read(self._files[file], self._names[file], ["key"]).column(0).combine_chunks()

    def _find_group_starts(self, file: int) -> list[int]:
        """The first row of each row group of a file."""
        metadata = self._files[file].metadata
        counts = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return list(itertools.accumulate(counts, initial=0))[:-1]

    def _bytes(self, value: Any, file: int, number: int) -> bytes:
        if isinstance(value, bytes):
            return value
        if value and value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value and value.get("path"):
            try:
                return read_file(self._fs, f"{self._folders[file]}/{value['path']}")
            except OSError as error:
                raise DataError(
                    f"{self.keys([number])[0]} names the file {value['path']}, which cannot be read: {error}."
                ) from None
        return b""


def _matches(path: str, pattern: str) -> bool:
    """Whether a path matches a glob part by part, so that `*` does not match a slash."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")
