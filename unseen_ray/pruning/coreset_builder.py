"""The coreset of a run: `stage-NN/coreset.parquet` after each stage, `coreset.parquet` with the keys at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unseen_ray.config.run import PruneConfig
from unseen_ray.core.samples.id_sets import ArrayIds, IdSet
from unseen_ray.data.sources.registry import Source, key_column
from unseen_ray.pruning.selection import Kept, features_for, pick
from unseen_ray.pruning.suspects import with_suspects
from unseen_ray.pruning.trials.plan import candidates_of, chosen_policy, with_candidate
from unseen_ray.pruning.warnings import check_selection
from unseen_ray.runs.id_files import open_id_files
from unseen_ray.runs.layout import CORESET, KEYS, scores_file, stage_coreset
from unseen_ray.storage.row_streams import in_id_order
from unseen_ray.storage.tables import StoredTable, TableWriter

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.core.schedule import Stage
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.runs.run import Run
    from unseen_ray.runs.tasks import Job

__all__ = ["CoresetBuilder"]

logger = logging.getLogger(__name__)

_KEYS_AT_ONCE = 2**18  # rows whose keys are spelled out together: Python strings take 100 bytes and more


class CoresetBuilder:
    """The coreset of a run, grown stage by stage, as its last finished stage has stored it.

    The coreset of a long run stays on storage, and its tasks name it by its files; that of a short run is held.

    Args:
        run: with its finished stages.
        job: what its tasks share.
        population: its samples.
    """

    def __init__(self, run: Run, job: Job, population: Population) -> None:
        self._resolved, self._limits, self._population = job.resolved, job.limits, population
        self._is_long = len(population) > job.limits.most_held
        self.ids: IdSet = ArrayIds(np.empty(0, np.int64))
        self.count = 0
        self._kept = Kept(np.zeros(population.num_classes, np.int64))
        if run.manifest.stages:
            self._keep(run.stored(stage_coreset(run.manifest.stages[-1].index), hold=not self._is_long))
            if candidates_of(job.config):
                self.use(chosen_policy(job.config, run.manifest.stages[0].policy))

    @property
    def counts_C(self) -> IntArray:
        """(C,) how many of each class are kept."""
        return self._kept.counts_C

    def use(self, policy: Any) -> None:
        """Choose by another policy than the configuration's: the one that trials have decided on."""
        self._resolved = with_candidate(self._resolved, policy)

    def extend(
        self, run: Run, stage: Stage, scores: StoredTable, receipts: list[Receipt], policy: Any = None
    ) -> dict[str, str]:
        """Choose what a stage adds, and store all that is kept.

        Args:
            run: with the stages before this one.
            stage: how many to keep.
            scores: of the stage's candidates.
            receipts: of the stage's tasks.
            policy: what `auto` uses by its rule in this stage; None for the policy as it is.

        Returns:
            The SHA-256 of each file written.
        """
        picked = pick(
            self._resolved if policy is None else self._resolved.with_policy(policy),
            self._with_suspects(run, stage, scores),
            budget=stage.added,
            kept=self._kept,
            features=features_for(run, self._resolved, lambda: self._population.ids_N, receipts),
            limits=self._limits,
        )
        added = (
            rows.add_column(2, "stage", pa.array(np.full(rows.num_rows, stage.index, np.int32))) for rows in picked()
        )
        name, pieces = stage_coreset(stage.index), []
        writer = TableWriter(run.folder, name, stage.target, part_rows=self._limits.part_rows(stage.target))
        for rows in in_id_order(self._stored_rows(), added):
            writer.add(rows)
            if not self._is_long:
                pieces.append(rows)
        files = writer.close()
        self._keep(StoredTable(run.folder, name, files, pa.concat_tables(pieces) if pieces else None))
        return files

    def finish(self, run: Run, source: Source) -> dict[str, str]:
        """Write the keys of all samples and the coreset with its keys, and warn about likely problems of the choice.

        Returns:
            The SHA-256 of each file written.
        """
        population = self._population
        keys = TableWriter(run.folder, KEYS, len(population), part_rows=self._limits.part_rows(len(population)))
        for start in range(0, len(population.labels_R), _KEYS_AT_ONCE):
            ids = population.ids_within(start, start + _KEYS_AT_ONCE)
            keys.add(pa.table({"id": ids, "key": key_column(source, ids)}))
        coreset = TableWriter(run.folder, CORESET, self.count, part_rows=self._limits.part_rows(self.count))
        for rows in self._stored_rows():
            coreset.add(rows.add_column(1, "key", key_column(source, rows.column("id").to_numpy())))
        files = {**keys.close(), **coreset.close()}
        check_selection(
            PruneConfig.from_json(run.manifest.asked),
            run.stored(scores_file(0), hold=not self._is_long),
            self._holds,
            source.info.class_names,
            sizes_C=population.class_counts(),
            kept_C=self._kept.counts_C,
        )
        return files

    def _with_suspects(self, run: Run, stage: Stage, scores: StoredTable) -> StoredTable:
        if self._resolved.guard_value == "none" or not stage.index:
            return scores
        return with_suspects(scores, run.stored(scores_file(0), hold=not self._is_long))

    def _keep(self, rows: StoredTable) -> None:
        """Take over the coreset of a stored stage."""
        if rows.held is None:
            stored, counts_C = open_id_files(rows, self._population.num_classes)
            self.ids, self.count = stored, stored.count
        else:
            ids, labels = (rows.held.column(name).to_numpy() for name in ("id", "label"))
            self.ids, self.count = ArrayIds(ids), len(ids)
            counts_C = np.bincount(labels, minlength=self._population.num_classes)
        self._kept = Kept(counts_C, rows)

    def _holds(self, ids_M: IdArray) -> NDArray[np.bool_]:
        """(M,) whether each of some rising ids is kept."""
        kept = np.zeros(len(ids_M), bool)
        for rows in self._stored_rows():
            its = rows.column("id").to_numpy()
            first, last = np.searchsorted(ids_M, (its[0], its[-1] + 1))
            some = ids_M[first:last]
            kept[first:last] |= its[np.searchsorted(its, some)] == some
        return kept

    def _stored_rows(self) -> Iterator[pa.Table]:
        if self._kept.rows is not None:
            yield from (pa.Table.from_batches([batch]) for batch in self._kept.rows.batches())
