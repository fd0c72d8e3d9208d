"""The label column of tables: integers, or text that becomes the numbers of the sorted names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unseen_ray.core.arrays import IntArray
from unseen_ray.data.sources.tables.shard import TableShard, group_starts
from unseen_ray.errors import DataError

__all__ = ["LabelColumn", "class_names", "image_schema", "is_text"]

_NAMED = 3


class LabelColumn:
    """Labels as class numbers that mean the same in all files.

    Args:
        files: all that a source reads.
        label: the column.
        where: the source's name in messages.
    """

    def __init__(self, files: Sequence[TableShard], label: str, where: str) -> None:
        self._files, self._label, self._where = files, label, where

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number: of the files' metadata, else the sorted names where labels are text; empty if there are none.

        Raises:
            DataError: if files name different classes, or some are numbers and some text.
        """
        named = {file.name: class_names(file.schema, self._label) for file in self._files}
        texts = [is_text(file.schema.field(self._label).type) for file in self._files]
        if any(texts) and not all(texts):
            raise DataError(
                f"column {self._label!r} of source {self._where} is text in {self._files[texts.index(True)].name} and numbers in "
                f"{self._files[texts.index(False)].name}. Write one of the two in all files."
            )
        self._check_names(named)
        names = named[self._files[0].name]
        return names or (self._sorted_names() if any(texts) else ())

    def numbers(self, rows: int) -> Iterator[IntArray]:
        """The labels of the first `rows` rows as class numbers, one row group at a time.

        Raises:
            DataError: if one is missing, not an integer, or not a class.
        """
        left = rows
        for file in self._files:
            numbers = self._numbers_in(file)
            for group in range(len(file.group_rows)):
                if left <= 0:
                    return
                column = self._column(file, group).slice(0, left)
                if is_text(column.type):
                    column = pc.if_else(pc.equal(column, ""), None, column)  # as a CSV writes what is missing
                if column.null_count:
                    row = group_starts(file)[group] + column.is_null().index(True).as_py()
                    raise DataError(f"row {row} of {file.name} has no label. Drop unlabelled rows first.")
                yield self._numbered(column, file, group, numbers)
                left -= len(column)

    def _column(self, file: TableShard, group: int) -> pa.ChunkedArray:
        column = file.read([self._label], group).column(0)
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        if is_text(column.type):
            return column.cast(pa.string())  # of the kinds of text, the one that all functions take
        if not pa.types.is_integer(column.type):
            raise DataError(
                f"column {self._label!r} of {file.name} is {kind}; labels must be integers, 0 to C - 1, or the names of classes as text."
            )
        return column

    def _numbered(self, column: pa.ChunkedArray, file: TableShard, group: int, numbers: IntArray | None) -> IntArray:
        if is_text(column.type):
            found = pc.index_in(column, pa.array(self.class_names, pa.string()))
            if found.null_count:
                row = found.is_null().index(True).as_py()
                raise DataError(
                    f"row {group_starts(file)[group] + row} of {file.name} has label {column[row].as_py()!r}, which the metadata of "
                    f"source {self._where} does not name as a class."
                )
            return np.asarray(found.to_numpy(), np.int64)
        if pa.types.is_uint64(column.type) and len(column) and (most := pc.max(column).as_py()) >= 2**63:
            raise DataError(f"{file.name} has label {most}; labels are 0 to C - 1. Number the classes so.")
        labels: IntArray = column.cast(pa.int64()).to_numpy()
        # what is out of range is refused with its row number by whoever gathers the labels
        return labels if numbers is None or _is_out_of(labels, len(numbers)) else numbers[labels]

    def _numbers_in(self, file: TableShard) -> IntArray | None:
        """The source's number for each class number of a file whose metadata names the same classes in another order."""
        theirs, ours = class_names(file.schema, self._label), self.class_names
        if theirs == ours or not theirs:
            return None
        return np.array([ours.index(name) for name in theirs], np.int64)

    def _check_names(self, named: dict[str, tuple[str, ...]]) -> None:
        first, names = next(iter(named.items()))
        for file, others in named.items():
            if bool(others) != bool(names):
                with_names, without = (first, file) if names else (file, first)
                raise DataError(
                    f"{with_names} of source {self._where} names its classes and {without} does not, so that their numbers may mean "
                    "different classes. Write the names into the metadata of all files, or of none."
                )
            if len(set(others)) < len(others) and others != names:
                raise DataError(f"{file} of source {self._where} names a class twice. Give each class its own name.")
            if set(others) != set(names):
                raise DataError(
                    f"{first} and {file} of source {self._where} name different classes: {_difference(names, others)}. "
                    "Name the files of one data set, such as one configuration of it, with a glob."
                )

    def _sorted_names(self) -> tuple[str, ...]:
        found: set[str] = set()
        for file in self._files:
            for group in range(len(file.group_rows)):
                found.update(pc.unique(self._column(file, group)).to_pylist())
        return tuple(sorted(name for name in found if name))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, also as a dictionary of few values."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_out_of(labels: IntArray, num_classes: int) -> bool:
    return bool(len(labels) and (labels.min() < 0 or labels.max() >= num_classes))


def _difference(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    only = [sorted(set(a) - set(b)) for a, b in ((one, other), (other, one))]
    return " and ".join(", ".join(map(repr, names[:_NAMED])) or "no other" for names in only)


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The class names in the metadata: Hugging Face's ClassLabel, else a list in JSON or separated by | or commas."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        names = _plain_names(metadata)
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _plain_names(metadata: dict[bytes, bytes]) -> Any:
    for key in (b"class_names", b"class_wnids"):
        if key in metadata:
            try:
                return json.loads(metadata[key])
            except ValueError:
                text = metadata[key].decode("utf-8", "replace")
                return text.split("|" if "|" in text else ",")
    return None


def image_schema(names: Sequence[str]) -> pa.Schema:
    """The Hugging Face image schema with class names, if there are any: `datasets` reads such files as images and classes."""
    label = {"_type": "ClassLabel", "names": list(names)} if names else {"_type": "Value", "dtype": "int64"}
    features = {"image": {"_type": "Image"}, "label": label, "key": {"_type": "Value", "dtype": "string"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64()), ("key", pa.string())])
    return schema.with_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
