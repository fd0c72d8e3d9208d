"""The ids of a task in memory, or where they are many mapped from a file that has no name and goes with the process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from unseen_ray.errors import StorageError
from unseen_ray.storage.plain_text import reason_of

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.core.samples.id_sets import IdSet
    from unseen_ray.core.samples.population import Population

__all__ = ["ids_of", "own_ids"]

_ROWS = 2**20  # that are copied at a time


def ids_of(ids: IdSet, population: Population, most: int) -> IdArray:
    """(M,) int64 ids of a set, strictly increasing; of a population of more than `most` samples in a file.

    Raises:
        StorageError: if there is no room for the file.
    """
    return ids.resolve(population) if len(population) <= most else _mapped(ids.pieces(population))


def own_ids(ids_M: IdArray, most: int) -> IdArray:
    """A copy, which may be changed; of more than `most` ids in a file, see `ids_of`."""
    if len(ids_M) <= most:
        return ids_M.copy()
    return _mapped(ids_M[start : start + _ROWS] for start in range(0, len(ids_M), _ROWS))


def _mapped(pieces: Iterable[IdArray]) -> IdArray:
    written = 0
    try:
        with tempfile.TemporaryFile() as file:
            for ids in pieces:
                written += file.write(np.ascontiguousarray(ids, np.int64).data)
            file.flush()
            # The map outlives the file object.
            return np.memmap(file, np.int64, "r+").view(np.ndarray) if written else np.empty(0, np.int64)
    except OSError as error:
        raise StorageError(
            f"the ids of a task cannot be kept in {tempfile.gettempdir()} while it runs: {reason_of(error)}. Make room there for 8 bytes "
            "a sample and worker, and as much again for a fit of your own, or name another folder in TMPDIR."
        ) from None
