"""What a Python user calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unseen_ray import exporting, offline, reselect
from unseen_ray.comparison import without_nan
from unseen_ray.config import PruneConfig
from unseen_ray.core.population import make_population
from unseen_ray.errors import UnseenError
from unseen_ray.measuring import evaluate
from unseen_ray.packing import source_of
from unseen_ray.planning import RunPlan, plan_run, with_model
from unseen_ray.preflight import check_functions
from unseen_ray.reporting.facts import gather
from unseen_ray.run import Run, load_run
from unseen_ray.running import PruneResult, load, prune
from unseen_ray.scoring import score_name
from unseen_ray.sources import Source, SourceInfo, open_source, source_ref
from unseen_ray.weights import with_init

if TYPE_CHECKING:
    from torch.utils.data import Subset

REPORT = "report.html"

__all__ = [
    "PruneResult",
    "evaluate",
    "export",
    "load",
    "plan",
    "plan_values",
    "prune",
    "report",
    "report_values",
    "score",
    "select",
    "torch_subset",
]


def plan(config: PruneConfig) -> tuple[RunPlan, SourceInfo, PruneConfig]:
    """Work out what a run would do; starts nothing and loads neither torch nor ray.

    Returns:
        The plan, what is known of the source, and the configuration with its model named.

    Raises:
        ConfigError: if the run cannot be done on this data.
        DataError: if the data cannot be read.
    """
    planned, source, config = _planned(config)
    return planned, source.info, config


def plan_values(
    config: PruneConfig,
    *,
    workers: int | None = None,
    images_per_s: float | None = None,
    scoring_images_per_s: float | None = None,
    decode_images_per_s: float | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """What `unseen-ray plan --json` prints: sizes, and what the run takes of a cluster, in all and of each stage.

    Args:
        config: the run.
        workers: GPUs, or CPU workers, that the cluster has; None to leave it open.
        images_per_s: that one worker trains.
        scoring_images_per_s: that one worker scores; None for three times as many.
        decode_images_per_s: that one core decodes.
        measure: whether to measure here what of these is not given, and `out`, which is left as it was; loads torch.

    Raises:
        ConfigError, DataError: as `plan`; also if a rate is not above 0.
    """
    from unseen_ray import estimating
    from unseen_ray.summary import plan as summary

    asked = {"training": images_per_s, "scoring": scoring_images_per_s, "decode": decode_images_per_s}
    estimating.check_asked(workers, asked)
    planned, source, config = _planned(config)
    estimate = estimating.estimate(planned, source, config, workers=workers, given=asked, measure=measure)
    return summary.plan_values(
        planned, source.info, config, estimate.rates, cluster=estimate.cluster, needs=estimate.needs
    )


def _planned(config: PruneConfig) -> tuple[RunPlan, Source, PruneConfig]:
    source = open_source(source_ref(config.source))
    info = source.info
    check_functions(config)
    config = with_init(with_model(config, info.size_px))
    population = make_population(info.labels_N, info.num_classes, holdout=config.holdout, seed=config.seed)
    return plan_run(config, population), source, config


def select(
    result: PruneResult | str | os.PathLike[str],
    *,
    keep: float,
    out: str | os.PathLike[str],
    score: Any = None,
    policy: Any = None,
    guard: Any = None,
    combine: str | None = None,
) -> PruneResult:
    """Choose again from stage 0 of a finished run, in one shot and without training; see `reselect.reselect`."""
    path = result.path if isinstance(result, PruneResult) else os.fspath(result)
    run = reselect.reselect(
        path, keep=keep, out=os.fspath(out), score=score, policy=policy, guard=guard, combine=combine
    )
    return PruneResult(run, PruneConfig.from_json(run.manifest.asked))


def score(
    probs: Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    folds: str | os.PathLike[str] | None = None,
    source: Any = None,
    **fields: Any,
) -> dict[str, Any]:
    """Score samples by out-of-fold probabilities of one's own, for `select` to choose by; see `offline.score_probs`.

    Returns:
        `out`, `samples`, `classes`, `votes` of a sample, `accuracy` of the votes, and the deciding `score`.
    """
    run = offline.score_probs(
        [os.fspath(path) for path in probs],
        os.fspath(labels),
        out=os.fspath(out),
        folds=None if folds is None else os.fspath(folds),
        source=source,
        **fields,
    )
    (stage,) = run.manifest.stages
    return {
        "out": run.folder.root,
        "samples": run.manifest.source["num_samples"],
        "classes": run.manifest.source["num_classes"],
        "votes": stage["scored"] // stage["candidates"],
        "accuracy": stage["accuracy"],
        "score": score_name(run.manifest.config["score"]),
    }


def export(result: PruneResult | str | os.PathLike[str], to: str | os.PathLike[str]) -> int:
    """Write the coreset as .npy (ids), .txt (keys), .csv or .parquet, or the pruned data set itself into a folder; see
    `exporting.export`. Returns how many samples it holds.
    """
    return exporting.export(_run_of(result), os.fspath(to))


def report(result: PruneResult | str | os.PathLike[str]) -> str:
    """Write one self-contained HTML page on a finished run into its folder; returns its path.

    What it shows of evaluations, of the fitting baseline and of other choices is what `evaluate` has left in the folder.
    Images are shown where the source can be opened without importing anything that the folder names.
    """
    from unseen_ray.reporting.page import render
    from unseen_ray.reporting.thumbnails import thumbnails

    run = _run_of(result)
    facts = gather(run)
    source, reason = _source_to_show(run)
    shots = {} if source is None else thumbnails(facts, source)
    run.folder.write(REPORT, render(facts, shots, reason).encode())
    return run.folder.path(REPORT)


def report_values(result: PruneResult | str | os.PathLike[str]) -> dict[str, Any]:
    """Every number of the report, as JSON can hold it."""
    from unseen_ray.reporting.thumbnails import picked

    facts = gather(_run_of(result))
    return {**facts.values, "images": without_nan(picked(facts))}


def torch_subset(result: PruneResult, transform: Callable[[Any], Any] | None = None) -> Subset[tuple[Any, int]]:
    """The coreset as a torch Subset of the source's (PIL image, label) pairs.

    Args:
        result: a finished run.
        transform: applied to each image.
    """
    from unseen_ray.data.torch_dataset import subset_of

    return subset_of(open_source(source_ref(result.config.source)), result.coreset.ids, transform)


def _run_of(result: PruneResult | str | os.PathLike[str]) -> Run:
    return result.run if isinstance(result, PruneResult) else load_run(os.fspath(result))


def _source_to_show(run: Run) -> tuple[Source | None, str]:
    """The run's source, or why its images are not shown."""
    try:
        return source_of(run), ""
    except UnseenError as error:
        return None, f"Images are not shown: {error}"
