"""A sweep's trials on Ray Tune: each is a process that drives its runs and reserves almost nothing itself.

The fold actors of a trial request their GPUs from the cluster by a named scheduling strategy, which keeps them out of the
trial's placement group. Shared work is done once: the sweep decodes the pixels, and trials exchange trainings by a work cache.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unseen_ray.config.resolved import ResolvedRun, with_model
from unseen_ray.config.run import PruneConfig
from unseen_ray.data.sources.registry import Source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.execution.ray.capacity import Capacity, check_fits, fit_selectors, slots, survey, this_machine
from unseen_ray.execution.ray.connect import ray_session, starts_private
from unseen_ray.execution.ray.executor import RayExecutor
from unseen_ray.plugins import jsonable
from unseen_ray.pruning.pipeline import check
from unseen_ray.runs.result_cache import ClaimBook
from unseen_ray.runs.tasks import make_job
from unseen_ray.storage.environment import set_defaults
from unseen_ray.storage.filesystem import Folder
from unseen_ray.sweeps.config import SweepConfig
from unseen_ray.sweeps.context import CONFIG_KEY, SweepContext, close_record
from unseen_ray.sweeps.layout import TUNE
from unseen_ray.sweeps.records import Record
from unseen_ray.sweeps.space import plain_knobs, plain_value, value_range
from unseen_ray.sweeps.trials import Keeping, Trial

__all__ = ["run_trials"]

logger = logging.getLogger(__name__)

# Even 0.01 CPU would keep a fold off a node whose CPUs are all needed by folds; Tune wants some resource, so: 1 MiB.
_SLIVER = {"CPU": 0, "memory": 2**20}
# Each trial is a driver process of some hundred MB.
_MOST_AT_ONCE = 8
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # user-defined functions are imported relative to where the sweep was started
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep as it ends a run
    "TUNE_WARN_INSUFFICIENT_RESOURCE_THRESHOLD_S": "1000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def run_trials(
    sweep: SweepConfig,
    trials: Sequence[Trial],
    keeping: Keeping,
    source: Source,
    *,
    run_trial: Callable[..., None],
    folder: Folder,
    done: Sequence[Record],
    on_end: Callable[[Record], None],
) -> None:
    """Run the trials that have no result yet; each writes a record into the sweep's folder.

    Args:
        sweep: what is swept.
        trials: those of a grid or a random search; for an open search, those that try every value once.
        keeping: what all trials store.
        source: the data.
        run_trial: a trial, as Tune calls it in a process of its own; takes Tune's configuration and `context`.
        folder: the sweep's, which holds a manifest.
        done: records of trials that have a result.
        on_end: called with the record of each trial that has ended.

    Raises:
        ConfigError: if a trial needs more than the cluster can ever have; nothing is started then.
    """
    set_defaults(_ENVIRONMENT)
    first_runs = [trial.runs[0] for trial in trials]
    for run in {json.dumps(jsonable([run.model, run.scoring.model])): run for run in first_runs}.values():
        # The sweep's plan did not check the models, since it does not load torch.
        check(ResolvedRun.of(run, source.info.size_px), source.info)
    if starts_private(sweep.address):
        _check_all_fit(sweep, trials, this_machine())  # a refusal needs no cluster
    with ray_session(sweep.address, local=False):
        at_once = _check_all_fit(sweep, trials, survey())
        with _context(sweep, trials[0].runs[0], keeping, source, folder, at_once) as context:
            _tune(sweep, trials, tune.with_parameters(run_trial, context=context), context, done, at_once, on_end)


@contextmanager
def _context(
    sweep: SweepConfig, first: PruneConfig, keeping: Keeping, source: Source, folder: Folder, at_once: int
) -> Iterator[SweepContext]:
    """What trials share, kept alive while they run: the decoded pixels and the claims."""
    executor, claims = RayExecutor(address=None, tasks=at_once), None
    try:
        # precision: auto, so that the worker reports what its hardware can do, whatever the first trial asks for
        recipe = first.recipe.model_copy(update={"precision": "auto"})
        config = with_model(first, source.info.size_px).model_copy(update={"recipe": recipe, "out": folder.root})
        executor.prepare(make_job(ResolvedRun(config), source.info, fence=folder.fence), source)
        executor.rest()
        claims, cluster = _start_claims(), executor.context()
        yield SweepContext(
            sweep=sweep,
            keeping=keeping,
            folder=folder,
            claims=claims,
            source=source_ref(first.source).absolute().plain(),
            cluster=cluster,
            new_executor=functools.partial(RayExecutor, address=None, tasks=0, context=cluster),
        )
    finally:
        if claims is not None:
            ray.kill(claims)
        executor.close()


def _check_all_fit(sweep: SweepConfig, trials: Sequence[Trial], capacity: Capacity) -> int:
    """Refuse trials that could never run, since Tune would wait for them forever; returns how many to run at a time."""
    problems: list[str] = []
    room = 1
    for trial in trials:
        try:
            run = trial.runs[0]
            room = max(room, slots(capacity.having(fit_selectors(run)), check_fits(run, capacity)))
        except ConfigError as error:
            problems += [f"trial {trial.said}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return sweep.max_concurrent_trials or min(room, _MOST_AT_ONCE)


def _start_claims() -> Any:
    """The actor that keeps the claims of all trials, on the driver's node: the two are then lost together."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Restarted without limit: without the claims no trial could continue.
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(ClaimBook).options(**options).remote()


def _tune(
    sweep: SweepConfig,
    trials: Sequence[Trial],
    trainable: Any,
    context: SweepContext,
    done: Sequence[Record],
    at_once: int,
    on_end: Callable[[Record], None],
) -> None:
    left = [trial for trial in trials if trial.name not in {record.name for record in done}]
    search, space = dict[str, Any](), dict[str, Any]()
    if sweep.search == "optuna":
        number = sweep.trials or 0
        if sweep.objective == "accuracy":
            # With known results Optuna does not try these again; with pareto it does, see `_optuna`.
            number -= len(done)
        search = {"search_alg": _optuna(sweep, done), "num_samples": number}
    else:
        number = len(left)
        space = {CONFIG_KEY: tune.grid_search([plain_knobs(trial.knobs) for trial in left])}
    if number < 1:
        return
    tuner = tune.Tuner(
        tune.with_resources(trainable, _SLIVER),
        param_space=space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            scheduler=_scheduler(sweep, trials),
            trial_dirname_creator=_folder_of,
            **search,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=context.folder.root,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[_Endings(context, on_end)],
        ),
    )
    tuner.fit()


class _Endings(tune.Callback):  # type: ignore[misc]
    """Closes the record of each trial that has ended, and releases its claims."""

    def __init__(self, context: SweepContext, on_end: Callable[[Record], None]) -> None:
        self._context, self._on_end = context, on_end

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, f"its process was lost, or failed unexpectedly; see {trial.path}/error.txt")

    def _end(self, trial: Any, error: str) -> None:
        # Waited for: Ray complains on stdout about calls that are pending when their actor ends.
        ray.get(self._context.claims.drop.remote(trial.trial_id))
        self._on_end(close_record(self._context, trial.config, error))


def _folder_of(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _scheduler(sweep: SweepConfig, trials: Sequence[Trial]) -> Any:
    """ASHA: time is the percentage of N that a stage keeps, the metric its coreset's lead over a random one of equal size."""
    halving = sweep.scheduler
    if halving is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    fractions = [run.fractions() for trial in trials for run in trial.runs]
    grace = max(100 * (halving.grace or min(its[0] for its in fractions)), 1)
    return ASHAScheduler(
        time_attr="kept_percent",
        metric="over_random",
        mode="max",
        # Above 100 %, so that ASHA never ends a trial because its last stage was reached.
        max_t=101,
        grace_period=int(grace),
        reduction_factor=halving.reduction,
    )


def _optuna(sweep: SweepConfig, done: Sequence[Record]) -> Any:
    """Optuna's search, which starts from the results of an earlier start of the sweep."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pareto = sweep.objective == "pareto"
    points = [plain_knobs(record.knobs) for record in done]
    earlier: dict[str, Any] = {"points_to_evaluate": points} if points else {}
    # Ray cannot pass known results of two objectives to Optuna; those trials run again, but only read their records.
    if points and not pareto:
        earlier["evaluated_rewards"] = [record.accuracy for record in done]
    return OptunaSearch(
        space={knob: _domain(values) for knob, values in sweep.space.items()},
        metric=["accuracy", "cost"] if pareto else "accuracy",
        mode=["max", "min"] if pareto else "max",
        seed=sweep.seed,
        **earlier,
    )


def _domain(values: Any) -> Any:
    found = value_range(values)
    if found is None:
        return tune.choice([plain_value(value) for value in values])
    low, high, log, whole = found
    if whole:
        # The upper end is exclusive in Tune, and part of the range here.
        return tune.lograndint(int(low), int(high) + 1) if log else tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if log else tune.uniform(low, high)
