"""What a run keeps, stage by stage: chosen, put on storage as `stage-NN/coreset.parquet`, in the end with the keys as `coreset.parquet`."""

from __future__ import annotations

import logging
from typing import Protocol

import pyarrow as pa

from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.samples.coreset import Coreset
from unseen_ray.core.samples.id_sets import ArrayIds, IdSet
from unseen_ray.core.samples.population import Population
from unseen_ray.core.schedule import Stage
from unseen_ray.data.sources.registry import Source, key_column
from unseen_ray.pruning.coreset_builder_long import CoresetBuilderOnStorage, write_keys
from unseen_ray.pruning.selection import Kept, apply_policy, features_for
from unseen_ray.pruning.selection_by_passes import is_streamed
from unseen_ray.pruning.suspects import with_suspects
from unseen_ray.pruning.warnings import check_selection
from unseen_ray.runs.entries import Receipt
from unseen_ray.runs.layout import CORESET, scores_file, stage_coreset
from unseen_ray.runs.run import Run, coreset_of
from unseen_ray.storage import tables as parts
from unseen_ray.storage.tables import LongTable, write_table

__all__ = ["CoresetBuilder", "open_builder"]

logger = logging.getLogger(__name__)


class CoresetBuilder(Protocol):
    """What is kept so far.

    Attributes:
        in_memory: whether a stage's scores are wanted as one table.
    """

    in_memory: bool

    @property
    def ids(self) -> IdSet:
        """The kept samples."""
        ...

    @property
    def count(self) -> int:
        """How many they are."""
        ...

    def extend(self, run: Run, stage: Stage, scores: pa.Table | LongTable, receipts: list[Receipt]) -> dict[str, str]:
        """Choose what a stage adds, and put all that is kept on storage; returns the SHA-256 of each file."""
        ...

    def finish(self, run: Run, source: Source) -> dict[str, str]:
        """Write the keys of all samples and the coreset with its keys, and say what it may suffer from."""
        ...


def open_builder(run: Run, resolved: ResolvedRun, population: Population) -> CoresetBuilder:
    """What a run has kept, as its last finished stage has stored it; it stays there where it is long and the policy can choose so."""
    config = resolved.config
    if is_streamed(config, len(population)):
        if config.guard == "none":
            return CoresetBuilderOnStorage(run, config, population)
        logger.warning(
            "guard %s judges all %d candidates at once: they are held in memory.",
            score_name(config.guard),
            len(population),
        )
    return _CoresetBuilderInMemory(run, resolved, population)


class _CoresetBuilderInMemory:
    """What a run keeps, as one table of each stage; see `CoresetBuilder`."""

    in_memory = True

    def __init__(self, run: Run, resolved: ResolvedRun, population: Population) -> None:
        self._resolved, self._population, self._coreset = resolved, population, Coreset.empty()
        if run.manifest.stages:
            self._coreset = coreset_of(run.table(stage_coreset(run.manifest.stages[-1].index)))

    @property
    def ids(self) -> IdSet:
        return ArrayIds(self._coreset.ids)

    @property
    def count(self) -> int:
        return len(self._coreset)

    def extend(self, run: Run, stage: Stage, scores: pa.Table | LongTable, receipts: list[Receipt]) -> dict[str, str]:
        population, before = self._population, self._coreset.ids
        table = parts.read_table(scores.folder, scores.name, scores.files) if isinstance(scores, LongTable) else scores
        guarded = with_suspects(table, run.table(scores_file(0)) if stage.index else table)
        picked = apply_policy(
            self._resolved,
            guarded,
            budget=stage.added,
            kept=Kept.of(before, population.labels_of(before), population.num_classes),
            features=features_for(run, self._resolved, population, receipts),
        )
        ids, values = (
            table.column(name).to_numpy()[picked] for name in ("id", score_name(self._resolved.config.score))
        )
        self._coreset = kept = self._coreset.extend(stage.index, ids, values)
        labels = population.labels_of(kept.ids)
        columns = {"id": kept.ids, "label": labels, "stage": kept.stages, "score": kept.scores}
        return write_table(run.folder, stage_coreset(stage.index), pa.table(columns))

    def finish(self, run: Run, source: Source) -> dict[str, str]:
        population, kept = self._population, self._coreset
        table = pa.table(
            {
                "id": kept.ids,
                "key": key_column(source, kept.ids),
                "label": population.labels_of(kept.ids),
                "stage": kept.stages,
                "score": kept.scores,
            }
        )
        files = {**write_keys(run.folder, source, population), **write_table(run.folder, CORESET, table)}
        asked = PruneConfig.from_json(run.manifest.asked)
        check_selection(asked, run.table(scores_file(0)), kept.ids, source.info.class_names)
        return files
