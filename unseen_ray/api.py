"""What a Python user calls: each function picks an executor and hands over to the layer below."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray import exporting, pipeline, reselect
from unseen_ray.comparison import Budget, Evaluation, without_nan
from unseen_ray.config import EXECUTOR_FIELDS, PruneConfig
from unseen_ray.core.coreset import Coreset
from unseen_ray.core.population import make_population
from unseen_ray.errors import ConfigError, UnseenError
from unseen_ray.evaluation import DEFAULT_AGAINST, DEFAULT_SEEDS, Chosen, check_evaluable
from unseen_ray.evaluation import evaluate as run_evaluation
from unseen_ray.executor import Executor, Observer
from unseen_ray.manifest import Manifest
from unseen_ray.planning import RunPlan, plan_run, with_model
from unseen_ray.recipe import recipe_values
from unseen_ray.reporting.facts import gather
from unseen_ray.resolve import is_target, plug_of
from unseen_ray.run import CORESET, Run, choosing_s, coreset_of, load_run
from unseen_ray.sources import Source, SourceInfo, open_source, source_ref
from unseen_ray.tracking import tracked
from unseen_ray.votes import scores_file

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data
    from torch.utils.data import Subset

REPORT = "report.html"
_EVALUATE_CHANGES = ("model", "recipe", "threads", "gpus_per_fit", "log_to", *EXECUTOR_FIELDS)

__all__ = [
    "PruneResult",
    "evaluate",
    "executor_for",
    "export",
    "load",
    "plan",
    "prune",
    "report",
    "report_values",
    "select",
    "torch_subset",
]


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A finished run.

    Attributes:
        run: its folder and manifest.
        config: what was asked for.
    """

    run: Run
    config: PruneConfig

    def __repr__(self) -> str:
        source, kept = self.manifest.source, sum(stage["added"] for stage in self.manifest.stages) or len(self.coreset)
        return f"PruneResult({self.path}: {kept:,} of {source['num_samples']:,} samples of {source['name']})"

    @property
    def path(self) -> str:
        """The run's folder."""
        return self.run.folder.root

    @property
    def manifest(self) -> Manifest:
        """What the folder holds, what made it, and what it cost."""
        return self.run.manifest

    @cached_property
    def coreset(self) -> Coreset:
        """The kept ids, the stage in which each was picked, and the score by which it was."""
        return coreset_of(self.run.folder.read_table(CORESET))

    @cached_property
    def scores(self) -> pa.Table:
        """Stage 0: one row a candidate, sorted by id; see `scores.parquet` in README."""
        return self.run.folder.read_table(scores_file(0))

    def to_ray_dataset(self) -> ray.data.Dataset:
        """The scores of stage 0 as a Ray Dataset, on the cluster that this process is connected to, else a private one."""
        import ray.data

        from unseen_ray.distributed.session import ensure_session

        ensure_session()
        return ray.data.from_arrow(self.scores)


def plan(config: PruneConfig) -> tuple[RunPlan, SourceInfo, PruneConfig]:
    """Work out what a run would do; starts nothing and loads neither torch nor ray.

    Returns:
        The plan, what is known of the source, and the configuration with its model named.

    Raises:
        ConfigError: if the run cannot be done on this data.
        DataError: if the data cannot be read.
    """
    info = open_source(source_ref(config.source)).info
    pipeline.check_functions(config)
    config = with_model(config, info.size_px)
    population = make_population(info.labels_N, info.num_classes, holdout=config.holdout, seed=config.seed)
    return plan_run(config, population), info, config


def prune(config: PruneConfig, *, on_event: Observer | None = None) -> PruneResult:
    """Do a run, or what is left of it.

    Args:
        config: what to prune, and how; `out` names the folder.
        on_event: is told of progress (`job.Progress`) and of finished tasks (`job.Receipt`).

    Raises:
        ConfigError, DataError: before any training, where it can be known.
        UnseenError: if the run failed; the same call resumes it.
    """
    tasks = config.folds * config.repeats if config.mode == "unseen" else config.repeats
    with executor_for(config, tasks) as executor, tracked(config, on_event or _ignore) as observer:
        run = pipeline.prune(config, executor=executor, on_event=observer)
    return PruneResult(run, config)


def load(path: str | os.PathLike[str]) -> PruneResult:
    """A finished run from its folder; imports nothing that the folder names."""
    run = load_run(os.fspath(path))
    return PruneResult(run, PruneConfig.from_json({**run.manifest.asked, "out": os.fspath(path)}))


def select(
    result: PruneResult | str | os.PathLike[str],
    *,
    keep: float,
    out: str | os.PathLike[str],
    score: Any = None,
    policy: Any = None,
    combine: str | None = None,
) -> PruneResult:
    """Choose again from stage 0 of a finished run, in one shot and without training; see `reselect.reselect`."""
    path = result.path if isinstance(result, PruneResult) else os.fspath(result)
    run = reselect.reselect(path, keep=keep, out=os.fspath(out), score=score, policy=policy, combine=combine)
    return PruneResult(run, PruneConfig.from_json(run.manifest.asked))


def evaluate(
    result: PruneResult | str | os.PathLike[str],
    *,
    test: Any = None,
    seeds: int = DEFAULT_SEEDS,
    against: Sequence[str] = DEFAULT_AGAINST,
    selections: int = 1,
    budget: Budget = "epochs",
    on_event: Observer | None = None,
    **changes: Any,
) -> Evaluation:
    """Train the same recipe on the coreset and on baselines, and measure after the last epoch.

    Args:
        result: a finished run, or its folder.
        test: a source with the same classes; None for the run's `test`, else its holdout.
        seeds: trainings of each choice of an arm's subset.
        against: baselines: `random` (another subset of the same size for each training), `random_matched` (the same with
            as many samples of each class as the coreset has), `full`, `fitting` (the coreset of the same configuration in
            `mode: fitting`, pruned first if it has not been).
        selections: how often the coreset is chosen: the run's own, and more by the same configuration with `seed` + 1,
            `seed` + 2, ..., pruned first in the run's folder `selections`.
        budget: `epochs`: every arm as many passes over its own samples; `iterations`: every arm as many steps as all
            samples get.
        on_event: is told of progress.
        **changes: `model`, `recipe` (a mapping without `use` changes the run's own), `threads`, `log_to`, and where to run:
            `executor`, `address`, `cpus_per_fold`, `gpus_per_fold`, `max_retries`, `wait_s`.

    Raises:
        ConfigError: if there is nothing to measure on, or a baseline is unknown.
    """
    done = result if isinstance(result, PruneResult) else load(result)
    config = _evaluated(done, changes, test)
    check_evaluable(config, against=against, seeds=seeds, selections=selections, budget=budget)
    runs = [done, *(_again(done, config, number, on_event) for number in range(1, selections))]
    chosen = {"coreset": _chosen(runs)}
    if "fitting" in against:
        chosen["fitting"] = _chosen([_fitting(run, config, on_event) for run in runs])
    tasks = seeds * selections * (1 + len(against))
    with executor_for(config, tasks) as executor, tracked(config, on_event or _ignore) as observer:
        return run_evaluation(
            config,
            chosen,
            against=against,
            skipped_ids=np.array(done.manifest.source["skipped_ids"], np.int64),
            seeds=seeds,
            budget=budget,
            executor=executor,
            on_event=observer,
        )


def export(result: PruneResult | str | os.PathLike[str], to: str | os.PathLike[str]) -> int:
    """Write the coreset as .npy (ids), .txt (keys), .csv or .parquet; returns how many samples it holds."""
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


def _run_of(result: PruneResult | str | os.PathLike[str]) -> Run:
    return result.run if isinstance(result, PruneResult) else load_run(os.fspath(result))


def _source_to_show(run: Run) -> tuple[Source | None, str]:
    """The run's source, or why its images are not shown."""
    asked = run.manifest.asked["source"]
    if is_target(plug_of(asked)[0]):
        return None, "The source is a function of its user's own, which is not called for a page."
    try:
        source = open_source(source_ref(asked))
    except UnseenError as error:
        return None, f"The source cannot be opened here: {error}"
    if source.info.fingerprint != run.manifest.source["fingerprint"]:
        return None, "The source has changed since."
    return source, ""


def torch_subset(result: PruneResult, transform: Callable[[Any], Any] | None = None) -> Subset[tuple[Any, int]]:
    """The coreset as a torch Subset of the source's (PIL image, label) pairs.

    Args:
        result: a finished run.
        transform: applied to each image.
    """
    from unseen_ray.data.torch_dataset import subset_of

    return subset_of(open_source(source_ref(result.config.source)), result.coreset.ids, transform)


@contextlib.contextmanager
def executor_for(config: PruneConfig, tasks: int) -> Iterator[Executor]:
    """What a configuration asks to work on, closed in the end; `tasks` is how many could run side by side."""
    if config.executor == "local":
        from unseen_ray.local import LocalExecutor

        executor: Executor = LocalExecutor()
    else:
        from unseen_ray.distributed.executor import RayExecutor

        executor = RayExecutor(address=config.address, tasks=tasks)
    try:
        yield executor
    finally:
        executor.close()


def _evaluated(done: PruneResult, changes: dict[str, Any], test: Any) -> PruneConfig:
    """The run's configuration with the changes of an evaluation, on the data that the run pruned."""
    if unknown := sorted(changes.keys() - set(_EVALUATE_CHANGES)):
        raise ConfigError(f"evaluate takes no {unknown[0]!r}; it takes {', '.join(_EVALUATE_CHANGES)}.")
    asked = {**changes, "out": done.path} | ({"test": test} if test is not None else {})
    recipe = asked.get("recipe")
    if isinstance(recipe, dict) and "use" not in recipe:
        asked["recipe"] = recipe_values(recipe, base=done.config.recipe)
    if asked.get("executor") == "local":
        asked = {"address": None, "gpus_per_fit": 1, **asked}
    if done.config.fit is not None and "model" in changes:
        asked["fit"] = None
    config = done.config.changed(**asked)
    if recipe is None:
        precision = done.manifest.config["recipe"]["precision"]
        config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"precision": precision})})
    info = open_source(source_ref(config.source)).info
    if info.fingerprint != done.manifest.source["fingerprint"]:
        raise ConfigError(
            f"source {info.name} is not the data that {done.path} was pruned from: it has {len(info)} samples, there were "
            f"{done.manifest.source['rows']}, or their labels or files changed. Bring the data back, or prune again."
        )
    return with_model(config, info.size_px)


def _chosen(runs: Sequence[PruneResult]) -> Chosen:
    costs = [choosing_s(run.manifest) for run in runs]
    known = [cost for cost in costs if cost is not None]
    return Chosen(tuple(run.coreset.ids for run in runs), sum(known) / len(runs) if len(known) == len(runs) else None)


def _again(done: PruneResult, config: PruneConfig, number: int, on_event: Observer | None) -> PruneResult:
    """The coreset that the same configuration picks with another seed."""
    given = {**_given(done, config), "seed": done.config.seed + number}
    return prune(PruneConfig(**given, out=f"{done.path.rstrip('/')}/selections/{number:02d}"), on_event=on_event)


def _fitting(done: PruneResult, config: PruneConfig, on_event: Observer | None) -> PruneResult:
    """The coreset that the usual baseline picks: the run's own scores and policy, from models that saw what they score."""
    given = _given(done, config)
    for name in ("folds", "train_on", "stratify", "schedule"):
        given.pop(name, None)
    return prune(PruneConfig(**{**given, "mode": "fitting"}, out=f"{done.path.rstrip('/')}/fitting"), on_event=on_event)


def _given(done: PruneResult, config: PruneConfig) -> dict[str, Any]:
    """What the run was asked for, its folders apart, to be done where the evaluation runs."""
    given = {name: getattr(done.config, name) for name in done.config.model_fields_set - {"out", "reuse"}}
    if config.executor == "local":
        given.pop("gpus_per_fit", None)
    return given | {name: getattr(config, name) for name in ("log_to", *EXECUTOR_FIELDS)}


def _ignore(_: Any) -> None: ...
