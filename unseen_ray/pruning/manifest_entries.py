"""What a run's manifest says of its data, its stages and its cost."""

from __future__ import annotations

import logging

import numpy as np

from unseen_ray.core.arrays import IdArray
from unseen_ray.core.samples.population import Population
from unseen_ray.core.schedule import Stage
from unseen_ray.data.sources.registry import Source, SourceInfo
from unseen_ray.pruning.merge import StageSummary
from unseen_ray.runs.entries import Cost, Receipt, SourceEntry, StageCost, StageEntry

__all__ = ["cost_of", "source_entry", "stage_entry", "warn_of_chance", "with_population"]

logger = logging.getLogger(__name__)

_SUMMED = ("fit_seconds", "gpu_seconds", "trained", "image_passes", "scored")


def source_entry(info: SourceInfo) -> SourceEntry:
    """What the manifest says of a source."""
    return SourceEntry(
        name=info.name,
        fingerprint=info.fingerprint,
        num_samples=len(info),
        num_classes=info.num_classes,
        class_names=list(info.class_names),
        size_px=info.size_px,
        rows=len(info),
    )


def with_population(entry: SourceEntry, population: Population, source: Source, skipped: IdArray) -> SourceEntry:
    """The same with the samples that a run chooses from."""
    found = {
        "num_samples": len(population),
        "holdout": len(population.holdout_ids),
        "skipped": source.keys(skipped.tolist()),
        "skipped_ids": skipped.tolist(),
        "class_counts": population.class_counts().tolist(),
    }
    return entry.model_copy(update=found)


def stage_entry(stage: Stage, summary: StageSummary, receipts: list[Receipt], seconds: float) -> StageEntry:
    """What the manifest says of a finished stage.

    Args:
        stage: its sizes.
        summary: of its merged scores.
        receipts: of its tasks.
        seconds: what it took on the clock.
    """
    guarded = {} if summary.suspects is None else {"suspects": summary.suspects}
    return StageEntry(
        index=stage.index,
        target=stage.target,
        added=stage.added,
        candidates=summary.rows,
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


def warn_of_chance(entry: StageEntry, summary: StageSummary) -> None:
    """Say it if a stage's models are hardly better than naming the largest class."""
    largest = float(summary.labels_C.max() / summary.rows)
    if entry.vote_accuracy < min(2 * largest, 0.9 * largest + 0.1):
        logger.warning(
            "the models of stage %d are right on %.1f %% of what they scored, and always naming the largest class on %.1f %%: "
            "their scores mean little. Train longer (recipe.epochs), with fewer folds, or by another recipe.",
            entry.index,
            100 * entry.vote_accuracy,
            100 * largest,
        )


def cost_of(stages: list[StageEntry], seconds: float) -> Cost:
    """The cost of a run of these stages, in all and each."""
    return Cost(
        seconds=seconds,
        **{name: round(sum(getattr(stage, name) for stage in stages), 3) for name in _SUMMED},
        stages=[StageCost(**stage.model_dump(include={"index", "seconds", *_SUMMED})) for stage in stages],
    )
