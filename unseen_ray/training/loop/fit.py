"""Train one model, an epoch at a time, from its last checkpoint on, which may lie within an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unseen_ray.core.seeds import derive, rng_for, tie_keys, torch_seed_for
from unseen_ray.errors import FitError, StorageError
from unseen_ray.training.hardware import seed_generators
from unseen_ray.training.loop.batches import BatchLoader, WorkerShare
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.resume import CheckpointWriter, TrainState, resumed
from unseen_ray.training.loop.trainer import Trainer, learning_rate

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.core.samples.epoch_draw import EpochDraw
    from unseen_ray.training.loop.checkpoints import Checkpoints
    from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder

__all__ = ["FitPlan", "finished_fit", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What one fit trains on, and how.

    Attributes:
        ids_M: (M,) int64 training ids.
        labels_M: (M,) their classes.
        num_classes: C, the width of the model's logits.
        recipe: with `precision` resolved.
        seed: `core.seeds.fit_seed`'s.
        shard: this worker's part of every batch.
        workers: by how many every batch can be divided evenly, which is what sizes follow; `shard` may be of fewer.
        draw: what an epoch takes of the training ids; None for all of them.
        common_epoch: the samples by which its length is planned; None for those of an epoch.
    """

    ids_M: IdArray
    labels_M: IntArray
    num_classes: int
    recipe: Recipe
    seed: int
    shard: WorkerShare = field(default_factory=WorkerShare)
    workers: int = 1
    draw: EpochDraw | None = None
    common_epoch: int | None = None

    @property
    def samples(self) -> int:
        """Samples by which the length is planned: of an epoch, unless `common_epoch` says otherwise."""
        return self.common_epoch or (len(self.ids_M) if self.draw is None else self.draw.size)

    def of_epoch(self, epoch: int) -> tuple[IdArray, IntArray]:
        """Ids and classes of an epoch's samples."""
        if self.draw is None:
            return self.ids_M, self.labels_M
        taken = self.draw.positions(self.ids_M, epoch)
        return self.ids_M[taken], self.labels_M[taken]

    def mirrored(self, ids_M: IdArray, epoch: int) -> NDArray[np.bool_] | None:
        """(M,) which samples an epoch mirrors, by their ids and whether its number is even; None where each epoch draws it."""
        if self.recipe.flip == "random":
            return None
        side_M = (tie_keys(ids_M, derive(self.seed, "flip")) & np.uint64(1)).astype(bool)
        return side_M ^ bool(epoch % 2)

    def sizes(self) -> tuple[int, int, int]:
        """Batch size over all workers, steps of an epoch, steps in all."""
        batch, per_epoch = self.recipe.epoch_plan(self.samples, workers=self.workers)
        _, total = self.recipe.plan(self.samples, workers=self.workers)
        return batch, per_epoch, total

    @property
    def epochs(self) -> int:
        """How many epochs it has, the last one perhaps cut short."""
        return self.recipe.epochs_in_all(self.samples, workers=self.workers)


def fit(
    model: nn.Module,
    loader: BatchLoader,
    plan: FitPlan,
    checkpoints: Checkpoints | None = None,
    recorder: TrajectoryRecorder | None = None,
) -> Iterator[EpochStats]:
    """Train `model` in place; the last value given is of the last epoch.

    Every draw of an epoch comes from (seed, epoch): what is computed depends neither on what ran before, nor on how often
    the fit was interrupted and resumed from a checkpoint.

    Args:
        model: on the loader's device, channels_last.
        loader: batches.
        plan: what to train on, and how.
        checkpoints: where to resume from, and where to write after each epoch; None for neither.
        recorder: records scores over epochs after each epoch, and is part of the checkpoints; None if there are no such scores.

    Yields:
        One value an epoch; first, where it resumes, that of the checkpoint's epoch.

    Raises:
        FitError: if the loss is no longer finite, or the model's logits have another shape than (B, C).
    """
    device = loader.pixels.device
    _fit_to_images(model, loader, plan)
    trainer = _trainer(model, loader, plan, replicas=plan.shard.workers)
    state, writer = TrainState(EpochStats(epoch=0, epochs=plan.epochs)), None
    if checkpoints is not None:
        state = resumed(trainer, checkpoints, state, shard=plan.shard, recorder=recorder)
        _check_same_state(state, plan.shard, device)
        writer = CheckpointWriter(trainer, checkpoints, plan.shard, recorder)
        if state.stats.epoch:
            yield _after(trainer, state.stats)
    while state.stats.epoch < state.stats.epochs:
        state = TrainState(_epoch(trainer, loader, plan, state, writer, recorder))
        if writer is not None:
            writer.write(state)
        yield _after(trainer, state.stats)


def finished_fit(model: nn.Module, loader: BatchLoader, plan: FitPlan, checkpoints: Checkpoints) -> EpochStats:
    """Load the weights of a finished fit into `model`, from its last checkpoint.

    Raises:
        StorageError: if there is none, or it is not of the last epoch.
    """
    trainer = _trainer(model, loader, plan, replicas=1)
    stats = resumed(trainer, checkpoints, TrainState(EpochStats(epoch=0, epochs=1)), shard=WorkerShare()).stats
    if stats.epoch < stats.epochs:
        raise StorageError(
            f"the model that several workers trained is not in {checkpoints.path()}. Is `out` on storage that every "
            "node shares? Run the same line again."
        )
    return _after(trainer, stats)


def _trainer(model: nn.Module, loader: BatchLoader, plan: FitPlan, *, replicas: int) -> Trainer:
    _, _, steps = plan.sizes()
    device = loader.pixels.device
    return Trainer(model, plan.recipe, steps=steps, num_classes=plan.num_classes, device=device, replicas=replicas)


def _fit_to_images(model: nn.Module, loader: BatchLoader, plan: FitPlan) -> None:
    """Show a fresh model what it will be trained on, if it has a method for that; weights of `recipe.init` stay as they are."""
    method = getattr(model, "fit_to_images", None)
    if method is not None and plan.recipe.init is None:
        with torch.no_grad():
            method(loader.first_look(plan.ids_M, plan.recipe.batch_size))


def _after(trainer: Trainer, stats: EpochStats) -> EpochStats:
    """What is known after an epoch; after the last one, the model has the weights that predict."""
    if stats.epoch == stats.epochs:
        trainer.finish()
    return stats


def _epoch(
    trainer: Trainer,
    loader: BatchLoader,
    plan: FitPlan,
    state: TrainState,
    writer: CheckpointWriter | None,
    recorder: TrajectoryRecorder | None,
) -> EpochStats:
    """Train an epoch, or the rest of one that was interrupted, and record its scores."""
    started, before, epoch, shard = time.perf_counter(), state.stats, state.stats.epoch, plan.shard
    device, (batch, per_epoch, total) = loader.pixels.device, plan.sizes()
    steps = min(per_epoch, total - epoch * per_epoch)
    samples = min(steps * batch, plan.samples, len(plan.ids_M))
    sums = _begin_epoch(trainer, plan, state, device)
    for step, (inputs, labels) in enumerate(_batches(loader, plan, state, (steps, batch)), start=state.steps):
        rate = learning_rate(epoch * per_epoch + step, total, per_epoch, plan.recipe)
        loss, right = trainer.step(inputs, labels, rate)
        # The sums stay on the device: reading one each step would make the CPU wait for the GPU.
        sums[0] += loss / shard.workers
        sums[1] += right
        if writer is not None and step + 1 < steps and writer.due_within(step, device):
            now = before.after(time.perf_counter() - started, shard.workers)
            writer.write(TrainState.within(now, step + 1, sums, device))
    if shard.workers > 1:
        torch.distributed.all_reduce(sums)
    mean_loss = _finite(float(sums[0]) / steps, epoch, plan.recipe)
    seconds = time.perf_counter() - started
    if recorder is not None:
        with trainer.averaged():
            recorder.record(epoch + 1)
    return replace(
        before.after(time.perf_counter() - started, shard.workers),  # with the recording, which is no training speed
        epoch=epoch + 1,
        loss=mean_loss,
        accuracy=float(sums[1]) / samples,
        images_per_s=(samples - min(state.steps * batch, samples)) / seconds,
    )


def _begin_epoch(trainer: Trainer, plan: FitPlan, state: TrainState, device: torch.device) -> Tensor:
    """Set the model and the generators to where the epoch resumes; returns (2,) sums of losses and right predictions so far."""
    trainer.model.train()
    rank = plan.shard.rank
    # The first worker draws as a fit on one worker does; the others' dropout must differ from it.
    seed_generators(torch_seed_for(plan.seed, state.stats.epoch, *([rank] if rank else [])), device)
    state.restore_generators(device)
    return torch.zeros(2, device=device) if state.sums is None else state.sums.to(device)


def _batches(
    loader: BatchLoader, plan: FitPlan, state: TrainState, shape: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch that are left to train on."""
    epoch = state.stats.epoch
    ids_M, labels_M = plan.of_epoch(epoch)
    return loader.epoch(
        ids_M,
        labels_M,
        plan.recipe,
        shape=shape,
        rng=rng_for(plan.seed, epoch),
        shard=plan.shard,
        progress=(epoch, plan.epochs),
        first=state.steps,
        mirrored_M=plan.mirrored(ids_M, epoch),
    )


def _finite(mean_loss: float, epoch: int, recipe: Recipe) -> float:
    """The loss of an epoch; FitError if the training has diverged."""
    if not math.isfinite(mean_loss):
        raise FitError(
            f"the training loss became {mean_loss} in epoch {epoch + 1}: it diverged. "
            f"Lower recipe.lr (it is {recipe.lr})."
        )
    return mean_loss


def _check_same_state(state: TrainState, shard: WorkerShare, device: torch.device) -> None:
    """Refuse to train on where the workers of a fit have read different checkpoints."""
    if shard.workers == 1:
        return
    # Each reads the storage for itself: on one that is not shared they would train different epochs together.
    at = torch.tensor([state.stats.epoch, state.steps], device=device)
    first, last = at.clone(), at.clone()
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(last, torch.distributed.ReduceOp.MAX)
    if not torch.equal(first, last):
        raise FitError(
            f"the workers of one fit resume after epochs {int(first[0])} to {int(last[0])} and {int(first[1])} to {int(last[1])} "
            "steps: they do not see the same storage. `out` must be shared by every node."
        )
