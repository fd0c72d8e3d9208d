"""What a manifest says of a run's data, tasks, stages and cost, as values: on storage they are JSON objects of the same fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

__all__ = ["Cost", "Entry", "Receipt", "SourceEntry", "StageCost", "StageEntry"]

Number = int | float  # a union, so that an int stays one on its way through JSON
Unknown = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]
"""A number that may be NaN, for which JSON has no word: there it is null."""


class Entry(BaseModel):
    """An object of a manifest. Fields that another version wrote are kept, and those that it did not write are not added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_serializer(mode="wrap")
    def _as_it_was_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name in self.model_fields_set}

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return self.model_dump()

    def __getitem__(self, name: str) -> Any:
        """A field as it stands in the manifest, for scripts that read `manifest.stages[0]["accuracy"]`."""
        return self.to_json()[name]


class SourceEntry(Entry):
    """The data of a run.

    Attributes:
        name: the source's.
        fingerprint: of its labels and files.
        num_samples: N; once the run has begun, of the samples that it chooses from.
        num_classes: C.
        class_names: C names, or none.
        size_px: height and width of the images.
        rows: of the source.
        holdout: how many samples are set aside.
        skipped, skipped_ids: keys and row numbers of samples that cannot be read.
        class_counts: (C,) samples of each class that the run chooses from.
    """

    name: str = ""
    fingerprint: str
    num_samples: int
    num_classes: int
    class_names: list[str]
    size_px: int = 0
    rows: int = 0
    holdout: int = 0
    skipped: list[str] = []
    skipped_ids: list[int] = []
    class_counts: list[int] = []


class Receipt(Entry):
    """What a finished scoring task says of itself; its votes are on storage by then.

    Attributes:
        index: place in the stage.
        task: its name.
        files: SHA-256 of each file it wrote, by name.
        trained: samples it trained on.
        scored: samples it scored.
        image_passes: samples that went through training, over all epochs.
        accuracy: share of the scored samples that it got right.
        train_accuracy: of the last epoch, as trained; NaN where the user's own fit trains.
        seconds: from start to finish.
        worker_seconds: the same, added up over the workers that shared the fit.
        gpu_seconds: of these, on GPUs.
        node: host it ran on.
        device: `cpu` or the GPU.
        reused: whether an earlier start of the run had finished it, or a worker that was given up.
    """

    index: int
    task: str = ""
    files: dict[str, str] = {}
    trained: int = 0
    scored: int = 0
    image_passes: int = 0
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
        """What `to_json` described, whole.

        Raises:
            ValueError: if a field is missing or of another kind.
        """
        if missing := cls.model_fields.keys() - values.keys() - {"reused"}:
            raise ValueError(f"a receipt lacks {', '.join(sorted(missing))}")
        return cls.model_validate(values)


class StageEntry(Entry):
    """A finished stage.

    Attributes:
        index: which.
        target, added: samples kept after it, and by it.
        candidates: how many it chose from.
        accuracy: share of right answers, over all models and what they scored.
        vote_accuracy: the same of the classes that most votes name.
        seconds: on the clock.
        fit_seconds, gpu_seconds: of workers, and of these on GPUs.
        trained, image_passes, scored: samples, over all tasks.
        suspects: how many labels the guard suspects, where the run has one.
        tasks: their receipts.
    """

    index: int
    target: int
    added: int
    candidates: int = 0
    accuracy: Number = math.nan
    vote_accuracy: Number = math.nan
    seconds: Number = 0.0
    fit_seconds: Number = 0.0
    gpu_seconds: Number = 0.0
    trained: int = 0
    image_passes: int = 0
    scored: int = 0
    suspects: int | None = None
    tasks: list[Receipt] = []

    def sizes(self) -> dict[str, Any]:
        """Everything but its tasks, as JSON can hold it."""
        return self.model_dump(exclude={"tasks"})


class StageCost(Entry):
    """What a stage took; the fields are those of `StageEntry`."""

    index: int
    seconds: Number = 0.0
    fit_seconds: Number = 0.0
    gpu_seconds: Number = 0.0
    trained: int = 0
    image_passes: int = 0
    scored: int = 0


class Cost(Entry):
    """What a run took.

    Attributes:
        seconds: on the clock, over all starts up to the last finished stage.
        fit_seconds, gpu_seconds, trained, image_passes, scored: sums over the stages; None until the run is finished.
        stages: each one's.
        chosen_from_s: of a choice made again, seconds of workers that the votes took.
    """

    seconds: Number = 0.0
    fit_seconds: Number | None = None
    gpu_seconds: Number | None = None
    trained: int | None = None
    image_passes: int | None = None
    scored: int | None = None
    stages: list[StageCost] = []
    chosen_from_s: Number | None = None
