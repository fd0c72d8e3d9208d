"""The entries of a manifest: a run's data, its tasks' receipts, its stages and their cost. JSON has the same fields."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from unseen_ray.core.samples.dealing import digest_of_groups
from unseen_ray.plugins import named

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.core.samples.population import Population
    from unseen_ray.core.schedule import Stage
    from unseen_ray.data.sources.info import Source, SourceInfo

__all__ = [
    "Cost",
    "Entry",
    "PolicyTrial",
    "Receipt",
    "SourceEntry",
    "StageEntry",
    "StageSummary",
    "cost_of",
    "source_entry",
    "stage_entry",
    "with_population",
]

logger = logging.getLogger(__name__)

_MOST = 2**63 - 1  # what an int64 holds


def _within_int64(value: float) -> float:
    if abs(value) > _MOST:
        raise ValueError("it is beyond what 64 bits hold")
    return value


def _counted(value: float) -> float:
    if value < 0 or value > _MOST:  # NaN where an older receipt lacks its seconds
        raise ValueError(f"it must be a number from 0 to {_MOST}")
    return value


Count = Annotated[int, AfterValidator(_counted)]
Amount = Annotated[int | float, AfterValidator(_counted)]  # a union, so that an int stays one on its way through JSON
Number = Annotated[int | float, AfterValidator(_within_int64)]
Unknown = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    AfterValidator(_counted),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]
"""A number that may be NaN; JSON has no NaN, so it is null there."""
Named = Annotated[Any, AfterValidator(named)]


class Entry(BaseModel):
    """An object of a manifest. Fields that another version wrote are kept; fields that it did not write are not added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    # A checksum is stored with the JSON, and tests compare bytes: reading and writing an old manifest must not change it.
    @model_serializer(mode="wrap")
    def _as_it_was_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name in self.model_fields_set}

    def to_json(self) -> dict[str, Any]:
        """As stored in the manifest."""
        return self.model_dump()

    def __getitem__(self, name: str) -> Any:
        """A field as stored in the manifest, for scripts that read `manifest.stages[0]["accuracy"]`."""
        return self.to_json()[name]


class SourceEntry(Entry):
    """The data of a run.

    Attributes:
        name: the source's.
        fingerprint: of its labels and files.
        sample: of some of their bytes; empty if unknown.
        times: of when they were modified; empty if unknown.
        groups: of the rows that belong together; empty without any.
        num_samples: N; once the run has begun, of the samples that it chooses from.
        num_classes: C.
        class_names: C names, or none.
        size_px: height and width of the images.
        rows: of the source.
        holdout: how many samples are set aside.
        skipped, skipped_ids: keys and row numbers of samples that cannot be read.
        copies: rows that are left out because another one of their group takes part.
        class_counts: (C,) samples of each class that the run chooses from.
    """

    name: str = ""
    fingerprint: str
    sample: str = ""
    times: str = ""
    groups: str = ""
    num_samples: Count
    num_classes: Count
    class_names: list[str]
    size_px: Count = 0
    rows: Count = 0
    holdout: Count = 0
    skipped: list[str] = []
    skipped_ids: list[Count] = []
    copies: Count = 0
    class_counts: list[Count] = []

    @model_validator(mode="after")
    def _fits_together(self) -> SourceEntry:
        for name in ("class_names", "class_counts"):
            if (found := getattr(self, name)) and len(found) != self.num_classes:
                raise ValueError(f"{name} holds {len(found)} entries for {self.num_classes} classes")
        return self

    def is_same_data(self, info: SourceInfo | SourceEntry) -> bool:
        """Whether a source is the one of this entry, as far as both know of its content; a warning if it may have changed."""
        if self.fingerprint != info.fingerprint or (self.sample and info.sample and self.sample != info.sample):
            return False
        if self.times and info.times and self.times != info.times:
            logger.warning(
                "files of source %s were modified since the run began. A sample of their bytes is the same; if others changed, prune "
                "again in a new folder.",
                info.name,
            )
        return True


class Receipt(Entry):
    """The record of a finished scoring task, whose votes are on storage.

    Attributes:
        index: place in the stage.
        task: its name.
        files: SHA-256 of each file it wrote, by name.
        trained: samples it trained on.
        scored: samples it scored.
        image_passes: images trained on, over all epochs.
        accuracy: on the scored samples, 0 to 1.
        train_accuracy: of the last training epoch; NaN for a user's own fit.
        seconds: from start to finish.
        worker_seconds: the same, summed over the workers that shared the fit, and of a shared GPU its part.
        gpu_seconds: of these, on GPUs.
        node: host it ran on.
        device: `cpu` or the GPU.
        reused: whether an earlier start of the run, or a worker that was taken for dead, had finished it.
    """

    index: Count
    task: str = ""
    files: dict[str, str] = {}
    trained: Count = 0
    scored: Count = 0
    image_passes: Count = 0
    accuracy: Unknown = math.nan
    train_accuracy: Unknown = math.nan
    seconds: Unknown = math.nan
    worker_seconds: Unknown = math.nan
    gpu_seconds: Unknown = math.nan
    node: str = ""
    device: str = ""
    reused: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Receipt:
        """A receipt from `to_json`, with all its fields.

        Raises:
            ValueError: if a field is missing or of another kind.
        """
        # Votes are trusted by their receipt, so one that is cut short must not pass with defaults. `reused` may be missing.
        if missing := cls.model_fields.keys() - values.keys() - {"reused"}:
            raise ValueError(f"a receipt lacks {', '.join(sorted(missing))}")
        return cls.model_validate(values)


class PolicyTrial(Entry):
    """What a candidate of `policy: auto` reached in trials.

    Attributes:
        policy: the candidate.
        seeds: how many trainings, each paired with one on a random subset.
        gain: mean accuracy less that of random, 0 to 1.
        final_gain: of the best candidate, the same over the seeds of the last round alone.
        final_low: the lower end of its 95 % interval.
    """

    policy: Named
    seeds: Count
    gain: Number
    final_gain: Number | None = None
    final_low: Number | None = None


class StageEntry(Entry):
    """A finished stage.

    Attributes:
        index: which.
        target, added: samples kept after it, and by it.
        candidates: how many it chose from.
        accuracy: mean over all models, each on the samples that it scored.
        vote_accuracy: of the majority votes: what summaries show, and what `policy: auto` decides by.
        seconds: of wall time.
        fit_seconds, gpu_seconds: of workers, and of GPUs.
        trained, image_passes, scored: samples, over all tasks.
        suspects: how many labels the guard suspects; None without a guard.
        tasks: their receipts.
        policy: that `policy: auto` used, by its rule or, in this stage and those after it, by trials; None for other policies.
        trials: what each candidate reached.
    """

    index: Count
    target: Count
    added: Count
    candidates: Count = 0
    accuracy: Number = math.nan
    vote_accuracy: Number = math.nan
    seconds: Amount = 0.0
    fit_seconds: Amount = 0.0
    gpu_seconds: Amount = 0.0
    trained: Count = 0
    image_passes: Count = 0
    scored: Count = 0
    suspects: Count | None = None
    tasks: list[Receipt] = []
    policy: Named = None
    trials: list[PolicyTrial] = []

    def sizes(self) -> dict[str, Any]:
        """All fields except the tasks, as JSON."""
        return self.model_dump(exclude={"tasks"})


class Cost(Entry):
    """The cost of a run.

    Attributes:
        seconds: of wall time, over all starts up to the last finished stage.
        waiting_seconds: of these, with no worker to train on, mostly because other work on the cluster held all; not there if none.
        fit_seconds, gpu_seconds, trained, image_passes, scored: sums over the stages; None until the run is finished.
        stages: each one's.
        bill: the cost of the choice as a share of one training of the run's model on all samples, by the images that go through
            training and scoring; not there if it is unknown.
        chosen_from_s: for `select`, worker seconds that the votes took in the run that was selected from.
    """

    seconds: Amount = 0.0
    waiting_seconds: Amount | None = None
    fit_seconds: Amount | None = None
    gpu_seconds: Amount | None = None
    trained: Count | None = None
    image_passes: Count | None = None
    scored: Count | None = None
    stages: list[dict[str, Amount]] = []
    bill: Amount | None = None
    chosen_from_s: Amount | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageSummary:
    """Counts of a merged table of scores.

    Attributes:
        rows: candidates.
        right: candidates whose majority vote is their class.
        labels_C: (C,) candidates of each class.
        suspects: of the guard; None without a guard.
    """

    rows: int
    right: int
    labels_C: IntArray
    suspects: int | None = None


_SUMMED = ("fit_seconds", "gpu_seconds", "trained", "image_passes", "scored")


def source_entry(info: SourceInfo) -> SourceEntry:
    """The entry for a source."""
    return SourceEntry(
        name=info.name,
        fingerprint=info.fingerprint,
        sample=info.sample,
        times=info.times,
        **({"groups": groups} if (groups := digest_of_groups(info.groups)) else {}),
        num_samples=len(info),
        num_classes=info.num_classes,
        class_names=list(info.class_names),
        size_px=info.size_px,
        rows=len(info),
    )


def with_population(entry: SourceEntry, population: Population, source: Source, skipped: IdArray) -> SourceEntry:
    """The entry with the samples that a run chooses from."""
    found = {
        "num_samples": len(population),
        "holdout": len(population.holdout_ids),
        "skipped": source.keys(skipped.tolist()),
        "skipped_ids": skipped.tolist(),
        "class_counts": population.class_counts().tolist(),
    }
    if len(population.copy_ids):
        found["copies"] = len(population.copy_ids)
    return entry.model_copy(update=found)


def stage_entry(stage: Stage, summary: StageSummary, receipts: list[Receipt], seconds: float) -> StageEntry:
    """The entry for a finished stage.

    Args:
        stage: its sizes.
        summary: of its merged scores.
        receipts: of its tasks.
        seconds: of wall time.
    """
    guarded = {} if summary.suspects is None else {"suspects": summary.suspects}
    return StageEntry(
        index=stage.index,
        target=stage.target,
        added=stage.added,
        candidates=summary.rows,
        # Weighted, because models may score unequal numbers of samples.
        accuracy=float(np.average([r.accuracy for r in receipts], weights=[r.scored for r in receipts])),
        vote_accuracy=summary.right / summary.rows,
        seconds=round(seconds, 3),
        fit_seconds=round(sum(r.worker_seconds for r in receipts), 3),
        gpu_seconds=round(sum(r.gpu_seconds for r in receipts), 3),
        trained=sum(r.trained for r in receipts),
        image_passes=sum(r.image_passes for r in receipts),
        scored=sum(r.scored for r in receipts),
        tasks=receipts,
        **guarded,
    )


def cost_of(stages: list[StageEntry], elapsed: Cost, *, bill: float | None) -> Cost:
    """The cost of a run that took this time for these stages, in total and per stage; `bill` is that of its plan."""
    return Cost(
        **({} if bill is None else {"bill": round(bill, 4)}),
        **elapsed.to_json(),
        **{name: round(sum(getattr(stage, name) for stage in stages), 3) for name in _SUMMED},
        stages=[stage.model_dump(include={"index", "seconds", *_SUMMED}) for stage in stages],
    )
