"""Where a fit stands, between epochs or within one: what is put into its checkpoints, and how it goes on from them."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from unseen_ray.training.checkpoint import Checkpoints
from unseen_ray.training.epochs import EpochStats
from unseen_ray.training.learner import Learner
from unseen_ray.training.recorder import Recorder

__all__ = ["CheckpointWriter", "Stand", "resumed"]

logger = logging.getLogger(__name__)

_WITHIN_S = 10.0  # an epoch that takes less is done again rather than kept halfway
_SUMS, _CPU, _GPU = "within.sums", "within.cpu", "within.gpu"


@dataclass(frozen=True, slots=True, eq=False)
class Stand:
    """Where a fit stands.

    Attributes:
        stats: of the last whole epoch, `seconds` with what was spent since.
        steps: of the epoch that comes after it, those that are done.
        sums: (2,) float32 their losses and right answers, added up; None between epochs.
        generators: states of torch's generators by name; empty between epochs, which seed them.
    """

    stats: EpochStats
    steps: int = 0
    sums: Tensor | None = None
    generators: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def within(cls, stats: EpochStats, steps: int, sums: Tensor, device: torch.device) -> Stand:
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
        return {} if self.sums is None else {_SUMS: self.sums, **self.generators}


@dataclass(slots=True, eq=False)
class CheckpointWriter:
    """Writes the checkpoints of a fit, where they are due.

    Args:
        learner: what is trained.
        checkpoints: where to.
        recorder: what is scored over epochs; None for nothing.
    """

    learner: Learner
    checkpoints: Checkpoints
    recorder: Recorder | None = None
    _kept: float = field(init=False, default_factory=time.monotonic)

    def due_within(self) -> bool:
        """Whether the epoch has gone on for so long since the last checkpoint that what is done of it should be kept."""
        if time.monotonic() - self._kept < _WITHIN_S:
            return False
        return self.recorder is None or self.recorder.may_stop_within()

    def write(self, stand: Stand) -> None:
        """Write a checkpoint, unless writing would slow the fit down or it could not go on from there."""
        stats = stand.stats
        self._kept = time.monotonic()
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


def resumed(learner: Learner, checkpoints: Checkpoints, fresh: Stand, recorder: Recorder | None = None) -> Stand:
    """Where the last checkpoint stands, the learner brought there; `fresh` where there is none that fits."""
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
        generators = {name: tensors[name] for name in (_CPU, _GPU) if name in tensors}
        stand = Stand(stats, steps, tensors[_SUMS], generators) if steps else Stand(stats)
        learner.restore(tensors, scale)
        if recorder is not None:
            recorder.restore(tensors, stats.epoch)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("the checkpoint %s fits no more (%s); training from the start", checkpoints.key[:8], error)
        return fresh
    within = f", {steps} steps into the next one" if steps else ""
    logger.info("going on after epoch %d of %d%s", stats.epoch, stats.epochs, within)
    return stand
