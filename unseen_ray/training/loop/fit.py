"""Train one model over ids of a plane, an epoch at a time, from its last checkpoint on, which may be within an epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unseen_ray.core.seeds import rng_for, torch_seed_for
from unseen_ray.errors import FitError, StorageError
from unseen_ray.training.hardware import seed_generators
from unseen_ray.training.loop.batches import BatchLoader, Share
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.resume import CheckpointWriter, TrainState, resumed
from unseen_ray.training.loop.trainer import Trainer, learning_rate

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.training.loop.checkpoints import Checkpoints
    from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder

__all__ = ["FitPlan", "finished_fit", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What one fit trains on, and how.

    Attributes:
        ids_M: (M,) int64 training ids.
        labels_M: (M,) their classes.
        num_classes: C, which the model's answers must have.
        recipe: with `precision` resolved.
        seed: `core.seeds.fit_seed`'s.
        share: this worker's part of every batch.
    """

    ids_M: IdArray
    labels_M: IntArray
    num_classes: int
    recipe: Recipe
    seed: int
    share: Share = field(default_factory=Share)

    def sizes(self) -> tuple[int, int, int]:
        """Batch size over all workers, steps of an epoch, steps in all."""
        batch, per_epoch = self.recipe.epoch_plan(len(self.ids_M), workers=self.share.workers)
        _, total = self.recipe.plan(len(self.ids_M), workers=self.share.workers)
        return batch, per_epoch, total

    @property
    def epochs(self) -> int:
        """How many epochs it has, the last one perhaps cut short."""
        return self.recipe.epochs_in_all(len(self.ids_M), workers=self.share.workers)


def fit(
    model: nn.Module,
    feed: BatchLoader,
    plan: FitPlan,
    checkpoints: Checkpoints | None = None,
    recorder: TrajectoryRecorder | None = None,
) -> Iterator[EpochStats]:
    """Train `model` in place; the last value given is of the last epoch.

    Every draw of an epoch comes from (seed, epoch): what is computed does not depend on what ran before, nor on how often
    the fit was interrupted and went on from a checkpoint.

    Args:
        model: on the feed's device, channels_last.
        feed: batches.
        plan: what to train on, and how.
        checkpoints: where to go on from, and where to write after each epoch; None for neither.
        recorder: is told of each epoch, and stands in the checkpoints with the model; None where nothing is scored over epochs.

    Yields:
        One value an epoch; first, where it goes on from a checkpoint, that of the checkpoint's epoch.

    Raises:
        FitError: if the loss is no longer finite, or the model's answers have another shape than (B, C).
    """
    device = feed.pixels.device
    learner = Trainer(model, plan.recipe, num_classes=plan.num_classes, device=device, replicas=plan.share.workers)
    stand = TrainState(EpochStats(epoch=0, epochs=plan.epochs))
    if checkpoints is not None:
        stand = resumed(learner, checkpoints, stand, rank=plan.share.rank, recorder=recorder)
        _check_together(stand, plan.share, device)
        if stand.stats.epoch:
            yield stand.stats
    while stand.stats.epoch < stand.stats.epochs:
        model.train()
        writer = None if checkpoints is None else CheckpointWriter(learner, checkpoints, plan.share, recorder)
        stats = _epoch(learner, feed, plan, stand, writer)
        if recorder is not None:
            stats = _recorded(recorder, stats)
        stand = TrainState(stats)
        if writer is not None:
            writer.write(stand)
        yield stats


def finished_fit(model: nn.Module, feed: BatchLoader, plan: FitPlan, checkpoints: Checkpoints) -> EpochStats:
    """Bring `model` to where the last checkpoint of a finished fit stands.

    Raises:
        StorageError: if there is none, or it is not of the last epoch.
    """
    learner = Trainer(model, plan.recipe, num_classes=plan.num_classes, device=feed.pixels.device, replicas=1)
    stats = resumed(learner, checkpoints, TrainState(EpochStats(epoch=0, epochs=1))).stats
    if stats.epoch < stats.epochs:
        raise StorageError(
            f"the model that several workers trained is not in {checkpoints.path()}. Is `out` on storage that every "
            "node shares? Run the same line again."
        )
    return stats


def _epoch(
    learner: Trainer, feed: BatchLoader, plan: FitPlan, stand: TrainState, writer: CheckpointWriter | None
) -> EpochStats:
    """An epoch, or what is left of it."""
    started, before, epoch, share = time.perf_counter(), stand.stats, stand.stats.epoch, plan.share
    device = feed.pixels.device
    batch, per_epoch, total = plan.sizes()
    steps = min(per_epoch, total - epoch * per_epoch)
    samples = min(steps * batch, len(plan.ids_M))
    seed_generators(torch_seed_for(plan.seed, epoch, *([share.rank] if share.rank else [])), device)
    stand.restore_generators(device)
    sums = torch.zeros(2, device=device) if stand.sums is None else stand.sums.to(device)
    batches = feed.epoch(
        plan.ids_M,
        plan.labels_M,
        plan.recipe,
        shape=(steps, batch),
        rng=rng_for(plan.seed, epoch),
        share=share,
        progress=(epoch, plan.epochs),
        first=stand.steps,
    )
    for step, (inputs, labels) in enumerate(batches, start=stand.steps):
        rate = learning_rate(epoch * per_epoch + step, total, per_epoch, plan.recipe)
        loss, right = learner.step(inputs, labels, rate)
        sums[0] += loss / share.workers
        sums[1] += right
        if writer is not None and step + 1 < steps and writer.due_within(step, device):
            spent = before.seconds + time.perf_counter() - started
            writer.write(TrainState.within(replace(before, seconds=spent), step + 1, sums, device))
    _add_up(sums, share)
    mean_loss = float(sums[0]) / steps
    if not math.isfinite(mean_loss):
        raise FitError(
            f"the training loss became {mean_loss} in epoch {epoch + 1}: it diverged. "
            f"Lower recipe.lr (it is {plan.recipe.lr})."
        )
    seconds = time.perf_counter() - started
    trained = samples - min(stand.steps * batch, samples)
    return EpochStats(
        epoch=epoch + 1,
        epochs=before.epochs,
        loss=mean_loss,
        accuracy=float(sums[1]) / samples,
        images_per_s=trained / seconds,
        seconds=before.seconds + seconds,
        earlier_s=before.earlier_s,
    )


def _recorded(recorder: TrajectoryRecorder, stats: EpochStats) -> EpochStats:
    """Have the model answer where this epoch is scored; it takes time that is the fit's."""
    began = time.perf_counter()
    recorder.record(stats.epoch)
    return replace(stats, seconds=stats.seconds + time.perf_counter() - began)


def _check_together(stand: TrainState, share: Share, device: torch.device) -> None:
    """Refuse to go on where the workers of a fit have read different checkpoints."""
    if share.workers > 1:
        at = torch.tensor([stand.stats.epoch, stand.steps], device=device)
        first, last = at.clone(), at.clone()
        torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
        torch.distributed.all_reduce(last, torch.distributed.ReduceOp.MAX)
        if not torch.equal(first, last):
            raise FitError(
                f"the workers of one fit stand after epochs {int(first[0])} to {int(last[0])} and {int(first[1])} to {int(last[1])} "
                "steps: they do not see the same storage. `out` must be shared by every node."
            )


def _add_up(sums: Tensor, share: Share) -> None:
    if share.workers > 1:
        torch.distributed.all_reduce(sums)
