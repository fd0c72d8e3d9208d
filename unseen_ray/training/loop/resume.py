"""Where a fit stands, between epochs or within one: what is put into its checkpoints, and how it goes on from them."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unseen_ray.training.loop.epochs import EpochStats

if TYPE_CHECKING:
    from unseen_ray.training.loop.batches import Share
    from unseen_ray.training.loop.checkpoints import Checkpoints
    from unseen_ray.training.loop.trainer import Trainer
    from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder

__all__ = ["CheckpointWriter", "TrainState", "resumed"]

logger = logging.getLogger(__name__)

_WITHIN_S = 10.0  # an epoch that takes less is done again rather than kept halfway
_AGREED_STEPS = 16
_SUMS, _CPU, _GPU = "within.sums", "within.cpu", "within.gpu"


@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """Where a fit stands.

    Attributes:
        stats: of the last whole epoch, `seconds` with what was spent since.
        steps: of the epoch that comes after it, those that are done.
        sums: (2,) float32 their losses and right answers, added up; None between epochs.
        generators: states of torch's generators by name; empty between epochs, which seed them.
        others: sums and generators of the other workers of the fit, by the names of a checkpoint.
    """

    stats: EpochStats
    steps: int = 0
    sums: Tensor | None = None
    generators: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def within(cls, stats: EpochStats, steps: int, sums: Tensor, device: torch.device) -> TrainState:
        """Within an epoch, with the generators as they are."""
        generators = {_CPU: torch.get_rng_state()}
        if device.type == "cuda":
            generators[_GPU] = torch.cuda.get_rng_state(device)
        return cls(stats, steps, sums, generators)

    def restore_generators(self, device: torch.device) -> None:
        """Put torch's generators where they were; nothing happens between epochs."""
        if _CPU in self.generators:
            torch.set_rng_state(self.generators[_CPU])
        if _GPU in self.generators and device.type == "cuda":
            torch.cuda.set_rng_state(self.generators[_GPU], device)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the learner's."""
        return {} if self.sums is None else {_SUMS: self.sums, **self.generators, **self.others}

    def gathered(self, share: Share) -> TrainState:
        """Itself, with what the other workers of the fit have; all of them call it at the same step."""
        if share.workers == 1 or self.sums is None:
            return self
        others: dict[str, Tensor] = {}
        for name, own in {_SUMS: self.sums, **self.generators}.items():
            there = [torch.empty_like(own, device=self.sums.device) for _ in range(share.workers)]
            torch.distributed.all_gather(there, own.to(self.sums.device))
            others |= {_of_worker(name, rank): each.cpu() for rank, each in enumerate(there) if rank}
        return replace(self, others=others)


def _of_worker(name: str, rank: int) -> str:
    """What a checkpoint calls what it keeps of a worker."""
    return f"{name}.{rank}" if rank else name


@dataclass(slots=True, eq=False)
class CheckpointWriter:
    """Writes the checkpoints of a fit, where they are due.

    Args:
        learner: what is trained.
        checkpoints: where to.
        share: this worker's part of the fit; the first worker writes.
        recorder: what is scored over epochs; None for nothing.
    """

    learner: Trainer
    checkpoints: Checkpoints
    share: Share
    recorder: TrajectoryRecorder | None = None
    _kept: float = field(init=False, default_factory=time.monotonic)

    def due_within(self, step: int, device: torch.device) -> bool:
        """Whether the epoch has gone on for so long since the last checkpoint that what is done of it should be kept.

        The workers of a fit agree on it, the first one's word, every few steps.
        """
        if self.share.workers == 1:
            return self._is_due()
        if (step + 1) % _AGREED_STEPS:
            return False
        word = torch.tensor([self.share.rank == 0 and self._is_due()], dtype=torch.int32, device=device)
        torch.distributed.broadcast(word, 0)
        return bool(word)

    def _is_due(self) -> bool:
        if time.monotonic() - self._kept < _WITHIN_S:
            return False
        return self.recorder is None or self.recorder.may_stop_within()

    def write(self, stand: TrainState) -> None:
        """Write a checkpoint, unless writing would slow the fit down or it could not go on from there."""
        stats, stand = stand.stats, stand.gathered(self.share)
        self._kept = time.monotonic()
        if self.share.rank:
            return
        if self.recorder is not None and not stand.steps and not self.recorder.may_stop(stats.epoch):
            return
        if stats.epoch < stats.epochs and not self.checkpoints.due(stats.trained_s):
            return
        position = {**asdict(stats), "steps": stand.steps, "scale": self.learner.scale()}
        tensors = {**self.learner.tensors(), **stand.tensors()}
        if self.recorder is not None:
            tensors |= self.recorder.tensors()
            position["recorded"] = self.recorder.key()
        self.checkpoints.write(tensors, position)


def resumed(
    learner: Trainer,
    checkpoints: Checkpoints,
    fresh: TrainState,
    *,
    rank: int = 0,
    recorder: TrajectoryRecorder | None = None,
) -> TrainState:
    """Where the last checkpoint stands, the learner brought there; `fresh` where there is none that fits.

    Args:
        learner: of the model that is trained.
        checkpoints: the fit's.
        fresh: its beginning.
        rank: of this worker among those of the fit.
        recorder: what is scored over epochs; None for nothing.
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
        own = {name: _of_worker(name, rank) for name in (_CPU, _GPU)}
        generators = {name: tensors[kept] for name, kept in own.items() if kept in tensors}
        stand = TrainState(stats, steps, tensors[_of_worker(_SUMS, rank)], generators) if steps else TrainState(stats)
        learner.restore(tensors, scale)
        if recorder is not None:
            recorder.restore(tensors, stats.epoch)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("the checkpoint %s fits no more (%s); training from the start", checkpoints.key[:8], error)
        return fresh
    within = f", {steps} steps into the next one" if steps else ""
    logger.info("going on after epoch %d of %d%s", stats.epoch, stats.epochs, within)
    return stand
