"""The growth of a run that is too long for memory: chosen by passes over the scores, merged on storage, handed to tasks by its file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unseen_ray.config.run import PruneConfig
from unseen_ray.core.arrays import IdArray, IntArray
from unseen_ray.core.samples.id_sets import ArrayIds, IdSet
from unseen_ray.core.samples.population import Population
from unseen_ray.core.schedule import Stage
from unseen_ray.data.sources.registry import Source, key_column
from unseen_ray.pruning.selection_by_passes import Batches, batches_of, choose_streamed
from unseen_ray.pruning.warnings import check_long_selection
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.id_files import IdFiles, open_id_files
from unseen_ray.runs.layout import CORESET, KEYS, scores_file, stage_coreset
from unseen_ray.runs.run import Run
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import LongTable, TableWriter

__all__ = ["CoresetBuilderOnStorage", "clear_stages", "in_id_order", "write_keys"]

_CHUNK = 2**18


class CoresetBuilderOnStorage:
    """What a run keeps, without an array of it; see `growing.CoresetBuilder`."""

    in_memory = False

    def __init__(self, run: Run, config: PruneConfig, population: Population) -> None:
        self._config, self._population = config, population
        self._kept: tuple[LongTable, IdFiles, IntArray] | None = None
        if run.manifest.stages:
            self._open(run, run.manifest.stages[-1].index, dict(run.manifest.files))

    @property
    def ids(self) -> IdSet:
        """The kept samples, by the file that names them."""
        return ArrayIds(np.empty(0, np.int64)) if self._kept is None else self._kept[1]

    @property
    def count(self) -> int:
        """How many they are."""
        return 0 if self._kept is None else self._kept[1].count

    def extend(self, run: Run, stage: Stage, scores: pa.Table | LongTable, receipts: list[Receipt]) -> dict[str, str]:
        """Choose by passes, and merge what is chosen with what was kept, both in the order of the ids."""
        batches: Batches = scores.batches if isinstance(scores, LongTable) else batches_of(scores)
        names = scores.schema.names
        kept_C = np.zeros(self._population.num_classes, np.int64) if self._kept is None else self._kept[2]
        chosen, shards = choose_streamed(self._config, batches, names, budget=stage.added, kept_C=kept_C)
        picked = (
            pa.table(
                {
                    "id": chunk["id"],
                    "label": chunk["label"],
                    "stage": np.full(len(chunk["id"]), stage.index, np.int32),
                    "score": chunk["score"],
                }
            )
            for chunk in chosen.rows(shards, ("id", "label", "score"))
        )
        writer = TableWriter(run.folder, stage_coreset(stage.index), stage.target)
        for table in in_id_order(self._stored_rows(), picked):
            writer.add(table)
        files = writer.close()
        self._open(run, stage.index, files)
        return files

    def finish(self, run: Run, source: Source) -> dict[str, str]:
        """Keys and coreset by pieces; the choice is judged by every so-manieth sample."""
        assert self._kept is not None, "a run has a stage"
        population, kept_C = self._population, self._kept[2]
        coreset = TableWriter(run.folder, CORESET, self.count)
        for rows in self._stored_rows():
            coreset.add(rows.add_column(1, "key", key_column(source, rows.column("id").to_numpy())))
        files = {**write_keys(run.folder, source, population), **coreset.close()}
        check_long_selection(
            PruneConfig.from_json(run.manifest.asked),
            LongTable(run.folder, scores_file(0), run.manifest.files),
            self._holds,
            source.info.class_names,
            sizes_C=population.class_counts(),
            kept_C=kept_C,
        )
        return files

    def _holds(self, ids_M: IdArray) -> NDArray[np.bool_]:
        """(M,) whether each of some rising ids is kept."""
        kept = np.zeros(len(ids_M), bool)
        for rows in self._stored_rows():
            its = rows.column("id").to_numpy()
            first, last = np.searchsorted(ids_M, (its[0], its[-1] + 1))
            some = ids_M[first:last]
            kept[first:last] = its[np.searchsorted(its, some)] == some
        return kept

    def _open(self, run: Run, stage: int, files: dict[str, str]) -> None:
        table = LongTable(run.folder, stage_coreset(stage), files)
        self._kept = table, *open_id_files(table, self._population.num_classes)

    def _stored_rows(self) -> Iterator[pa.Table]:
        if self._kept is not None:
            yield from (pa.Table.from_batches([batch]) for batch in self._kept[0].batches())


def write_keys(folder: Folder, source: Source, population: Population) -> dict[str, str]:
    """The keys of all samples, written by pieces; returns the SHA-256 of each file."""
    keys = TableWriter(folder, KEYS, len(population))
    for start in range(0, len(population.labels_R), _CHUNK):
        ids = population.ids_within(start, start + _CHUNK)
        keys.add(pa.table({"id": ids, "key": key_column(source, ids)}))
    return keys.close()


def clear_stages(run: Run) -> None:
    """Remove the coresets of a finished run's stages, which the final one holds."""
    for stage in run.manifest.stages:
        run.folder.delete_folder(stage_coreset(stage.index))
        run.folder.delete(stage_coreset(stage.index))


def in_id_order(first: Iterable[pa.Table], second: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Two tables whose ids rise, each told by pieces, as one."""
    streams = [(table for table in tables if table.num_rows) for tables in (first, second)]
    held = [next(stream, None) for stream in streams]
    while held[0] is not None and held[1] is not None:
        ids = [table.column("id").to_numpy() for table in held if table is not None]
        ends = [int(np.searchsorted(each, min(ids[0][-1], ids[1][-1]), side="right")) for each in ids]
        taken = [table.slice(0, end) for table, end in zip(held, ends, strict=True) if table is not None]
        yield pa.concat_tables(taken).sort_by("id")
        for place, (table, end) in enumerate(zip(held, ends, strict=True)):
            if table is not None:
                held[place] = table.slice(end) if end < table.num_rows else next(streams[place], None)
    for table, stream in zip(held, streams, strict=True):
        if table is not None:
            yield table
            yield from stream
