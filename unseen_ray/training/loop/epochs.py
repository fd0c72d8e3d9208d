"""The statistics of one pass over the training ids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["EpochStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStats:
    """One pass over the training ids.

    Attributes:
        epoch: from 1; 0 before the first.
        epochs: how many there will be.
        loss: mean training loss.
        accuracy: share of right predictions on the training batches, each before its step.
        images_per_s: training speed.
        seconds: of all epochs so far, over all starts of the fit.
        earlier_s: of these, spent by earlier starts or other workers.
        shared_s: seconds of all workers, where several share the fit.
    """

    epoch: int
    epochs: int
    loss: float = math.nan
    accuracy: float = math.nan
    images_per_s: float = math.nan
    seconds: float = 0.0
    earlier_s: float = 0.0
    shared_s: float = 0.0

    def after(self, seconds: float, workers: int) -> EpochStats:
        """The same after so many more seconds of so many workers."""
        return replace(self, seconds=self.seconds + seconds, shared_s=self.shared_s + seconds * workers)

    @property
    def trained_s(self) -> float:
        """Seconds of this start's epochs."""
        return self.seconds - self.earlier_s
