"""What a KeptSampler draws from: of a finished run, or of the file that `export --to sampler.json` writes for elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from unseen_ray.core.arrays import IdArray, as_ids, positions_of
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.pruning.suspects import drawable_ids
from unseen_ray.runs.run import Run, coreset_of
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json
from unseen_ray.storage.filesystem import filesystem_of, read_file
from unseen_ray.storage.plain_text import reason_of

__all__ = ["SamplingPool"]

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
        entry, coreset = run.manifest.source, coreset_of(run)
        return cls(
            place=run.folder.root,
            source={"name": entry.name, "fingerprint": entry.fingerprint, "rows": entry.rows},
            num_samples=entry.num_samples,
            ids_L=drawable_ids(run, coreset.ids),
            picked_M=coreset.in_order(run.manifest.config["seed"]),
        )

    @classmethod
    def of_file(cls, path: str) -> SamplingPool:
        """The pool that `to_json` serialised.

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

    def to_json(self) -> bytes:
        """All of it but the place; the ids that can be drawn as pairs [start, stop)."""
        return to_checked_json(
            {
                "kind": _KIND,
                "schema_version": _VERSION,
                "source": self.source,
                "num_samples": self.num_samples,
                "drawable": _pairs(self.ids_L).tolist(),
                "picked": self.picked_M.tolist(),
            },
            indent=None,
        )


def _pairs(ids_L: IdArray) -> np.ndarray:
    """(P, 2) starts and stops of the gapless stretches of sorted ids."""
    first = np.flatnonzero(np.diff(ids_L, prepend=-2) > 1)
    last = np.append(first[1:], len(ids_L)) - 1
    return np.stack([ids_L[first], ids_L[last] + 1], axis=1)


def _ids_in(pairs: Any, rows: int) -> IdArray:
    """The sorted ids of pairs; ValueError if they are not rising row numbers."""
    ends = np.asarray(pairs).reshape(-1, 2)
    if not np.array_equal(as_ids(ends.ravel(), name="drawable"), ends.ravel()) or ends.max(initial=0) > rows:
        raise ValueError(f"drawable must be pairs of rising row numbers up to {rows}")
    inside = np.zeros(rows, bool)
    for start, stop in ends.tolist():
        inside[start:stop] = True
    return np.flatnonzero(inside)
