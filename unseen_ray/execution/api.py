"""A run on the executor that its configuration asks for, and its result."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack

from unseen_ray.config.fields.given import config_of
from unseen_ray.config.fields.keywords import CommonFields, Plug, RunFields, ScoreFields, SourceLike, with_keywords
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.tasks import stage_zero_count
from unseen_ray.data.related.grouping import group_ref
from unseen_ray.data.sources.registry import source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.execution.tracking import tracked
from unseen_ray.plugins import is_target
from unseen_ray.pruning.pipeline import run_pipeline
from unseen_ray.pruning.reselect import reselect
from unseen_ray.pruning.score_probs import score_probs
from unseen_ray.runs.layout import CORESET, scores_file
from unseen_ray.runs.run import Run, coreset_of, load_run
from unseen_ray.storage.path_validation import as_text
from unseen_ray.storage.tables import parts_of

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from unseen_ray.core.samples.coreset import Coreset
    from unseen_ray.pruning.executor import Executor, Observer
    from unseen_ray.runs.manifest import Manifest

__all__ = ["PruneResult", "executor_for", "ignore", "load", "prune", "prune_dataset", "run_of", "score", "select"]


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
        source, kept = self.manifest.source, sum(stage.added for stage in self.manifest.stages) or len(self.coreset)
        return f"PruneResult({self.path}: {kept:,} of {source.num_samples:,} samples of {source.name})"

    @property
    def path(self) -> str:
        """The run's folder."""
        return self.run.folder.root

    @property
    def manifest(self) -> Manifest:
        """What the folder holds, what made it, and what it cost."""
        return self.run.manifest

    @cached_property
    def coreset(self) -> Coreset:
        """The kept ids, the stage in which each was picked, and the score by which it was."""
        return coreset_of(self.run.table(CORESET))

    @cached_property
    def scores(self) -> pa.Table:
        """Stage 0: one row a candidate, sorted by id; see `scores.parquet` in README."""
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


@with_keywords(RunFields)
def prune(
    config: PruneConfig | str | os.PathLike[str] | None = None,
    *,
    fresh: bool = False,
    on_event: Observer | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **fields: Unpack[RunFields],
) -> PruneResult:
    """Do a run, or what is left of it.

    >>> result = prune(source="digits", keep=0.7, out="runs/digits")  # doctest: +SKIP

    Args:
        config: what to prune, and how: a configuration or the path of a YAML file; None if `fields` say it all.
        fresh: delete the run that `out` holds and start over; it is deleted once all checks of the new one have passed.
        on_event: receives progress (`runs.tasks.Progress`) and the receipts of finished tasks (`runs.manifest_entries.Receipt`).
        limits: how many rows are held at once.
        fields: the fields of `PruneConfig`, each in place of that of `config`; `out` names the run's folder.

    Raises:
        ConfigError, DataError: before any training, where it can be known.
        UnseenError: if the run failed; the same call resumes it.
    """
    config = config_of(config, fields)
    models = config.scoring.models
    tasks = stage_zero_count(mode=config.mode, folds=config.folds, repeats=config.repeats, models=models)
    with executor_for(config, tasks) as executor, tracked(config, on_event or ignore) as observer:
        run = run_pipeline(config, executor=executor, on_event=observer, fresh=fresh, limits=limits)
    return PruneResult(run, config, in_hand=True)


@with_keywords(CommonFields)
def prune_dataset(
    dataset: ray.data.Dataset,
    *,
    keep: float,
    out: str | os.PathLike[str],
    image: str = "image",
    label: str = "label",
    size: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    on_event: Observer | None = None,
    **fields: Unpack[CommonFields],
) -> PruneResult:
    """Prune a Ray Dataset: write its images and labels once as Parquet beside the run, in its order, and prune these.

    The folder `<out>-source` holds them, with the rows of the Dataset in order as ids; the same call resumes with them.

    Args:
        dataset: with a column of encoded images, or of uint8 arrays, and one of integers or class names.
        keep: fraction kept, between 0 and 1.
        out: the run's folder, on storage that every node shares.
        image, label: its columns.
        size, limit: as of the `parquet` source.
        fresh, on_event: as of `prune`; a fresh run writes the Dataset anew.
        fields: the other fields of `PruneConfig`; `group` may name a column of the Dataset.

    Raises:
        ConfigError, DataError: if the Dataset has no such columns, or as `prune`.
    """
    from unseen_ray.execution.ray.connect import ray_session
    from unseen_ray.execution.ray.io.datasets import store_dataset

    place = f"{os.fspath(out).rstrip('/')}-source"
    source = {"use": "parquet", "path": place, "size": size, "limit": limit}
    # What is wrong in it is told before anything is written.
    config = PruneConfig(source=source, keep=keep, out=os.fspath(out), **fields)
    with ray_session(config.address):
        group = None if config.group is None else group_ref(config.group).column
        store_dataset(dataset, place, image=image, label=label, group=group, anew=fresh)
        return prune(config, fresh=fresh, on_event=on_event)


def load(path: str | os.PathLike[str]) -> PruneResult:
    """A finished run from its folder; imports nothing that the folder names."""
    run = load_run(os.fspath(path))
    return PruneResult(run, PruneConfig.from_json({**run.manifest.asked, "out": os.fspath(path)}))


def select(
    result: PruneResult | str | os.PathLike[str],
    *,
    keep: float,
    out: str | os.PathLike[str],
    score: Plug | None = None,
    policy: Plug | None = None,
    guard: Plug | None = None,
    combine: Literal["mean", "rank_mean", "mean_prob"] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> PruneResult:
    """Choose again from stage 0 of a finished run, in one shot and without training; see `pruning.reselect`."""
    path = result.path if isinstance(result, PruneResult) else os.fspath(result)
    run = reselect(
        path,
        keep=keep,
        out=os.fspath(out),
        score=score,
        policy=policy,
        guard=guard,
        combine=combine,
        limits=limits,
    )
    return PruneResult(run, PruneConfig.from_json(run.manifest.asked))


@with_keywords(ScoreFields)
def score(
    probs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    folds: str | os.PathLike[str] | None = None,
    source: SourceLike | None = None,
    **fields: Unpack[ScoreFields],
) -> dict[str, Any]:
    """Score samples by your own out-of-fold probabilities, for `select` to choose by; see `pruning.score_probs`.

    Returns:
        `out`, `samples`, `classes`, `votes` of a sample, `accuracy` of the votes, and the deciding `score`.
    """
    files = [probs] if isinstance(probs, (str, os.PathLike)) else probs
    run = score_probs(
        [os.fspath(path) for path in files],
        os.fspath(labels),
        out=os.fspath(out),
        folds=None if folds is None else os.fspath(folds),
        source=source,
        **fields,
    )
    (stage,) = run.manifest.stages
    return {
        "out": run.folder.root,
        "samples": run.manifest.source.num_samples,
        "classes": run.manifest.source.num_classes,
        "votes": stage.scored // stage.candidates,
        "accuracy": stage.accuracy,
        "score": score_name(run.manifest.config["score"]),
    }


def run_of(result: PruneResult | str | os.PathLike[str]) -> Run:
    """The run behind a result, or in a folder."""
    return result.run if isinstance(result, PruneResult) else load_run(os.fspath(result))


@contextlib.contextmanager
def executor_for(config: PruneConfig, tasks: int) -> Iterator[Executor]:
    """The executor of a configuration, closed at the end; `tasks` is how many could run in parallel."""
    if config.executor == "local":
        from unseen_ray.execution.local import LocalExecutor

        executor: Executor = LocalExecutor()
    else:
        from unseen_ray.execution.ray.executor import RayExecutor

        executor = RayExecutor(address=config.address, tasks=tasks)
    try:
        yield executor
    finally:
        executor.close()


def ignore(_: Any) -> None:
    """An observer that does nothing."""
