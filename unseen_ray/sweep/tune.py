"""A sweep's trials on Ray Tune: each is a process that drives its runs and reserves next to nothing.

The fold actors of a trial ask the cluster for their GPUs themselves, by a named strategy, which keeps them out of the trial's
placement group. What trials share is computed once: pixels are decoded by the sweep, trainings go over a shelf.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unseen_ray.config.resolved import ResolvedRun, with_model
from unseen_ray.config.run import jsonable
from unseen_ray.data.sources.registry import Source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.execution.ray.capacity import check_fits, slots, survey
from unseen_ray.execution.ray.connect import ray_session, set_defaults
from unseen_ray.execution.ray.executor import RayExecutor
from unseen_ray.pruning.pipeline import check, make_job
from unseen_ray.runs.work_cache import ClaimBook
from unseen_ray.sweep.config import SweepConfig
from unseen_ray.sweep.records import Record
from unseen_ray.sweep.space import plain_knobs, plain_value, value_range
from unseen_ray.sweep.trial_process import KNOBS, Common, ended, run_trial
from unseen_ray.sweep.trials import Keeping, Trial

__all__ = ["run_trials"]

logger = logging.getLogger(__name__)

_SLIVER = {"CPU": 0, "memory": 2**20}  # the least of a CPU would keep a fold off a node whose folds take all of them
_MOST_AT_ONCE = 8
_TUNE = "tune"
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # functions of the user's own are found from where the sweep was started
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
    root: str,
    done: Sequence[Record],
    on_end: Callable[[Record], None],
) -> None:
    """Run trials that have no result yet; each leaves a record in the sweep's folder.

    Args:
        sweep: what is swept.
        trials: those of a grid or a random search; for an open search, some to look at.
        keeping: what all trials store.
        source: the data.
        root: the sweep's folder, which holds a manifest.
        done: records of trials that have a result.
        on_end: is told of each trial that has ended.

    Raises:
        ConfigError: if a trial asks for more than the cluster can ever bring; nothing is started then.
    """
    set_defaults(_ENVIRONMENT)
    for run in {json.dumps(jsonable(trial.runs[0].model)): trial.runs[0] for trial in trials}.values():
        check(
            ResolvedRun.of(run, source.info.size_px), source.info
        )  # models are left out of the plan, which loads no torch
    with ray_session(sweep.address):
        at_once = _check_all_fit(sweep, trials)
        first = trials[0].runs[0]
        executor = RayExecutor(address=None, tasks=at_once)
        claims: Any = None
        try:
            recipe = first.recipe.model_copy(update={"precision": "auto"})
            config = with_model(first, source.info.size_px).model_copy(update={"recipe": recipe, "out": root})
            executor.prepare(make_job(ResolvedRun(config), source.info), source)
            executor.rest()
            claims = _start_claims()
            common = Common(
                sweep=sweep,
                keeping=keeping,
                root=root,
                claims=claims,
                source=source_ref(first.source).absolute().plain(),
                groundwork=executor.groundwork(),
            )
            _tune(sweep, trials, common, done, at_once, on_end)
        finally:
            if claims is not None:
                ray.kill(claims)
            executor.close()


def _check_all_fit(sweep: SweepConfig, trials: Sequence[Trial]) -> int:
    """Refuse trials that could never run; returns how many to have at work at once.

    Tune would wait for ever for a trial that does not fit.
    """
    capacity = survey()
    problems: list[str] = []
    room = 1
    for trial in trials:
        try:
            room = max(room, slots(capacity, check_fits(trial.runs[0], capacity)))
        except ConfigError as error:
            problems += [f"trial {trial.said}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return sweep.max_concurrent_trials or min(room, _MOST_AT_ONCE)


def _start_claims() -> Any:
    """The claims of all trials, kept beside the sweep's driver: the two end together."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(ClaimBook).options(**options).remote()


def _tune(
    sweep: SweepConfig,
    trials: Sequence[Trial],
    common: Common,
    done: Sequence[Record],
    at_once: int,
    on_end: Callable[[Record], None],
) -> None:
    known = {record.name for record in done}
    left = [trial for trial in trials if trial.name not in known]
    search: dict[str, Any] = {}
    space: dict[str, Any] = {}
    if sweep.search == "optuna":
        number = sweep.trials or 0
        if sweep.objective == "accuracy":
            number -= len(done)
        search = {"search_alg": _optuna(sweep, done), "num_samples": number}
    else:
        number = len(left)
        space = {KNOBS: tune.grid_search([plain_knobs(trial.knobs) for trial in left])}
    if number < 1:
        return
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, common=common), _SLIVER),
        param_space=space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            scheduler=_scheduler(sweep, trials),
            trial_dirname_creator=_folder_of,
            **search,
        ),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=common.root,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[_Endings(common, on_end)],
        ),
    )
    tuner.fit()


class _Endings(tune.Callback):  # type: ignore[misc]
    """Tells of each trial that has ended, and gives back what it had claimed."""

    def __init__(self, common: Common, on_end: Callable[[Record], None]) -> None:
        self._common, self._on_end = common, on_end

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, f"its process was lost, or failed in a way that none should; see {trial.path}/error.txt")

    def _end(self, trial: Any, error: str) -> None:
        # waited for: what is under way when its actor ends, Ray tells on stdout
        ray.get(self._common.claims.drop.remote(trial.trial_id))
        self._on_end(ended(self._common, trial.config, error))


def _folder_of(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _scheduler(sweep: SweepConfig, trials: Sequence[Trial]) -> Any:
    """ASHA over the share of N that a stage keeps, by how much better its coreset is than a random one of that size."""
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
        max_t=101,
        grace_period=int(grace),
        reduction_factor=halving.reduction,
    )


def _optuna(sweep: SweepConfig, done: Sequence[Record]) -> Any:
    """Optuna's search, told of what an earlier start of the sweep has found."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise ConfigError("search: optuna needs Optuna. Install it: pip install 'unseen-ray[optuna]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pareto = sweep.objective == "pareto"
    points = [plain_knobs(record.knobs) for record in done]
    earlier: dict[str, Any] = {"points_to_evaluate": points} if points else {}
    if points and not pareto:  # of two objectives Ray cannot tell Optuna; those trials only read their records
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
        return tune.lograndint(int(low), int(high) + 1) if log else tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if log else tune.uniform(low, high)
