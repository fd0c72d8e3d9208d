"""The tables of a run, read by pieces: exact counts of all rows, and the rows that the report holds.

Shapes: M candidates of stage 0, or those of one piece; C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unseen_ray.config.score_columns import SUSPECT
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import CORESET, KEYS, scores_file
from unseen_ray.storage.tables import StoredTable

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
    from unseen_ray.runs.run import Run

__all__ = [
    "HELD_ROWS",
    "Counts",
    "Rows",
    "Sample",
    "extremes_of",
    "keys_of",
    "last_stage_of",
    "long_table",
    "places_of",
    "rows_of",
]

_READ = ("id", "label", "votes", "pred", "p_label")  # and the score that ranks
HELD_ROWS = 2**21
"""Rows that the report holds: all of a set of ImageNet's size, and a sample of a larger one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Which samples the report holds, the same in every table of a run and of the runs within it.

    Attributes:
        share: about which part of them; 1 for all.
    """

    share: float

    @classmethod
    def of(cls, rows: int) -> Sample:
        """About `HELD_ROWS` of so many."""
        return cls(share=min(1.0, HELD_ROWS / max(rows, 1)))

    @property
    def is_whole(self) -> bool:
        """Whether it is all of them."""
        return self.share == 1.0

    def mask(self, ids_M: IdArray) -> np.ndarray:
        """(M,) which of some ids are in it."""
        if self.is_whole:
            return np.ones(len(ids_M), bool)
        # A seed of its own: policies break ties by the hash of the run's seed, and would prefer what is held.
        return tie_keys(ids_M, derive(0, "report")) < np.uint64(self.share * 2**64)

    def table(self, run: Run, name: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a table, of the samples that are held."""
        table = long_table(run, name)
        pieces = (pa.Table.from_batches([batch]) for batch in table.batches(columns))
        held = [piece.filter(pa.array(self.mask(piece.column("id").to_numpy()))) for piece in pieces]
        return pa.concat_tables(held) if held else table.schema.empty_table().select(list(columns))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Some candidates of stage 0.

    Attributes:
        table: their scores.
        stage_M: (M,) in which stage each was kept, -1 where it was not.
        last_M: (M,) float32 score by the last stage's own models, NaN for what was kept before it.
    """

    table: pa.Table
    stage_M: IntArray
    last_M: FloatArray

    @property
    def ids_M(self) -> IdArray:
        """(M,) their ids."""
        ids: IdArray = self.table.column("id").to_numpy()
        return ids

    @classmethod
    def joined(cls, pieces: Sequence[Rows]) -> Rows:
        """Several, one after the other."""
        return cls(
            table=pa.concat_tables([piece.table for piece in pieces]),
            stage_M=np.concatenate([piece.stage_M for piece in pieces]),
            last_M=np.concatenate([piece.last_M for piece in pieces]),
        )

    def take(self, places: IdArray) -> Rows:
        """Those at some places."""
        return Rows(table=self.table.take(pa.array(places)), stage_M=self.stage_M[places], last_M=self.last_M[places])


def long_table(run: Run, name: str) -> StoredTable:
    """A table of a run, found to be what was written."""
    return StoredTable(run.folder, name, run.manifest.files).verified()


def last_stage_of(run: Run) -> int:
    """The last stage that kept anything."""
    return max(
        (pc.max(batch.column("stage")).as_py() for batch in long_table(run, CORESET).batches(["stage"])), default=0
    )


def rows_of(run: Run, score: str, last_stage: int) -> Iterator[Rows]:
    """All candidates of stage 0 by pieces, in the order of their ids."""
    kept = _Cursor(long_table(run, CORESET), "stage")
    last = _Cursor(long_table(run, scores_file(last_stage)), score)
    zero = long_table(run, scores_file(0))
    for batch in zero.batches(list(dict.fromkeys((*zero.schema.names, *_READ, score)))):
        ids = batch.column("id").to_numpy()
        stage_M, last_M = np.full(len(ids), -1, np.int64), np.full(len(ids), np.nan, np.float32)
        for cursor, column in ((kept, stage_M), (last, last_M)):
            found, values = cursor.until(ids[-1])
            column[places_of(found, ids)] = values
        yield Rows(table=pa.Table.from_batches([batch]), stage_M=stage_M, last_M=last_M)


def places_of(ids_M: IdArray, among_N: IdArray) -> IdArray:
    """Where each of some ids is among rising ids; StorageError if one is not there, as in tables of two runs."""
    places = np.searchsorted(among_N, ids_M)
    if len(ids_M) and (places.max() >= len(among_N) or np.any(among_N[places] != ids_M)):
        raise StorageError(
            "the tables of this run do not belong together: one names samples that another lacks. Prune again in a new folder."
        )
    return places


class _Cursor:
    """Goes through a column of a table beside others whose ids rise as well."""

    def __init__(self, table: StoredTable, column: str) -> None:
        self._batches = table.batches(["id", column])
        self._ids, self._values = np.empty(0, np.int64), np.empty(0)

    def until(self, last_id: int) -> tuple[IdArray, np.ndarray]:
        """Ids up to this one that were not given before, and their values."""
        ids, values = [self._ids], [self._values]
        while not len(ids[-1]) or ids[-1][-1] <= last_id:
            batch = next(self._batches, None)
            if batch is None:
                break
            ids.append(batch.column(0).to_numpy())
            values.append(batch.column(1).to_numpy())
        all_ids, all_values = np.concatenate(ids), np.concatenate([each for each in values if len(each)] or values[:1])
        end = int(np.searchsorted(all_ids, last_id, side="right"))
        self._ids, self._values = all_ids[end:], all_values[end:]
        return all_ids[:end], all_values[:end]


@dataclass(slots=True, kw_only=True)
class Counts:
    """What is counted of all candidates of stage 0.

    Attributes:
        num_classes: C.
        most_suspects: how many suspects are remembered.
        samples, kept: how many there are, and of them were kept.
        sizes_C, kept_C, right_C: how many each class has, keeps, and has with its own label as prediction.
        suspects: how many labels the guard suspects, and how many of these samples were kept; None without a guard.
        unlikely: the suspects whose labels are the least likely.
    """

    num_classes: int
    most_suspects: int
    samples: int = 0
    kept: int = 0
    sizes_C: IntArray = field(init=False)
    kept_C: IntArray = field(init=False)
    right_C: IntArray = field(init=False)
    suspects: dict[str, int] | None = None
    unlikely: Rows | None = None

    def __post_init__(self) -> None:
        self.sizes_C, self.kept_C, self.right_C = np.zeros((3, self.num_classes), np.int64)

    def add(self, rows: Rows) -> None:
        """Count the next candidates."""
        labels_M, kept_M = rows.table.column("label").to_numpy(), rows.stage_M >= 0
        right_M = rows.table.column("pred").to_numpy() == labels_M
        for counts_C, among_M in ((self.sizes_C, slice(None)), (self.kept_C, kept_M), (self.right_C, right_M)):
            counts_C += np.bincount(labels_M[among_M], minlength=self.num_classes)
        self.samples, self.kept = self.samples + len(labels_M), self.kept + int(kept_M.sum())
        if SUSPECT not in rows.table.column_names:
            return
        suspects_M = rows.table.column(SUSPECT).to_numpy()
        before = self.suspects or {"found": 0, "kept": 0}
        self.suspects = {
            "found": before["found"] + int(suspects_M.sum()),
            "kept": before["kept"] + int(suspects_M[kept_M].sum()),
        }
        both = rows if self.unlikely is None else Rows.joined([self.unlikely, rows])
        likely_M, suspects_M = (both.table.column(name).to_numpy() for name in ("p_label", SUSPECT))
        self.unlikely = both.take(extremes_of(likely_M, suspects_M, self.most_suspects, lowest=True))


def keys_of(run: Run, ids: Sequence[int]) -> dict[int, str]:
    """The keys of a few samples by their ids."""
    wanted, found = pa.array(ids, pa.int64()), dict[int, str]()
    for batch in long_table(run, KEYS).batches(["id", "key"]):
        few = batch.filter(pc.is_in(batch.column("id"), wanted))
        found.update(zip(few.column("id").to_pylist(), few.column("key").to_pylist(), strict=True))
    if lacking := set(ids) - found.keys():
        raise StorageError(f"{run.folder.path(KEYS)} lacks sample {min(lacking)}. Prune again in a new folder.")
    return found


def extremes_of(values_M: FloatArray, where_M: np.ndarray, count: int, *, lowest: bool = False) -> IdArray:
    """Places of the candidates with the highest (or lowest) value among those that `where_M` marks and that have one."""
    places = np.flatnonzero(where_M & np.isfinite(values_M))
    values = values_M[places]
    return places[np.argsort(values if lowest else -values, kind="stable")[:count]]
