"""What all tasks of a run share, and what tasks report: frozen values that travel between driver and workers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.core.arrays import IdArray, LabelArray
from unseen_ray.core.samples.groups import NO_GROUPS, Groups
from unseen_ray.core.samples.id_sets import FoldSpec, IdSet, digest_of_rule, fold_sizes
from unseen_ray.core.samples.population import Population, make_population
from unseen_ray.core.seeds import digest_ids
from unseen_ray.core.tasks import EvalTask, ScoreTask
from unseen_ray.data.sources.info import fingerprint_of
from unseen_ray.data.sources.registry import SourceInfo, SourceRef, default_test, source_ref
from unseen_ray.plugins import jsonable
from unseen_ray.storage.fence import Fence
from unseen_ray.storage.filesystem import Folder, absolute_path

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.data.images.pixel_files import PixelFiles

__all__ = ["EvalResult", "Job", "Progress", "fold_spec", "make_job", "train_sizes"]


def fold_spec(config: PruneConfig, limits: Limits = DEFAULT_LIMITS) -> FoldSpec:
    """What determines the folds of a run, given its population."""
    return FoldSpec(
        num_folds=config.folds, seed=config.seed, stratify=config.stratify, block_rows=limits.rows_dealt_at_once
    )


def train_sizes(config: PruneConfig, population: Population) -> list[int]:
    """How many samples the model of each fold trains on."""
    sizes = fold_sizes(population, fold_spec(config))
    sizes = sizes if config.train_on == "fold" else [len(population) - size for size in sizes]
    return sizes[: config.scoring.models]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A run as its workers see it.

    Attributes:
        resolved: the configuration with model, precision and all that was left open.
        source: how to open the data.
        test: how to open what `evaluate` measures on, if it is not the holdout.
        fingerprint: the source's.
        test_pixels: the files for the decoded pixels of `test`; None where memory holds them, or they are decoded at every read.
        num_classes: C.
        class_names: C names, or none.
        size_px: height and width of the images.
        skipped_ids: rows that cannot be read, left out by `on_bad_sample: skip`.
        groups: which rows belong together.
        out: the run's folder.
        fence: what a worker must find there before it writes; None for a job that writes nothing.
        limits: how many rows are held at once.
    """

    resolved: ResolvedRun
    source: SourceRef
    test: SourceRef | None
    fingerprint: str
    test_pixels: PixelFiles | None = None
    num_classes: int
    size_px: int
    class_names: tuple[str, ...] = ()
    skipped_ids: IdArray = field(default_factory=lambda: np.empty(0, np.int64))
    groups: Groups = NO_GROUPS
    out: str
    fence: Fence | None = None
    limits: Limits = DEFAULT_LIMITS

    @property
    def folder(self) -> Folder:
        """The run's folder, behind its fence."""
        return Folder(self.out, self.fence)

    def population(self, labels_N: LabelArray) -> Population:
        """The samples that a run chooses from; the same on every machine."""
        return make_population(
            labels_N,
            self.num_classes,
            holdout=self.config.holdout,
            seed=self.config.seed,
            skipped=self.skipped_ids,
            groups=self.groups,
            chunk_rows=self.limits.rows_of_a_chunk,
        )

    @property
    def config(self) -> PruneConfig:
        """The configuration alone."""
        return self.resolved.config

    def prepared(self, resolved: ResolvedRun, skipped_ids: IdArray) -> Job:
        """The job once an executor knows what depends on the hardware, and which more images cannot be decoded."""
        return replace(self, resolved=resolved, skipped_ids=np.union1d(self.skipped_ids, skipped_ids).astype(np.int64))

    def keeps_features(self, task: ScoreTask) -> bool:
        """Whether a task's model is the one whose features the run keeps: the first of stage 0."""
        return task.stage == 0 and task.index == 0 and self.resolved.keeps_features

    def vote_rows(self, task: ScoreTask, rows: int) -> int:
        """How many of a task's `rows` votes are scored and stored at a time: all, or a part's of a long task."""
        # Features take more memory than votes do, and a model that resumes would predict them again.
        if self.keeps_features(task):
            return rows
        batch = 1 if self.config.fit else self.config.recipe.scoring_batch
        return self.limits.vote_rows(rows, batch=batch, probs=self.num_classes if self.resolved.keeps_probs else 0)

    def workers_of(self, task: ScoreTask | EvalTask) -> int:
        """How many workers share a task's fit: `gpus_per_fit` where one model trains alone, 1 for a fold or a trial."""
        alone = task.fold is None if isinstance(task, ScoreTask) else task.measured is None
        return self.resolved.workers_of_fit(of_fold=not alone)

    def worker_seconds(self, task: ScoreTask | EvalTask, seconds: float, earlier_s: float, shared_s: float) -> float:
        """Seconds of workers that a task took; of a GPU that folds share, a fold's part.

        Args:
            task: the task.
            seconds: of the worker that ended it.
            earlier_s: before, where one worker trained it.
            shared_s: before, of all workers of a fit that several shared.
        """
        share = self.config.gpus_per_fold or 1.0
        return round(seconds * share + (shared_s if self.workers_of(task) > 1 else earlier_s * share), 3)

    def recipe_of(self, task: ScoreTask | EvalTask) -> Recipe:
        """The recipe of a task's model: the run's, with the task's own number of epochs if it has one."""
        recipe, epochs = self.config.recipe, task.epochs if isinstance(task, EvalTask) else None
        return recipe if epochs is None else recipe.of_epochs(epochs)

    def common_epoch(self, task: ScoreTask | EvalTask, population: Population) -> int | None:
        """The samples by which an epoch of every fold is planned, if not by the fold's own; see `Recipe.common_epoch`.

        Votes compare only where the models are trained alike: one that takes half the steps is unsure of everything.
        """
        if isinstance(task, EvalTask) or task.fold is None or self.config.fit:
            return None
        over_epochs = bool(self.resolved.scores.over_epochs)
        return self.config.recipe.common_epoch(train_sizes(self.config, population), over_epochs=over_epochs)

    def fit_key(self, task: ScoreTask | EvalTask, population: Population) -> str:
        """The name of a task's trained model: a digest of everything that determines it."""
        config = self.config
        determines = {
            "repeat": task.repeat,
            "seed": config.seed,
            "threads": config.threads,
            "workers": self.workers_of(task),
            **({} if config.min_gpus_per_fit is None else {"fewest_workers": config.min_gpus_per_fit}),
            "recipe": None if config.fit else _determining(self.recipe_of(task)),
            "model": None if config.fit else jsonable(config.model),
            "fit": jsonable(config.fit),
            **({"draw": task.draw.rule()} if isinstance(task, EvalTask) and task.draw is not None else {}),
            **({} if (common := self.common_epoch(task, population)) is None else {"samples_an_epoch": common}),
        }
        return fingerprint_of(
            self.fingerprint,
            str(self.size_px),
            self._name_of(task.train, population),
            json.dumps(determines, sort_keys=True),
        )

    def task_keys(self, task: ScoreTask, population: Population) -> list[str]:
        """The keys of finished work that can be used for a task: its own, and those of the same work that stored more."""
        fuller = [self.resolved.keeping(*kept) for kept in _KEPT]
        keys = [replace(self, resolved=asked).task_key(task, population) for asked in (self.resolved, *fuller)]
        return list(dict.fromkeys(keys))

    def task_key(self, task: ScoreTask, population: Population) -> str:
        """The name of a task's output: a digest of everything that determines it.

        Finished work with this key can be used for the task, wherever and whenever it was done.
        """
        determines = {
            "mode": task.mode,
            **self.resolved.scores.key,
            "probs": self.resolved.keeps_probs,
            **({"features": True} if self.keeps_features(task) else {}),
        }
        return fingerprint_of(
            self.fit_key(task, population),
            self._name_of(task.scored, population),
            json.dumps(determines, sort_keys=True),
        )

    def _name_of(self, ids: IdSet, population: Population) -> str:
        # The ids of a long run are never listed, so their rule is hashed. The number of rows decides, holdout and skipped rows
        # included, because the keys of stored runs were made so.
        if len(population.labels_R) > self.limits.rows_in_memory:
            return digest_of_rule(ids, population)
        return digest_ids(ids.resolve(population))


def make_job(
    resolved: ResolvedRun, info: SourceInfo, limits: Limits = DEFAULT_LIMITS, fence: Fence | None = None
) -> Job:
    """What all tasks of a run share, before an executor has inspected the hardware and the images."""
    config = resolved.config
    ref = source_ref(config.source)
    test = source_ref(config.test, field="test") if config.test is not None else default_test(ref)
    assert config.out is not None
    return Job(
        resolved=resolved,
        source=ref.absolute(),
        test=test and test.absolute(),
        fingerprint=info.fingerprint,
        num_classes=info.num_classes,
        class_names=info.class_names,
        size_px=info.size_px,
        out=absolute_path(config.out),
        fence=fence,
        groups=info.groups,
        limits=limits,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress that a task reports while it runs.

    Attributes:
        task: its name.
        node: host it runs on.
        device: `cpu` or the GPU.
        doing: `train` or `score`.
        done, total: epochs, or samples.
        loss, accuracy: of the training epoch, NaN while scoring.
        images_per_s: speed.
        passes: images trained on so far, over all epochs.
        earlier: whether an earlier start of the run did all of that, so that the fit resumes from a checkpoint.
    """

    task: str
    node: str
    device: str
    doing: str
    done: int
    total: int
    loss: float = float("nan")
    accuracy: float = float("nan")
    images_per_s: float = float("nan")
    passes: int = 0
    earlier: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """The result of one training of an evaluation.

    Attributes:
        task: its name.
        arm, selection, repeat: the task's.
        trained: samples of an epoch.
        accuracy: on the test samples after the last epoch, 0 to 1.
        class_accuracy: (C,) the same per class, NaN where the test set has no sample of it.
        seconds: from start to finish.
        worker_seconds: the same, summed over the workers that shared the fit, and of a shared GPU its part.
        node, device: where it ran.
    """

    task: str
    arm: str
    selection: int
    repeat: int
    trained: int
    accuracy: float
    class_accuracy: tuple[float, ...]
    seconds: float
    worker_seconds: float
    node: str
    device: str


def _determining(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that decide what is computed."""
    # Initial weights count by their content, so that a file may be moved.
    values = recipe.model_dump()
    if recipe.init is None:
        return values
    values.pop("init_saw", None)  # a statement about the weights, which no computation reads
    return {**values, "init": values.pop("init_sha256", None) or recipe.init}


_KEPT = (("save_features",), ("save_probs",), ("save_features", "save_probs"))
