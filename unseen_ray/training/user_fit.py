"""A user's own training in place of model and recipe: its arguments, and what it must yield."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.predictions import Predictions
from unseen_ray.core.seeds import digest_ids, fit_seed, torch_seed_for
from unseen_ray.errors import FitError
from unseen_ray.plugins import function_of, name_of, plug_of
from unseen_ray.runs.layout import user_fit_folder
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.training.mapped_ids import own_ids

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, IdArray, IntArray, LabelArray
    from unseen_ray.data.images.pixel_store import PixelStore
    from unseen_ray.data.sources.registry import Source
    from unseen_ray.training.task_runner import ScoringTask

__all__ = ["FitSamples", "FitTask", "user_predictions"]

_LOWEST = np.float32(np.log(np.finfo(np.float32).tiny))  # in place of the log of 0, with which scores are not finite
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitTask:
    """The task that a user's `fit` is given.

    Attributes:
        train_ids: (M,) int64 ids to train on.
        unseen_ids: (U,) int64 ids to predict, each once; in `mode: fitting` all ids.
        seed: an integer below 2**63 for this training's draws, keyed by the training ids.
        num_classes: C.
        stage, fold, repeat: which task it is; fold is None outside stage 0.
        threads: CPU threads it may use.
        checkpoint_dir: a local folder, which a restart of the task finds as it was where the run's folder is local too.
    """

    train_ids: IdArray
    unseen_ids: IdArray
    seed: int
    num_classes: int
    stage: int
    fold: int | None
    repeat: int
    threads: int
    checkpoint_dir: str


class FitSamples:
    """The source as a user's `fit` sees it; ids are row numbers of the source."""

    def __init__(self, pixel_store: PixelStore, labels_N: LabelArray, source: Callable[[], Source]) -> None:
        self._labels, self._pixel_store, self._source = labels_N, pixel_store, source

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8."""
        image: NDArray[np.uint8] = self._pixel_store.images(np.array([number], np.int64))[0]
        return image

    def images(self, ids: IdArray) -> NDArray[np.uint8]:
        """(M, H, W, 3) uint8 of many ids at once."""
        return self._pixel_store.images(np.asarray(ids, np.int64))

    @functools.cached_property
    def labels(self) -> IntArray:
        """(N,) int64 classes of all rows."""
        return self._labels.astype(np.int64, copy=False)

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        """Portable names of all rows."""
        return self._source().keys(range(len(self)))


def user_predictions(scoring: ScoringTask) -> Iterator[Predictions]:
    """Run a user's `fit` on a task and check what it yields.

    Yields:
        Ids with float32 log-probabilities, minus infinity replaced by the log of the smallest float32.

    Raises:
        FitError: if a value has another shape, is no log-probability, or is not a number.
    """
    runner, task = scoring.runner, scoring.task
    job, config = runner.job, runner.job.config
    function = function_of(config.fit, None, field="fit")
    name = name_of(plug_of(config.fit)[0])
    with tempfile.TemporaryDirectory(prefix="unseen_ray_fit_") as scratch:
        fit_task = FitTask(
            # copies: the function may shuffle its ids in place
            train_ids=own_ids(scoring.train_ids, job.limits.rows_in_memory),
            unseen_ids=own_ids(scoring.ids_M, job.limits.rows_in_memory),
            seed=torch_seed_for(fit_seed(config.seed, digest_ids(scoring.train_ids), task.repeat)),
            num_classes=job.num_classes,
            stage=task.stage,
            fold=task.fold,
            repeat=task.repeat,
            threads=config.threads,
            checkpoint_dir=_checkpoint_dir(job.folder, scoring.key, scratch),
        )
        yielded = function(fit_task, source=FitSamples(runner.pixel_store, runner.labels_N, runner.source))
        if not hasattr(yielded, "__iter__"):
            raise FitError(f"fit {name} returned a {type(yielded).__name__}; it must yield (ids, log_probs) pairs.")
        for pair in yielded:
            ids, log_probs = _checked(pair, name, job.num_classes)
            yield Predictions(ids_B=ids, log_probs_BC=log_probs)


def _checkpoint_dir(folder: Folder, key: str, scratch: str) -> str:
    """A folder named by what determines the task, so that it never finds the state of another configuration.

    It lies with the run's other checkpoints and is deleted with them. A user's function takes a local path: where the run's
    folder is on object storage, its state is lost with this process.
    """
    fs, path = filesystem_of(folder.path(user_fit_folder(key)))
    if fs.type_name != "local":
        return scratch
    folder.confirm()
    os.makedirs(path, exist_ok=True)
    return path


def _checked(pair: Any, name: str, num_classes: int) -> tuple[IdArray, FloatArray]:
    try:
        ids, log_probs = np.asarray(pair[0]), np.asarray(pair[1])
    except (TypeError, IndexError, KeyError, ValueError):
        raise FitError(f"fit {name} yielded a {type(pair).__name__}; it must yield (ids, log_probs) pairs.") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or log_probs.shape != (len(ids), num_classes):
        raise FitError(
            f"fit {name} yielded ids of {ids.dtype} {ids.shape} with log_probs of shape {log_probs.shape}; "
            f"expected (B,) integers and (B, {num_classes})."
        )
    if np.isnan(log_probs).any() or (log_probs > 1e-3).any():
        found = "NaN" if np.isnan(log_probs).any() else "values above 0"
        raise FitError(f"fit {name} yielded log_probs with {found}. Yield natural logs of probabilities.")
    total = np.exp(log_probs.astype(np.float64)).sum(axis=1)
    if np.abs(total - 1).max(initial=0) > _SUM_TOLERANCE:
        worst = total[np.abs(total - 1).argmax()]
        raise FitError(
            f"fit {name} yielded log_probs whose probabilities sum to {worst:.3g}, not 1. Apply log_softmax to logits first."
        )
    return ids.astype(np.int64), np.maximum(log_probs.astype(np.float32), _LOWEST)
