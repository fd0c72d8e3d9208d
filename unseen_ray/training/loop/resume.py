"""The state of a fit, between epochs or within one: what its checkpoints hold, and how it resumes from them."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unseen_ray.training.host import PreemptedError, is_leaving
from unseen_ray.training.loop.epochs import EpochStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unseen_ray.training.loop.batches import WorkerShare
    from unseen_ray.training.loop.checkpoints import Checkpoints
    from unseen_ray.training.loop.trainer import Trainer
    from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder

__all__ = ["CheckpointWriter", "TrainState", "resumed"]

logger = logging.getLogger(__name__)

_WITHIN_S = 10.0  # a shorter epoch is trained again: that costs less than a checkpoint within it
_AGREED_STEPS = 16  # asking every worker at every step would cost a round over the network each
_ONCE, _AND_STOP = 1, 2  # what a worker of a fit asks for
_SUMS, _CPU, _GPU = "within.sums", "within.cpu", "within.gpu"


@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """How far a fit has come.

    Attributes:
        stats: of the last whole epoch, `seconds` including those spent since.
        steps: how many of the next epoch are done.
        sums: (2,) float32 sums of their losses and right predictions; None between epochs.
        generators: states of torch's generators by name; empty between epochs, as each epoch seeds them.
        others: sums and generators of the fit's other workers, by their names in a checkpoint.
    """

    stats: EpochStats
    steps: int = 0
    sums: Tensor | None = None
    generators: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def within(cls, stats: EpochStats, steps: int, sums: Tensor, device: torch.device) -> TrainState:
        """The state within an epoch, with the generators as they are now."""
        generators = {_CPU: torch.get_rng_state()}
        if device.type == "cuda":
            generators[_GPU] = torch.cuda.get_rng_state(device)
        return cls(stats, steps, sums, generators)

    def restore_generators(self, device: torch.device) -> None:
        """Set torch's generators to their states; does nothing between epochs."""
        if _CPU in self.generators:
            torch.set_rng_state(self.generators[_CPU])
        if _GPU in self.generators and device.type == "cuda":
            torch.cuda.set_rng_state(self.generators[_GPU], device)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint beside the trainer's."""
        return {} if self.sums is None else {_SUMS: self.sums, **self.generators, **self.others}

    def gathered(self, shard: WorkerShare) -> TrainState:
        """The same with the other workers' states; a collective call: all workers make it at the same step."""
        if shard.workers == 1 or self.sums is None:
            return self
        others: dict[str, Tensor] = {}
        for name, own in {_SUMS: self.sums, **self.generators}.items():
            received = [torch.empty_like(own, device=self.sums.device) for _ in range(shard.workers)]
            torch.distributed.all_gather(received, own.to(self.sums.device))
            others |= {_of_worker(name, rank): each.cpu() for rank, each in enumerate(received) if rank}
        return replace(self, others=others)


def _of_worker(name: str, rank: int) -> str:
    """The name of a worker's tensor in a checkpoint."""
    return f"{name}.{rank}" if rank else name


@dataclass(slots=True, eq=False)
class CheckpointWriter:
    """Writes the checkpoints of a fit when they are due; at once, and as the last thing, where the node of a worker is taken away.

    Args:
        trainer: of the model.
        checkpoints: the fit's.
        shard: this worker's part of the fit; the first worker writes.
        recorder: of scores over epochs, if there are any.
    """

    trainer: Trainer
    checkpoints: Checkpoints
    shard: WorkerShare
    recorder: TrajectoryRecorder | None = None
    _last_write: float = field(init=False, default_factory=time.monotonic)
    _stops: bool = field(init=False, default=False)

    def due_within(self, step: int, device: torch.device) -> bool:
        """Whether a checkpoint is due within the epoch, as the last one is some time ago or a worker's node is taken away.

        The workers of a fit agree on it every few steps.
        """
        if self.shard.workers > 1 and (step + 1) % _AGREED_STEPS:
            return False
        may_stop = self.recorder is None or self.recorder.may_stop_within()
        overdue = self.shard.rank == 0 and time.monotonic() - self._last_write >= _WITHIN_S
        asked = self._agreed(_AND_STOP if is_leaving() else _ONCE if overdue else 0, device) if may_stop else 0
        self._stops = asked == _AND_STOP
        return asked > 0

    def _agreed(self, asked: int, device: torch.device) -> int:
        """The most that a worker of the fit asks for; a collective call."""
        if self.shard.workers == 1:
            return asked
        most = torch.tensor(asked, dtype=torch.int32, device=device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    def write(self, state: TrainState) -> None:
        """Write a checkpoint, unless that would slow the fit down or the fit could not resume from it.

        Raises:
            PreemptedError: once it is written, if the node of a worker is about to be taken away.
        """
        stats, state = state.stats, state.gathered(self.shard)
        self._last_write = time.monotonic()
        if not state.steps:
            may_stop = self.recorder is None or self.recorder.may_stop(stats.epoch)
            self._stops = may_stop and is_leaving() and self.shard.workers == 1 and stats.epoch < stats.epochs
            if not may_stop:
                return
        if self.shard.rank == 0:  # the others only had to take part in gathering their states
            self._write(state)
        if self._stops:
            self.checkpoints.flush()
            if self.shard.workers > 1:
                torch.distributed.barrier()  # Ray Train ends the others once one has stopped
            raise PreemptedError

    def _write(self, state: TrainState) -> None:
        stats = state.stats
        if not self._stops and stats.epoch < stats.epochs and not self.checkpoints.due(stats.trained_s):
            return
        position = {**asdict(stats), "steps": state.steps, "scale": self.trainer.scale()}
        tensors = {**self.trainer.tensors(), **state.tensors()}
        if self.recorder is not None:
            tensors |= self.recorder.tensors()
            position["recorded"] = self.recorder.key()
        self.checkpoints.write(tensors, position)


def _sums(tensors: Mapping[str, Tensor], shard: WorkerShare) -> Tensor:
    """This worker's sums; those of workers that are there no more go to the first, so that none is lost."""
    ranks = [shard.rank] if shard.rank else [0, *range(shard.workers, len(tensors))]
    found = [tensors[name] for name in (_of_worker(_SUMS, rank) for rank in ranks) if name in tensors]
    return torch.stack([torch.zeros(2), *found]).sum(0)


def resumed(
    trainer: Trainer,
    checkpoints: Checkpoints,
    fresh: TrainState,
    *,
    shard: WorkerShare,
    recorder: TrajectoryRecorder | None = None,
) -> TrainState:
    """The state of the last checkpoint, restored into the trainer; `fresh` where no checkpoint can be used.

    Args:
        trainer: of the model; left as it is if no checkpoint can be used.
        checkpoints: the fit's.
        fresh: the state before the first epoch.
        shard: this worker's part of the fit; there may be more workers now than when it was written, or fewer.
        recorder: of scores over epochs, if there are any.
    """
    saved = checkpoints.read()
    if saved is None:
        return fresh
    try:
        position, tensors = dict(saved.position), saved.tensors
        scale, recorded = position.pop("scale"), position.pop("recorded", None)
        steps = int(position.pop("steps", 0))
        stats = EpochStats(**{**position, "earlier_s": position["seconds"]})
        if recorder is not None and not (recorded == recorder.key() and recorder.fits(tensors, stats.epoch)):
            raise ValueError("it holds other scores over epochs")
        own = {name: _of_worker(name, shard.rank) for name in (_CPU, _GPU)}
        generators = {name: tensors[kept] for name, kept in own.items() if kept in tensors}
        state = TrainState(stats, steps, _sums(tensors, shard), generators) if steps else TrainState(stats)
        trainer.restore(tensors, scale)
        if recorder is not None:
            with trainer.averaged():  # what predicted before predicts again
                recorder.restore(tensors, stats.epoch)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("the checkpoint %s cannot be used (%s); training from the start", checkpoints.key[:8], error)
        return fresh
    within = f", {steps} steps into the next one" if steps else ""
    logger.info("resuming after epoch %d of %d%s", stats.epoch, stats.epochs, within)
    return state
