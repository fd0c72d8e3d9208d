"""A finished run as an object: what was kept, the scores, and what a script or a notebook does next with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.score_columns import score_name
from unseen_ray.core.samples.coreset import Coreset
from unseen_ray.core.samples.population import make_population
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError, UnseenError
from unseen_ray.execution.cards import html_card, stages_text, text_card
from unseen_ray.plugins import is_target
from unseen_ray.runs.layout import CORESET, KEYS, scores_file
from unseen_ray.runs.run import Run, coreset_of
from unseen_ray.storage.path_validation import as_text
from unseen_ray.storage.tables import StoredTable, parts_of

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data
    from numpy.typing import ArrayLike

    from unseen_ray.config.fields.keywords import SourceLike
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.runs.manifest import Manifest

__all__ = ["KeptSamples", "PruneResult"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KeptSamples(Coreset):
    """The coreset of a finished run, with its columns on storage.

    Attributes:
        stored: coreset.parquet.
    """

    stored: StoredTable

    def to_arrow(self) -> pa.Table:
        """One row a kept sample, sorted by id: id, key, label, stage, score."""
        return self.stored.table()

    def to_frame(self) -> Any:
        """The same as a `pandas.DataFrame`; UnseenError where pandas is not installed."""
        try:
            return self.to_arrow().to_pandas()
        except ImportError:
            raise UnseenError(
                "to_frame needs pandas, which is not installed. Install it (pip install pandas), or take to_arrow()."
            ) from None

    def __repr__(self) -> str:
        return text_card(f"Coreset({len(self):,} samples)", self._facts())

    def _repr_html_(self) -> str:
        return html_card(f"Coreset: {len(self):,} samples", self._facts())

    def _facts(self) -> dict[str, str]:
        counts = np.bincount(self.stages)
        scores = f"{self.scores.min():.4g} to {self.scores.max():.4g}" if len(self) else "none"
        return {
            "stages": stages_text(np.cumsum(counts).tolist()),
            "scores": scores,
            "columns": "ids, stages, scores; to_frame() also has key and label",
        }


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A finished run.

    Attributes:
        run: its folder and manifest.
        config: the configuration as it was given.
        in_hand: whether this process made it by that configuration, instead of reading it from the folder.
    """

    run: Run
    config: PruneConfig
    in_hand: bool = False

    def __repr__(self) -> str:
        return text_card(f"PruneResult({self._kept})", self._facts())

    def _repr_html_(self) -> str:
        return html_card(f"PruneResult: {self._kept}", self._facts())

    @property
    def _kept(self) -> str:
        source, kept = self.manifest.source, sum(stage.added for stage in self.manifest.stages) or len(self.coreset)
        return f"{kept:,} of {source.num_samples:,} samples of {source.name}, keep={self.manifest.config['keep']:g}"

    def _facts(self) -> dict[str, str]:
        manifest, stages = self.manifest, self.manifest.stages
        asked, unseen = manifest.config, manifest.config["mode"] == "unseen"
        facts = {"chosen by": f"{score_name(asked['score'])}, policy {manifest.policy_label}"}
        if manifest.policy_reason:
            facts["because"] = manifest.policy_why
        if unseen:
            facts["folds"] = str(asked["folds"])
        if stages:
            facts["stages"] = stages_text([stage.target for stage in stages])
            facts["out-of-fold accuracy" if unseen else "training accuracy"] = f"{stages[0].vote_accuracy:.4f}"
            facts["seconds"] = f"{manifest.cost.seconds or 0:,.1f}"
        else:
            facts["stages"] = "chosen from the scores of an earlier run, without training"
        if manifest.source.holdout:
            facts["holdout"] = f"{manifest.source.holdout:,} samples, in neither number above"
        return {**facts, "folder": self.path}

    @property
    def path(self) -> str:
        """The run's folder."""
        return self.run.folder.root

    @property
    def manifest(self) -> Manifest:
        """What the folder holds, what made it, and what it cost."""
        return self.run.manifest

    @cached_property
    def coreset(self) -> KeptSamples:
        """The kept ids, the stage in which each was picked, and the score by which it was; `to_frame()` for all columns."""
        found = coreset_of(self.run)
        stored = self.run.stored(CORESET, hold=False)
        return KeptSamples(ids=found.ids, stages=found.stages, scores=found.scores, stored=stored)

    def keys(self, ids: ArrayLike) -> list[str]:
        """The keys of some ids of the run, kept or not, in this order: paths, or file names and rows.

        Raises:
            ConfigError: if one of the ids is not among those that the run scored.
            StorageError: if the run's files are missing or damaged.
        """
        asked_M = np.asarray(ids, np.int64).reshape(-1)
        sorted_M, back = np.unique(asked_M, return_inverse=True)
        strange = np.setdiff1d(sorted_M, self._ids_N, assume_unique=True)
        if len(strange):
            raise ConfigError(
                f"id {strange[0]} is not among the {len(self._ids_N):,} ids that the run scored. Ids are row numbers of the source, "
                f"0 to {self.manifest.source.rows - 1:,}, without the holdout and rows that cannot be read."
            )
        found = self.run.stored(KEYS, hold=False).rows_of(sorted_M, ["key"]).column("key").to_pylist()
        return [found[place] for place in back]

    def scores_with_keys(self) -> pa.Table:
        """`scores` with a column of keys after that of ids."""
        keys = self.run.stored(KEYS, hold=False).rows_of(self.scores.column("id").to_numpy(), ["key"])
        return self.scores.add_column(1, "key", keys.column("key"))

    @cached_property
    def holdout_ids(self) -> IdArray:
        """(H,) int64 sorted ids that were set aside first: never trained on, scored or kept; empty without a holdout.

        Raises:
            DataError: if the run left out copies, so that the source is needed to tell the two apart, and it is missing.
        """
        source = self.manifest.source
        if source.copies:
            info = with_groups(open_source(source_ref(self.config.source)), self.config.group)
            drawn = make_population(
                info.labels_N, info.num_classes, holdout=self.config.holdout, seed=self.config.seed, groups=info.groups
            )
            return np.setdiff1d(drawn.holdout_ids, source.skipped_ids)
        others = np.setdiff1d(np.arange(source.rows), self._ids_N, assume_unique=True)
        return np.setdiff1d(others, source.skipped_ids) if source.holdout else others[:0]

    @cached_property
    def _ids_N(self) -> IdArray:
        """(N,) ids that take part."""
        return np.concatenate(
            [np.asarray(batch.column("id")) for batch in self.run.stored(KEYS, hold=False).batches(["id"])]
        )

    @cached_property
    def scores(self) -> pa.Table:
        """Stage 0: one row a candidate, sorted by id; see `scores.parquet` in docs/run_folder.md."""
        return self.run.table(scores_file(0))

    def to_ray_dataset(self) -> ray.data.Dataset:
        """The scores of stage 0 as a Ray Dataset, on the cluster that this process is connected to, else a private one.

        Rows are in id order. Ray's workers read the table from the run's folder; the driver never holds it.

        Raises:
            StorageError: if the table is missing or damaged.
        """
        return self._read_by_ray(scores_file(0))

    def kept_dataset(
        self, *, source: SourceLike | None = None, size: int | None = None, encoded: bool = False
    ) -> ray.data.Dataset:
        """The kept samples as a Ray Dataset with columns id, label and image, such as `TorchTrainer` takes.

        Ray's workers read the images from the source, so that every node must reach it. There is no text in it, which
        `iter_torch_batches` refuses; `export` gives the keys.

        Args:
            source: where the data is now, as in `PruneConfig`; None if it has not moved. Required for a run that was loaded from
                its folder and whose source is a function of your own.
            size: height and width of the images in pixels; None for that of the scoring models.
            encoded: give images as they are stored (bytes), not as (size, size, 3) uint8.

        Raises:
            ConfigError: if such a source is not given.
            StorageError: if the run's files are missing or damaged.
        """
        from unseen_ray.execution.ray.io.datasets import with_images

        if source is None and self.in_hand:
            source = self.config.source
        asked = source_ref(self.manifest.asked["source"] if source is None else as_text(source))
        if source is None and is_target(asked.use):
            raise ConfigError(
                f"the run's source is {asked.use}, a user-defined function, and nothing that a run folder names is imported. "
                f'Give it yourself: kept_dataset(source="{asked.use}"), or the function itself.'
            )
        size_px = None if encoded else size or self.manifest.source.size_px
        rows = self._read_by_ray(CORESET).select_columns(["id", "label"])
        return with_images(rows, asked.absolute(), self.manifest.source, size_px=size_px)

    def _read_by_ray(self, table: str) -> ray.data.Dataset:
        from unseen_ray.execution.ray.io.datasets import read_by_ray

        self.run.stored(table, hold=False).verified()
        return read_by_ray(self.path, parts_of(table, self.manifest.files))
