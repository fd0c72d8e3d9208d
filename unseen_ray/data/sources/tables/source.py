"""Tables of encoded images, or of paths to images, with a label: the rows of one or more files as a source."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSystem

from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.data.listing.content import sample_of_bytes, times_of
from unseen_ray.data.sources.info import Encoded, RawImage, SourceInfo, fingerprint_of, probe_size
from unseen_ray.data.sources.label_columns import ROWS_IN_MEMORY, digest_of_labels, gather_labels
from unseen_ray.data.sources.tables.labels import LabelColumn, is_text
from unseen_ray.data.sources.tables.named_files import NamedFiles
from unseen_ray.data.sources.tables.shard import TableShard, group_starts
from unseen_ray.errors import DataError
from unseen_ray.plugins import did_you_mean
from unseen_ray.storage.filesystem import absolute_path

if TYPE_CHECKING:
    from unseen_ray.data.listing.files import FileStat

__all__ = ["TableSource", "Tables"]

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PROBED = 32
_SHOWN = 200  # characters of a name from the data in a message
_CACHED_ROW_GROUPS = 4
_TAKEN = 2048
_MUCH_LESS = 100  # a column this many times smaller than its images only names files that lie elsewhere


@dataclass(frozen=True, slots=True)
class Tables:
    """The files that a source stands for.

    Attributes:
        fs: their file system.
        files: in order.
        stats: their sizes and times.
        has_keys: whether a column `key` holds the keys.
        note: a remark for the user; empty if there is none.
    """

    fs: FileSystem
    files: Sequence[TableShard]
    stats: Sequence[FileStat]
    has_keys: bool = False
    note: str = ""


class TableSource:
    """Rows of files as samples.

    The image column is `struct<bytes, path>`, plain binary, or text that names image files by URI or by path, absolute or
    relative to the table's file. Labels are integers, or text whose sorted values are the classes. Ids number the rows of all
    files, in the order of the files' names. A key is the file's name and the row in it, `train-00.parquet:17`.

    Args:
        path: where the files are; what it may be depends on the subclass.
        image: the image column; None for the first of `image_names` that there is.
        label: the label column.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        limit: use only the first `limit` rows; None for all.
        images: a folder or URI below which rows may name images, beside the data's own folder; see `NamedFiles`.
        rows_in_memory: with more rows than this, labels are kept in a file; see `gather_labels`.
    """

    kind: ClassVar[str]
    """How a configuration names such a source."""
    image_names: ClassVar[tuple[str, ...]] = ("image", "img")

    def __init__(
        self,
        *,
        path: str,
        image: str | None = None,
        label: str = "label",
        size: int | None = None,
        limit: int | None = None,
        images: str | None = None,
        rows_in_memory: int = ROWS_IN_MEMORY,
    ) -> None:
        self._reopen: dict[str, Any] = {
            "path": absolute_path(path), "image": image, "label": label, "size": size, "limit": limit,
            "images": images and absolute_path(images), "rows_in_memory": rows_in_memory,
        }  # fmt: skip
        self._path, self._label, self._size, self._limit = path, label, size, limit
        self._rows_in_memory = rows_in_memory
        found = self._find(path)
        self._fs, self._files = found.fs, list(found.files)
        self._has_keys, self._note = found.has_keys, found.note
        self._sizes, self._times = [stat.size for stat in found.stats], times_of(found.stats)
        self._named = NamedFiles(self._fs, path, [file.path for file in self._files], images)
        self._image = self._image_column(image)
        self._labels = LabelColumn(self._files, label, path)
        self._starts = np.cumsum([0, *(sum(file.group_rows) for file in self._files)])
        # caches of this instance: decorated methods would keep every instance alive
        self._row_group = lru_cache(maxsize=_CACHED_ROW_GROUPS)(self._read_row_group)
        self._group_starts = lru_cache(maxsize=None)(lambda file: group_starts(self._files[file]))
        self._keys_of = lru_cache(maxsize=_CACHED_ROW_GROUPS)(self._read_keys)

    @staticmethod
    def _find(path: str) -> Tables:
        """The files of a path; DataError if there are none, or they cannot be read."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as how to open it, for the workers of a DataLoader: open files and caches do not travel."""
        return functools.partial(type(self), **self._reopen), ()

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts; reads the label column and the headers of a few images."""
        names = self._labels.class_names
        total = int(self._starts[-1])
        rows = total if self._limit is None else min(self._limit, total)
        labels, num_classes = gather_labels(
            self._labels.numbers(rows),
            rows,
            where=self._path,
            num_classes=len(names) or None,
            rows_in_memory=self._rows_in_memory,
        )
        # Images that rows only name by path are no bytes of the files: these are probed all over.
        reach = len(labels) if self._names_files else min(len(labels), self._first_group_rows())
        probed = np.unique(np.linspace(0, reach - 1, _PROBED).astype(int))
        images = [raw for _, raw in self.read(probed.tolist())]
        size_px, original_px = probe_size(images, self._size)
        sample = self._sample(images)
        # the fingerprint covers footers and labels, since reading all images would take too long
        footers, sizes = map(list, zip(*(file.identity() for file in self._files), strict=True))
        return SourceInfo(
            name=self._path,
            labels_N=labels,
            num_classes=num_classes,
            size_px=size_px,
            original_px=original_px,
            class_names=names,
            fingerprint=fingerprint_of(self.kind, footers, sizes, digest_of_labels(labels), str(len(labels))),
            sample=sample,
            times=self._times,
            note=self._note,
        )

    @property
    def column_names(self) -> list[str]:
        """Columns that all files have."""
        return [name for name in self._files[0].schema.names if all(name in file.schema.names for file in self._files)]

    def column(self, name: str) -> pa.ChunkedArray | None:
        """A column of all rows; None if a file does not have it."""
        if name not in self.column_names:
            return None
        rows = len(self.info)
        read = (file for file, start in zip(self._files, self._starts, strict=False) if start < rows)
        pieces = [chunk for file in read for chunk in file.read([name]).column(0).chunks]
        kinds = {chunk.type.value_type if pa.types.is_dictionary(chunk.type) else chunk.type for chunk in pieces}
        kind = kinds.pop() if len(kinds) == 1 else pa.string()
        return pa.chunked_array([chunk.cast(kind) for chunk in pieces], kind).slice(0, rows)

    def encoded(self) -> Encoded | None:
        """The size of the image column ; None if the images are separate files."""
        size = sum(file.stored_bytes(self._image) for file in self._files)
        rows, groups = int(self._starts[-1]), sum(len(file.group_rows) for file in self._files)
        _, first = next(self.read([0]))
        if not rows or size < rows * len(first) / _MUCH_LESS:
            return None
        return Encoded(bytes_each=size / rows, how="the size of the image column / rows", groups=groups)

    def keys(self, ids: Sequence[int]) -> list[str]:
        """File name and row; for a folder made by `unseen-ray prepare`, the keys of the original source."""
        return list(self.key_column(np.asarray(ids, np.int64)).to_pylist())

    def key_column(self, ids_M: IdArray) -> pa.Array:
        """The same for (M,) ids as Arrow strings, without a Python object for each."""
        files = np.searchsorted(self._starts, ids_M, side="right") - 1
        rows = pa.array(ids_M - self._starts[files])
        if not self._has_keys:
            names = pa.array([file.name for file in self._files]).take(pa.array(files))
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
            yield number, value if isinstance(value, bytes) else self._bytes(rows[place].as_py(), file, number)

    def tables(self, ids: Sequence[int]) -> Iterator[tuple[str, pa.Table]]:
        """The rows of ascending ids with all their columns and metadata, in pieces of at most 2,048, each with its file name.

        An image that a row only names by path is read and embedded.
        """
        rows = np.asarray(ids, np.int64)
        for place, file in enumerate(self._files):
            start = int(self._starts[place])
            for group, count in enumerate(file.group_rows):
                stop = start + count
                if not np.any((rows >= start) & (rows < stop)):
                    start = stop
                    continue
                for table in file.tables(file.schema.names, [group]):
                    wanted = rows[(rows >= start) & (rows < start + table.num_rows)]
                    for first in range(0, len(wanted), _TAKEN):
                        some = wanted[first : first + _TAKEN]
                        yield file.name, self._with_images(table.take(pa.array(some - start)), place, some)
                    start += table.num_rows
                start = stop

    def _with_images(self, table: pa.Table, file: int, ids: IntArray) -> pa.Table:
        place = table.schema.get_field_index(self._image)
        images = table.column(place).combine_chunks()
        if is_text(images.type):
            rows = [
                {"bytes": self._bytes(name, file, int(number)), "path": name}
                for name, number in zip(images.to_pylist(), ids, strict=True)
            ]
            return table.set_column(place, self._image, pa.array(rows, _IMAGE))
        if not pa.types.is_struct(images.type) or not images.field("bytes").null_count:
            return table
        kind = images.type
        names = [kind.field(i).name for i in range(kind.num_fields)]
        rows = [
            {**{name: (value or {}).get(name) for name in names}, "bytes": self._bytes(value, file, int(number))}
            for value, number in zip(images.to_pylist(), ids, strict=True)
        ]
        return table.set_column(place, table.schema.field(place), pa.array(rows, kind))

    def _sample(self, images: Sequence[RawImage]) -> str:
        """What the fingerprint does not tell apart: bytes of the files, the images that rows only name, and one column from another."""
        found = sample_of_bytes(self._fs, [file.path for file in self._files], self._sizes)
        if self._names_files:
            return fingerprint_of(found, *map(_as_bytes, images))
        schema = self._files[0].schema
        holding = [field.name for field in schema if _holds_images(field.type)]
        first = next((name for name in (*self.image_names, *holding) if name in holding), self._image)
        return found if self._image == first else fingerprint_of(found, self._image)

    @cached_property
    def _names_files(self) -> bool:
        """Whether rows name their images instead of holding them, to judge by the first row that there is."""
        place = next((place for place, file in enumerate(self._files) if any(file.group_rows)), None)
        if place is None:
            return False
        group = next(number for number, rows in enumerate(self._files[place].group_rows) if rows)
        rows, encoded = self._row_group(place, group)
        value, row = encoded[0].as_py(), rows[0].as_py()
        return isinstance(value, str) or (value is None and isinstance(row, dict) and bool(row.get("path")))

    def _image_column(self, given: str | None) -> str:
        wanted = [given] if given else list(self.image_names)
        image = next((name for name in wanted if name in self._files[0].schema.names), None)
        for file in self._files:
            there = file.schema.names
            for field, column, hint in (("image", image, " or ".join(wanted)), ("label", self._label, self._label)):
                if column is None or column not in there:
                    raise DataError(
                        f"{file.name} of source {self._path} has no {field} column ({hint}); it has {', '.join(there)}. "
                        f"Name it: {{use: {self.kind}, path: ..., {field}: <column>}}.{did_you_mean(hint, there)}"
                    )
            kind = file.schema.field(image).type
            if not (_holds_images(kind) or is_text(kind)):
                raise DataError(
                    f"column {image!r} of {file.name} is {kind}; it must hold encoded images, as binary or struct<bytes, path>, "
                    "or the paths of image files as text."
                )
        assert image is not None
        return image

    def _first_group_rows(self) -> int:
        return next((rows for file in self._files for rows in file.group_rows if rows), 1)

    def _read_row_group(self, file: int, group: int) -> tuple[Any, Any]:
        """The image column of a row group, and the encoded images in it."""
        rows = self._files[file].read([self._image], group).column(0)
        if pa.types.is_dictionary(rows.type):
            rows = rows.cast(rows.type.value_type)
        if rows.num_chunks == 1:
            rows = rows.chunk(0)  # a single array is quicker to index
        return rows, pc.struct_field(rows, "bytes") if pa.types.is_struct(rows.type) else rows

    def _read_keys(self, file: int) -> Any:
        """The keys of a prepared file."""
        return self._files[file].read(["key"]).column(0).combine_chunks()

    def _bytes(self, value: Any, file: int, number: int) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict) and value.get("bytes") is not None:
            return bytes(value["bytes"])
        place = value.get("path") if isinstance(value, dict) else value
        if not place:
            return b""
        try:
            return self._named.read(place, self._files[file].path)
        except OSError as error:
            raise DataError(
                f"{self.keys([number])[0]} names the file {place[:_SHOWN]}, which cannot be read: {str(error)[:_SHOWN]}."
            ) from None


def _as_bytes(raw: RawImage) -> bytes:
    return raw if isinstance(raw, bytes) else raw.tobytes()


def _holds_images(kind: pa.DataType) -> bool:
    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return _is_binary(kind.field(place).type if place >= 0 else kind)


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
