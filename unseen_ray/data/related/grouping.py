"""Which samples of a source belong together: by a column of it, by a part of their keys, or by a file of numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unseen_ray.core.arrays import ROWS_OF_A_CHUNK, IntArray, labels_by_chunk
from unseen_ray.core.samples.groups import Groups, first_of_groups
from unseen_ray.data.sources.info import Source, SourceInfo, key_column
from unseen_ray.data.sources.labels_only import read_npy
from unseen_ray.data.sources.tables.labels import is_text
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import did_you_mean
from unseen_ray.storage.path_validation import as_text

__all__ = ["GroupRef", "group_ref", "with_groups"]

logger = logging.getLogger(__name__)

_ALLOWED = (
    "Allowed are the name of a column of the source, the path of a .npy file of whole numbers, one a row, or {pattern: a regular "
    "expression whose first parentheses hold the group in each key}; {use: name or path, drop: true} takes one sample of each group"
)


@dataclass(frozen=True, slots=True)
class GroupRef:
    """Where groups are read from.

    Attributes:
        column, file, pattern: the name, path or expression; two of them are None.
        drop: whether a run takes only one sample of each group.
    """

    column: str | None = None
    file: str | None = None
    pattern: str | None = None
    drop: bool = False


def group_ref(value: Any) -> GroupRef:
    """Read the configuration's `group`.

    Raises:
        ConfigError: if it is none of its forms.
    """
    given = dict(value) if isinstance(value, Mapping) else {"use": as_text(value)}
    if str(value).startswith("{") and not isinstance(value, Mapping):
        raise ConfigError(
            f"group={value} is not a mapping in YAML: put the pattern between single quotes: {{pattern: '...'}}."
        )
    drop = given.pop("drop", False)
    form, name = next(iter(given.items()), ("", ""))
    known = form in ("use", "pattern") and isinstance(name, str) and name
    if len(given) != 1 or not known or not isinstance(drop, bool):
        raise ConfigError(f"group={value!r} does not say which samples belong together. {_ALLOWED}.")
    if form == "use":
        return GroupRef(file=name, drop=drop) if name.endswith(".npy") else GroupRef(column=name, drop=drop)
    try:
        found = re.compile(name).groups
    except re.error as error:
        raise ConfigError(f"group.pattern={name!r} is not a regular expression: {error}.") from None
    if not found:
        raise ConfigError(
            f"group.pattern={name!r} has no parentheses around what names the group, such as 'patient([0-9]+)'."
        )
    return GroupRef(pattern=name, drop=drop)


def with_groups(source: Source, group: Any) -> SourceInfo:
    """What is known of a source, with its groups.

    Args:
        source: the opened source.
        group: the configuration's; None without groups.

    Raises:
        ConfigError: if `group` is none of its forms, or the source has no such column.
        DataError: if a key does not match the pattern, or the file is not one whole number a row.
    """
    info = source.info
    if group is None:
        return info
    ref = group_ref(group)
    if ref.column is not None:
        names_R = _by_column(source, ref.column)
    else:
        names_R = _by_file(source, ref.file) if ref.file is not None else _by_pattern(source, ref.pattern or "")
    of_R = first_of_groups(names_R)
    if (of_R == np.arange(len(of_R))).all():
        logger.warning("group=%s: no two of the %d samples of %s belong together.", group, len(of_R), info.name)
        return info
    return replace(info, groups=Groups(of_R=of_R, drop=ref.drop))


def _by_column(source: Source, name: str) -> IntArray:
    column_of: Callable[[str], pa.ChunkedArray | None] | None = getattr(source, "column", None)
    if column_of is None:
        raise ConfigError(
            f"group={name}: source {source.info.name} has no columns. Group by its keys, such as {source.keys([0])[0]}, with "
            "--group.pattern, or by a .npy file of whole numbers, one a row."
        )
    column = column_of(name)
    if column is None:
        known: list[str] = getattr(source, "column_names", [])
        raise ConfigError(
            f"group={name}: source {source.info.name} has no such column; it has {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return _numbers_of(column, name)


def _by_pattern(source: Source, pattern: str) -> IntArray:
    find, pieces = re.compile(pattern).search, []
    for start, labels in labels_by_chunk(source.info.labels_N, ROWS_OF_A_CHUNK):
        keys = key_column(source, np.arange(start, start + len(labels))).to_pylist()
        matches = [find(key) for key in keys]
        if None in matches or any(match.group(1) is None for match in matches if match):
            other = keys[next(place for place, match in enumerate(matches) if not match or match.group(1) is None)]
            raise DataError(
                f"group.pattern={pattern!r} finds no group in the key {other!r} of source {source.info.name}. Every key must have one; "
                "where keys are row numbers, name a column."
            )
        pieces.append(pa.array([match.group(1) for match in matches if match], pa.string()))
    return _numbers_of(pa.chunked_array(pieces), pattern)


def _by_file(source: Source, path: str) -> IntArray:
    numbers, rows = read_npy(path), len(source.info)
    if numbers.dtype.kind not in "iu" or numbers.shape != (rows,):
        raise DataError(
            f"group={path} holds {numbers.dtype} of shape {numbers.shape}; source {source.info.name} needs one whole number for each of "
            f"its {rows} rows, the same for rows that belong together: numpy.unique(names, return_inverse=True)[1] makes them of names."
        )
    return numbers.astype(np.int64)


def _numbers_of(column: pa.ChunkedArray, where: str) -> IntArray:
    """(R,) a number for each value; a row without a value is a group of its own."""
    if is_text(column.type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        column = pc.if_else(pc.equal(column, ""), None, column)  # as a CSV writes what is missing
    elif pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        codes = pc.index_in(column, pc.unique(column.drop_null())).combine_chunks()
    except pa.ArrowNotImplementedError:
        raise DataError(
            f"group={where}: the column is {column.type}; a group must be a number, text or a date."
        ) from None
    alone = codes.is_null().to_numpy(zero_copy_only=False)
    numbers: IntArray = codes.fill_null(0).to_numpy().astype(np.int64)
    numbers[alone] = -1 - np.flatnonzero(alone)
    return numbers
