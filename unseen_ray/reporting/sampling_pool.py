"""What a KeptSampler draws from: of a finished run, or of the file that `export --to sampler.json` writes for elsewhere."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from unseen_ray.core.arrays import IdArray, as_ids, positions_of
from unseen_ray.core.outofcore.best_first import ids_best_first
from unseen_ray.core.outofcore.selection import IdBits
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.pruning.suspects import drawable_ids, drawable_pieces, score_chunks
from unseen_ray.runs.layout import CORESET
from unseen_ray.runs.run import Run, coreset_of
from unseen_ray.storage.checked_json import from_checked_json, write_checked_json
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.plain_text import reason_of

__all__ = ["SamplingPool", "write_pool", "write_pool_of_run"]

_KIND, _VERSION = "sampler", 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplingPool:
    """The samples of a run that epochs are drawn from, and in which order its coreset was picked.

    Attributes:
        place: the run's folder, or the file.
        source: name, fingerprint and rows of the source, in which id i is row i.
        num_samples: N of the run.
        ids_L: (L,) int64 sorted ids that draws may take.
        picked_M: (M,) int64 ids of the coreset among them, the first picked first.
    """

    place: str
    source: dict[str, Any]
    num_samples: int
    ids_L: IdArray
    picked_M: IdArray

    @classmethod
    def of_run(cls, run: Run) -> SamplingPool:
        """The pool of a finished run; StorageError if one of its files is missing or damaged."""
        coreset = coreset_of(run)
        return cls(
            place=run.folder.root,
            source=_source_of(run),
            num_samples=run.manifest.source.num_samples,
            ids_L=drawable_ids(run, coreset.ids),
            picked_M=coreset.in_order(run.manifest.config["seed"]),
        )

    @classmethod
    def of_file(cls, path: str) -> SamplingPool:
        """The pool that `write_pool` wrote.

        Raises:
            ConfigError: if the file cannot be read, is none of these, or is of a newer unseen_ray.
            StorageError: if it is damaged.
        """
        written = f"`unseen-ray export RUN --to {os.path.basename(path)}`"
        try:
            values = from_checked_json(read_file(*filesystem_of(path)))
            if values.get("kind") != _KIND:
                raise ConfigError(f"{path} holds no sampler. Give a file that {written} wrote.")
            if (version := values["schema_version"]) > _VERSION:
                raise ConfigError(
                    f"{path} has schema_version {version}; this unseen_ray reads up to {_VERSION}. Upgrade unseen_ray."
                )
            return cls._of_values(path, values)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {reason_of(error)}. Give a file that {written} wrote.") from None
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"{path} is damaged: {type(error).__name__}: {error}. Write it again: {written}."
            ) from None

    @classmethod
    def _of_values(cls, path: str, values: dict[str, Any]) -> SamplingPool:
        source, num_samples = values["source"], values["num_samples"]
        ids_L, picked_M = _ids_in(values["drawable"], source["rows"]), np.asarray(values["picked"])
        positions_of(as_ids(picked_M, name="picked"), ids_L)
        if len(ids_L) > num_samples:
            raise ValueError(f"{len(ids_L)} of its {num_samples} samples can be drawn")
        return cls(place=path, source=source, num_samples=num_samples, ids_L=ids_L, picked_M=picked_M)


def write_pool_of_run(run: Run, stream: IO[bytes]) -> None:
    """Write the pool of a finished run as JSON, a piece at a time; StorageError if one of its files is missing or damaged."""
    coreset, kept = run.stored(CORESET, hold=False), IdBits()
    for chunk in score_chunks(coreset, {}, ("id",)):
        kept.add(chunk["id"])
    picked = ids_best_first(
        functools.partial(score_chunks, coreset, {}), max(len(run.manifest.stages), 1), run.manifest.config["seed"]
    )
    write_pool(stream, _source_of(run), run.manifest.source.num_samples, drawable_pieces(run, kept), picked)


def write_pool(
    stream: IO[bytes],
    source: dict[str, Any],
    num_samples: int,
    drawable: Iterable[IdArray],
    picked: Iterable[IdArray],
) -> None:
    """Write a pool as JSON, the ids that can be drawn as pairs [start, stop).

    Args:
        stream: where to write.
        source, num_samples: see `SamplingPool`.
        drawable: the sorted ids that draws may take, in pieces.
        picked: the ids of the coreset, the first picked first, in pieces.
    """
    values = {"kind": _KIND, "schema_version": _VERSION, "source": source, "num_samples": num_samples}
    write_checked_json(stream, values, {"drawable": _pairs(drawable), "picked": picked})


def _source_of(run: Run) -> dict[str, Any]:
    entry = run.manifest.source
    return {"name": entry.name, "fingerprint": entry.fingerprint, "rows": entry.rows}


def _pairs(pieces: Iterable[IdArray]) -> Iterator[np.ndarray]:
    """(P, 2) starts and stops of the gapless stretches of sorted ids, in pieces."""
    last = np.empty((0, 2), np.int64)
    for ids in (ids for ids in pieces if len(ids)):
        first = np.flatnonzero(np.diff(ids, prepend=-2) > 1)
        pairs = np.stack([ids[first], ids[np.append(first[1:], len(ids)) - 1] + 1], axis=1)
        if len(last) and last[0, 1] == pairs[0, 0]:
            pairs[0, 0], last = last[0, 0], last[:0]
        yield np.concatenate([last, pairs[:-1]])
        last = pairs[-1:]
    yield last


def _ids_in(pairs: Any, rows: int) -> IdArray:
    """The sorted ids of pairs; ValueError if they are not rising row numbers."""
    ends = np.asarray(pairs).reshape(-1, 2)
    if not np.array_equal(as_ids(ends.ravel(), name="drawable"), ends.ravel()) or ends.max(initial=0) > rows:
        raise ValueError(f"drawable must be pairs of rising row numbers up to {rows}")
    inside = np.zeros(rows, bool)
    for start, stop in ends.tolist():
        inside[start:stop] = True
    return np.flatnonzero(inside)
