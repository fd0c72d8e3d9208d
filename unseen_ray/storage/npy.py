"""Files of numpy arrays, .npy, without pickled content, read and written in pieces."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy

__all__ = ["array_of_npy", "npy_header", "npy_pieces"]


def array_of_npy(data: bytes) -> np.ndarray:
    """The numpy array of a .npy file's bytes; ValueError as of `npy_header`."""
    npy_header(io.BytesIO(data), len(data))
    array: np.ndarray = npy.read_array(io.BytesIO(data), allow_pickle=False)
    return array


def npy_header(stream: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns are stored one after another, and dtype of an open .npy file, whose values come next.

    Args:
        stream: has `read` and `tell`; a file of Python or of pyarrow.
        size: bytes of the file.

    Raises:
        ValueError: if it is none, holds pickled content, or not as many values as the header says, which numpy would make room for.
    """
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, by_column, dtype = read_header(stream)
        if dtype.hasobject or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"its header states the shape {shape} of {dtype}")
        if math.prod(shape) * dtype.itemsize != size - stream.tell():
            raise ValueError(f"it does not hold the {shape} values of {dtype} that its header states")
    except (
        KeyError,
        TypeError,
        OSError,
        EOFError,
        OverflowError,
        RecursionError,
        MemoryError,
        SyntaxError,
        TokenError,
    ) as error:
        raise ValueError(f"its header cannot be read: {type(error).__name__}: {error}") from None
    return shape, by_column, dtype


def npy_pieces(shape: tuple[int, ...], dtype: Any, rows: Iterable[np.ndarray], size: int) -> Iterator[memoryview]:
    """The bytes of a .npy file in pieces of at most `size`.

    Args:
        shape, dtype: of the array.
        rows: its blocks of rows.
        size: bytes.
    """
    header = io.BytesIO()
    described = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, described)
    blocks = (np.ascontiguousarray(block).data.cast("B") for block in rows if block.size)
    for block in itertools.chain([header.getbuffer()], blocks):
        for start in range(0, len(block), size):
            yield block[start : start + size]
