"""A run on the executor that its configuration asks for, and its result."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from unseen_ray.config.fields.given import config_of
from unseen_ray.config.fields.keywords import (
    CommonFields,
    PathLike,
    Plug,
    RunFields,
    ScoreFields,
    SourceLike,
    with_keywords,
)
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.score_columns import score_name
from unseen_ray.core.tasks import stage_zero_count
from unseen_ray.data.prepare.objects import is_object, store_samples
from unseen_ray.data.related.grouping import group_ref
from unseen_ray.errors import ConfigError
from unseen_ray.execution.progress import shown_progress
from unseen_ray.execution.result import PruneResult
from unseen_ray.execution.tracking import tracked
from unseen_ray.pruning.pipeline import run_pipeline
from unseen_ray.pruning.reselect import reselect
from unseen_ray.pruning.score_probs import score_probs
from unseen_ray.runs.run import Run, load_run
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import held
from unseen_ray.storage.path_validation import as_text

if TYPE_CHECKING:
    import ray.data
    from numpy.typing import ArrayLike

    from unseen_ray.pruning.executor import Executor, Observer

__all__ = ["PruneResult", "executor_for", "ignore", "load", "prune", "prune_dataset", "run_of", "score", "select"]


@with_keywords(RunFields)
def prune(
    config: PruneConfig | str | os.PathLike[str] | None = None,
    *,
    fresh: bool = False,
    on_event: Observer | None = None,
    progress: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    **fields: Unpack[RunFields],
) -> PruneResult:
    """Do a run, or what is left of it.

    >>> result = prune(source="digits", keep=0.7, out="runs/digits")  # doctest: +SKIP

    Args:
        config: what to prune, and how: a configuration or the path of a YAML file; None if `fields` say it all.
        fresh: delete the run that `out` holds and start over; it is deleted once all checks of the new one have passed.
        on_event: receives progress (`runs.tasks.Progress`) and the receipts of finished tasks (`runs.manifest_entries.Receipt`).
        progress: whether a notebook or a terminal shows the progress; `on_event` takes its place.
        limits: how many rows are held at once.
        fields: the fields of `PruneConfig`, each in place of that of `config`; `out` names the run's folder. `source` and `test` may
            be objects too: a pair (images, labels) of arrays, a torch or a Hugging Face Dataset, or any object with `__len__`,
            `labels`, `keys` and `[id]`. They are written once to the folder `<out>-source` (`-test`), and their numbers are the ids.

    Raises:
        ConfigError, DataError: before any training, where it can be known.
        UnseenError: if the run failed; the same call resumes it.
    """
    config = _run_config(config, fields, anew=fresh)
    models = config.scoring.models
    tasks = stage_zero_count(mode=config.mode, folds=config.folds, repeats=config.repeats, models=models)
    with (
        shown_progress(on_event, progress=progress) as shown,
        executor_for(config, tasks) as executor,
        tracked(config, shown) as observer,
    ):
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
    progress: bool = True,
    **fields: Unpack[CommonFields],
) -> PruneResult:
    """Prune a Ray Dataset: write its images and labels once as Parquet beside the run, in its order, and prune these.

    The folder `<out>-source` holds them, with the rows of the Dataset in order as ids; the same call resumes with them.

    Args:
        dataset: with a column of encoded images, or of uint8 arrays, and one of integers or class names.
        keep: fraction kept, between 0 and 1.
        out: the run's folder, on storage that every node shares.
        image, label, size, limit: its columns, and the options of the `parquet` source.
        fresh, on_event, progress: as of `prune`; a fresh run writes the Dataset anew.
        fields: the other fields of `PruneConfig`; `group` may name a column of the Dataset.

    Raises:
        ConfigError, DataError: if the Dataset has no such columns, or as `prune`.
    """
    from unseen_ray.execution.ray.connect import ray_session
    from unseen_ray.execution.ray.io.datasets import store_dataset

    place = _place_of_rows(dataset, out)
    source = {"use": "parquet", "path": place, "size": size, "limit": limit}
    config = PruneConfig(source=source, keep=keep, out=os.fspath(out), **fields)  # refuses before anything is written
    with ray_session(config.address):
        group = None if config.group is None else group_ref(config.group).column
        with held(Folder(os.fspath(out))) as lock:  # a driver that is at work here reads the rows that are there
            store_dataset(dataset, Folder(place, lock.folder.fence), image=image, label=label, group=group, anew=fresh)
        return prune(config, fresh=fresh, on_event=on_event, progress=progress)


def _place_of_rows(dataset: object, out: str | os.PathLike[str]) -> str:
    """The folder for a Dataset's rows; ConfigError if it is no Dataset."""
    if not hasattr(dataset, "iter_batches"):
        raise ConfigError(
            f"dataset is of type {type(dataset).__name__}; it must be a Ray Dataset. Give ur.prune other samples as source=..."
        )
    return f"{os.fspath(out).rstrip('/')}-source"


def _run_config(
    config: PruneConfig | str | os.PathLike[str] | None, fields: Mapping[str, Any], *, anew: bool
) -> PruneConfig:
    """The configuration, whose source and test set were written beside the run if they are objects in memory."""
    objects = [name for name in ("source", "test") if is_object(fields.get(name))]
    # What is wrong in the other fields is told before anything is written.
    checked = config_of(config, {**fields, **dict.fromkeys(objects, "digits")})
    if not objects:
        return checked
    if checked.out is None:
        raise ConfigError(
            f"{objects[0]} is an object in memory, to be written to <out>-{objects[0]}. Name `out`, the run's folder."
        )
    base = checked.out.rstrip("/")
    with held(Folder(base)) as lock:  # a driver that is at work here reads the samples that are there
        folders = {name: Folder(f"{base}-{name}", lock.folder.fence) for name in objects}
        places = {name: store_samples(fields[name], folders[name], anew=anew, field=name) for name in objects}
    return config_of(config, {**fields, **places})


def load(path: str | os.PathLike[str]) -> PruneResult:
    """A finished run from its folder; imports nothing that the folder names."""
    run = load_run(as_text(path))
    return PruneResult(run, PruneConfig.from_json({**run.manifest.asked, "out": as_text(path)}))


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
    path = result.path if isinstance(result, PruneResult) else as_text(result)
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
    probs: ArrayLike | PathLike | Sequence[ArrayLike | PathLike],
    labels: ArrayLike | PathLike,
    *,
    out: PathLike,
    folds: ArrayLike | PathLike | None = None,
    source: SourceLike | None = None,
    save_probs: bool = True,
    **fields: Unpack[ScoreFields],
) -> dict[str, Any]:
    """Score samples by your own out-of-fold probabilities, for `select` to choose by.

    Args:
        probs: (N, C) probabilities of models that never saw the sample; or a list of these, one a model, where a row of NaN is a sample
            that this model did not score. Each is an array or a path, which is read in blocks of rows: a .npy file; a Parquet file with a
            column of lists (null: not scored), or with a column for each class; or a folder of such files, in the order of their names.
        labels: (N,) integer labels, or the path of a .npy file; an array is written to `<out>-labels.npy` unless there is a source.
        out: a new folder.
        folds: (N,) integers, where the rows of `probs` with one number are of one model.
        source: the samples themselves, in the same order, for reports, exports and trainings; None for labels alone.
        save_probs: whether to store the mean probabilities, by which `select` can combine and guard in other ways.
        fields: `score`, `also_score`, `combine`, `guard`, `seed`.

    Returns:
        `out`, `samples`, `classes`, `votes` of a sample, `accuracy` of the votes, and the deciding `score`.
    """
    of_folds = None if folds is None else _numbers(folds)
    given, to = (_models(probs), _numbers(labels)), os.fspath(out)
    run = score_probs(*given, out=to, folds=of_folds, source=source, save_probs=save_probs, **fields)
    (stage,) = run.manifest.stages
    return {
        "out": run.folder.root,
        "samples": run.manifest.source.num_samples,
        "classes": run.manifest.source.num_classes,
        "votes": stage.scored // stage.candidates,
        "accuracy": stage.accuracy,
        "score": score_name(run.manifest.config["score"]),
    }


def _models(probs: Any) -> list[str | np.ndarray]:
    """The probabilities of each model."""
    is_one = isinstance(probs, (str, os.PathLike)) or hasattr(probs, "__array__")
    return [_numbers(each) for each in ([probs] if is_one else probs)]


def _numbers(given: Any) -> str | np.ndarray:
    """The path of a .npy file, or an array."""
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else np.asarray(given)


def run_of(result: PruneResult | str | os.PathLike[str]) -> Run:
    """The run behind a result, or in a folder."""
    return result.run if isinstance(result, PruneResult) else load_run(as_text(result))


@contextlib.contextmanager
def executor_for(config: PruneConfig, tasks: int) -> Iterator[Executor]:
    """The executor of a configuration, closed at the end; `tasks` is how many could run in parallel."""
    if config.executor == "local":
        from unseen_ray.execution.local import LocalExecutor

        executor: Executor = LocalExecutor()
    else:
        try:
            from unseen_ray.execution.ray.executor import RayExecutor
        except ImportError as error:
            raise ConfigError(
                f"executor='ray' needs Ray, and Python cannot import it: {error}. Install ray, or set executor='local', which needs none."
            ) from error
        executor = RayExecutor(address=config.address, tasks=tasks)
    try:
        yield executor
    finally:
        executor.close()


def ignore(_: Any) -> None:
    """An observer that does nothing."""
