"""(N, C) arrays of probabilities, read in blocks of rows: from memory, .npy and Parquet files, or a folder of such files in parts."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from unseen_ray.core.arrays import FloatArray, RowBlocks
from unseen_ray.errors import DataError, StorageError, UnseenError
from unseen_ray.storage.filesystem import Folder, filesystem_of, read_file, remedy_to_read
from unseen_ray.storage.npy import array_of_npy, npy_header
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import is_of_storage, retried_inline

__all__ = ["matrix_of", "side_by_side", "stored_matrix"]

_BLOCK = 2**25  # bytes
_SUFFIXES = (".npy", ".parquet")

_T = TypeVar("_T")


def matrix_of(given: str | np.ndarray, name: str) -> RowBlocks:
    """An array of floating-point numbers, or the path of one.

    Args:
        given: (N, C); or a .npy file of it; or a Parquet file, with a column of lists of C numbers, where null stands for a row of NaN,
            or with C columns of numbers; or a folder of files of one of these kinds, which hold the rows in the order of their names.
        name: what messages call it.

    Raises:
        DataError: if it is something else, or cannot be read; also later, while blocks are read.
    """
    if not isinstance(given, str):
        return _checked(given.dtype, given.shape, name, lambda: _slices(given))
    fs, inner = filesystem_of(given)
    if _opened(given, fs, lambda: fs.get_file_info(inner)).type == FileType.Directory:
        return _of_parts(given)
    return _of_file(given)


def stored_matrix(folder: Folder, name: str) -> RowBlocks:
    """The array in a .npy file of a run.

    Raises:
        StorageError: if it is missing or damaged; also later, while blocks are read.
    """
    return _of_npy(folder.path(name), StorageError)


def side_by_side(matrices: Sequence[RowBlocks]) -> Iterator[tuple[slice, list[FloatArray]]]:
    """Rows of several arrays of N rows, in blocks that end at the same rows."""
    streams = [iter(each.read()) for each in matrices]
    held, start = [next(stream, None) for stream in streams], 0
    while all(block is not None for block in held):
        blocks = [block for block in held if block is not None]
        count = min(len(block) for block in blocks)
        yield slice(start, start + count), [block[:count] for block in blocks]
        start += count
        held = [
            block[count:] if len(block) > count else next(stream, None)
            for block, stream in zip(blocks, streams, strict=True)
        ]


def _checked(
    dtype: np.dtype,
    shape: Sequence[int],
    name: str,
    read: Callable[[], Iterator[FloatArray]],
    *,
    is_part: bool = False,
) -> RowBlocks:
    """The blocks of an array; a part of one may have no rows, or none that a model scored, and then no columns."""
    is_bare = is_part and len(shape) == 2 and 0 in shape
    if len(shape) != 2 or dtype.kind != "f" or not (is_bare or (shape[1] > 1 and shape[0])):
        raise DataError(
            f"{name} holds {'text' if dtype.kind in 'US' else dtype} of shape {tuple(shape)}. Give floating-point "
            "probabilities of shape (N, C), one row a sample; a list is taken as one such array for each model."
        )
    return RowBlocks((shape[0], shape[1]), read)


def _rows_at_once(num_classes: int, itemsize: int) -> int:
    return max(_BLOCK // max(num_classes * itemsize, 1), 1)


def _slices(array: np.ndarray) -> Iterator[FloatArray]:
    step = _rows_at_once(array.shape[1], array.itemsize)
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _of_file(path: str, *, is_part: bool = False) -> RowBlocks:
    return (
        _of_parquet(path, is_part=is_part) if path.endswith(".parquet") else _of_npy(path, DataError, is_part=is_part)
    )


def _of_npy(path: str, error: type[UnseenError], *, is_part: bool = False) -> RowBlocks:
    fs, inner = filesystem_of(path)

    def header() -> tuple[tuple[int, ...], bool, np.dtype, int]:
        with fs.open_input_file(inner) as stream:
            return *npy_header(stream, stream.size()), stream.tell()

    shape, by_column, dtype, start = _opened(path, fs, header, error)
    if by_column and len(shape) == 2:  # a row is spread over all of the file
        whole = _opened(path, fs, lambda: array_of_npy(read_file(fs, inner)), error)
        return _checked(dtype, shape, path, lambda: _slices(whole), is_part=is_part)

    def rows(first: int, count: int) -> FloatArray:
        with fs.open_input_file(inner) as stream:
            data = stream.read_at(count * shape[1] * dtype.itemsize, start + first * shape[1] * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(count, shape[1])

    def read() -> Iterator[FloatArray]:
        step = _rows_at_once(shape[1], dtype.itemsize)
        for first in range(0, shape[0], step):
            yield _opened(path, fs, functools.partial(rows, first, min(step, shape[0] - first)), error)

    return _checked(dtype, shape, path, read, is_part=is_part)


def _of_parts(path: str) -> RowBlocks:
    names = [name for name in Folder(path).names() if not name.startswith((".", "_"))]
    kinds = {suffix for name in names for suffix in _SUFFIXES if name.endswith(suffix)}
    others = [name for name in names if not name.endswith(_SUFFIXES)]
    if len(kinds) != 1 or others:
        raise DataError(
            f"{path} is a folder that holds {others[0] if others else ' and '.join(sorted(kinds)) or 'nothing'}. Give a folder of .npy "
            "files alone, or of .parquet files alone, whose rows follow each other in the order of the names."
        )
    for before, after in itertools.pairwise(names):
        if _words_and_numbers(before) > _words_and_numbers(after):
            raise DataError(
                f"{path}: {before} comes before {after} by name, but after it by number, and rows are read in the order of the names. "
                "Pad the numbers with zeros."
            )
    parts = {name: _of_file(Folder(path).path(name), is_part=True) for name in names}
    widths = {name: part.shape[1] for name, part in parts.items() if part.shape[1]}
    first = next(iter(widths), names[0])
    wide = next((name for name in widths if widths[name] != widths[first]), None)
    if wide is not None:
        raise DataError(
            f"{path}: {wide} has {widths[wide]} columns, but {first} has {widths[first]}. Give all parts the same classes."
        )
    num_classes = parts[first].shape[1]

    def read() -> Iterator[FloatArray]:
        for part in parts.values():
            for block in part.read():
                yield block if part.shape[1] else np.full((len(block), num_classes), np.nan, np.float32)

    return _checked(np.dtype(np.float32), (sum(part.shape[0] for part in parts.values()), num_classes), path, read)


def _words_and_numbers(name: str) -> list[str | int]:
    """Words and numbers in turn, so that names compare by their numbers."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", name)]


def _of_parquet(path: str, *, is_part: bool = False) -> RowBlocks:
    fs, inner = filesystem_of(path)

    def header() -> tuple[pa.Schema, int, int]:
        with fs.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            schema = file.schema_arrow
            num_classes = _length_of_lists(file) if len(schema) == 1 and _is_list(schema[0].type) else len(schema)
            return schema, num_classes, file.metadata.num_rows

    schema, num_classes, num_rows = _opened(path, fs, header)
    numbers = [_numbers_of(field.type) for field in schema]
    others = [name for name, kind in zip(schema.names, numbers, strict=True) if kind.kind != "f"]
    if len(schema) > 1 and (others or any(_is_list(field.type) for field in schema)):
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}. Give probabilities alone: one column of lists, or a column of "
            f"floating-point numbers for each class{f', without {others[0]}' if others else ''}."
        )

    def read() -> Iterator[FloatArray]:
        step = _rows_at_once(num_classes, numbers[0].itemsize)
        with _explained(path), fs.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(batch_size=step, use_threads=False):
                yield _array_of(batch, num_classes, path)

    return _checked(np.result_type(*numbers), (num_rows, num_classes), path, read, is_part=is_part)


def _length_of_lists(file: pq.ParquetFile) -> int:
    """How many numbers the first list holds that is not null; 0 if there is none."""
    kind = file.schema_arrow[0].type
    if isinstance(kind, pa.FixedSizeListType):
        return int(kind.list_size)
    # without threads, which would still read ahead when a list was found
    for batch in file.iter_batches(batch_size=1024, use_threads=False):
        if len(lists := batch.column(0).drop_null()):
            return len(lists[0])
    return 0


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _numbers_of(kind: pa.DataType) -> np.dtype:
    try:
        numbers: np.dtype = np.dtype((kind.value_type if _is_list(kind) else kind).to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return np.dtype(object)
    return numbers


def _array_of(batch: pa.RecordBatch, num_classes: int, path: str) -> FloatArray:
    """(R, C) of a batch; NaN where a list or a number is null."""
    if batch.num_columns > 1:
        return np.column_stack([column.to_numpy(zero_copy_only=False) for column in batch.columns])
    lists = batch.column(0)
    if not num_classes:  # all of them are null
        return np.empty((len(lists), 0), np.float32)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    lengths = lists.value_lengths().fill_null(num_classes).to_numpy(zero_copy_only=False)
    if (lengths != num_classes).any():
        raise DataError(
            f"{path} has a row of {lengths[lengths != num_classes][0]} probabilities, but its first has {num_classes}. Give each row one "
            "for each class; null stands for a sample that was not scored."
        )
    array = np.full((len(lists), num_classes), np.nan, values.dtype)
    array[present] = values.reshape(-1, num_classes)
    return array


def _opened(path: str, fs: FileSystem, do: Callable[[], _T], error: type[UnseenError] = DataError) -> _T:
    """What `do` reads of a file."""
    with _explained(path, error):
        return retried_inline(path, do, fs)


@contextlib.contextmanager
def _explained(path: str, error: type[UnseenError] = DataError) -> Iterator[None]:
    """`error` where a file is missing, damaged or unreadable."""
    try:
        yield
    except FileNotFoundError:
        raise error(f"{path} does not exist. Give a .npy or a .parquet file, or a folder of such files.") from None
    except (ValueError, OSError, pa.ArrowException) as problem:
        if isinstance(problem, OSError) and is_of_storage(problem):
            raise error(f"{path} cannot be read: {reason_of(problem)}. {remedy_to_read(problem)}") from None
        kind = "Parquet" if path.endswith(".parquet") else ".npy"
        raise error(
            f"{path} is not a {kind} file of numbers: {problem}. Write it with numpy.save or pyarrow."
        ) from None
