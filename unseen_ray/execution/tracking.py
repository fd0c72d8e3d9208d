"""Every fit's epochs, logged to TensorBoard, to MLflow through Ray's own logger, and to Weights & Biases.

Ray's logger for W&B would put the API key into a runtime environment, which Ray writes to its logs; W&B is called directly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from unseen_ray.errors import ConfigError
from unseen_ray.plugins import plug_of
from unseen_ray.runs.layout import TENSORBOARD
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.run import flat_fields
from unseen_ray.runs.tasks import EvalResult, Progress
from unseen_ray.storage.environment import WANDB_MODE, WANDB_PROJECT, variable
from unseen_ray.storage.filesystem import Folder, is_uri
from unseen_ray.storage.plain_text import shown

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.pruning.executor import Observer

__all__ = ["tracked"]

logger = logging.getLogger(__name__)

_PROJECT = "unseen-ray"
_STEP = "training_iteration"
_QUEUED = 1000  # events that a logger may be behind
_END_S = 30.0  # how long a run waits for its loggers at its end


@dataclass(frozen=True, eq=False, slots=True)
class LoggedFit:
    """One fit, with the attributes that Ray's loggers read of a trial.

    Attributes:
        name: the task's.
        config: fields of the run, those of its recipe dotted.
        trial_id: unique.
        experiment_dir_name: the run's name.
        after: the epoch before the first that is logged.
    """

    name: str
    config: dict[str, Any]
    trial_id: str
    experiment_dir_name: str
    after: int

    def __str__(self) -> str:
        return f"{self.experiment_dir_name}: {self.name}"


class Logger(Protocol):
    """The part of Ray's `LoggerCallback` that a run needs."""

    def log_trial_start(self, trial: Any) -> None: ...

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None: ...

    def log_trial_end(self, trial: Any, failed: bool = False) -> None: ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`, one folder a fit; on object storage they appear as each fit ends."""

    def __init__(self, out: str, local: str) -> None:
        self._out = Folder(out)
        self._root = os.path.join(local, TENSORBOARD)
        self._writers: dict[LoggedFit, Any] = {}

    def log_trial_start(self, trial: LoggedFit) -> None:
        from tensorboardX import SummaryWriter

        self._writers[trial] = SummaryWriter(
            os.path.join(self._root, re.sub(r"[^\w/]+", "-", trial.name)),
            purge_step=trial.after + 1,
            flush_secs=10,
            filename_suffix=f".{trial.trial_id}",
        )

    def log_trial_result(self, iteration: int, trial: LoggedFit, result: dict[str, Any]) -> None:
        for name, value in result.items():
            if name != _STEP:
                self._writers[trial].add_scalar(name, value, iteration)

    def log_trial_end(self, trial: LoggedFit, failed: bool = False) -> None:
        writer = self._writers.pop(trial)
        writer.close()
        if is_uri(self._out.root):
            folder = os.path.relpath(writer.logdir, self._root)
            for file in os.scandir(writer.logdir):
                with open(file.path, "rb") as stream:
                    self._out.write(f"{TENSORBOARD}/{folder}/{file.name}", stream.read())


class Wandb:
    """Weights & Biases, one of its runs a fit."""

    def __init__(self, local: str, options: dict[str, Any]) -> None:
        import wandb

        if variable(WANDB_MODE) not in ("offline", "disabled") and not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "log_to: wandb has no key. Set WANDB_API_KEY or run `wandb login`, or WANDB_MODE=offline to keep its files here."
            )
        self._init = wandb.init
        # The mode by name: wandb reads the environment once a process, which may have been before it was set.
        mode = {"mode": found} if (found := variable(WANDB_MODE)) else {}
        self._options = {"project": variable(WANDB_PROJECT) or _PROJECT, **mode, **options}
        self._folder = local
        self._runs: dict[LoggedFit, Any] = {}

    def log_trial_start(self, trial: LoggedFit) -> None:
        settings = {"group": trial.experiment_dir_name, **self._options, "name": trial.name, "config": trial.config}
        self._runs[trial] = self._init(**settings, dir=self._folder, reinit="create_new")

    def log_trial_result(self, iteration: int, trial: LoggedFit, result: dict[str, Any]) -> None:
        self._runs[trial].log(result, step=iteration)

    def log_trial_end(self, trial: LoggedFit, failed: bool = False) -> None:
        self._runs.pop(trial).finish(exit_code=int(failed))


class BackgroundLogger:
    """A logger in a thread of its own. One that fails, hangs or falls behind gets no more events, and the run goes on."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._queue: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(_QUEUED)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"log to {name}")
        self._thread.start()

    def submit(self, method: str, **arguments: Any) -> None:
        """Queue a call of a method; never waits."""
        if not self._over.is_set():
            try:
                self._queue.put_nowait((method, arguments))
            except queue.Full:
                self._give_up("it does not keep up")

    def close(self) -> None:
        """Wait until the queue is empty, at most half a minute."""
        end = time.monotonic() + _END_S
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_END_S)
        self._thread.join(max(end - time.monotonic(), 0))
        if self._thread.is_alive() and not self._over.is_set():
            self._give_up("it did not accept everything within half a minute")

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._over.is_set():
                continue
            method, arguments = item
            try:
                getattr(self._logger, method)(**arguments)
            except Exception as error:  # of any service: a log must not fail the training
                self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        self._over.set()
        logger.warning("%s stops logging this run: %s", self._name, shown(reason))


class Tracker:
    """An observer of a run's tasks that logs them."""

    def __init__(self, config: PruneConfig, within: str, loggers: list[BackgroundLogger]) -> None:
        self._config, self._within, self._loggers = config, within, loggers
        self._fits: dict[str, LoggedFit] = {}
        self._epochs: dict[str, int] = {}

    def __call__(self, event: Progress | Receipt | EvalResult) -> None:
        """Log an epoch once, however often its fit was started, and what a finished task has measured."""
        if isinstance(event, Progress):
            if event.doing == "train" and event.done > 0:
                self._epoch(event)
        elif not (isinstance(event, Receipt) and event.reused):
            self._finished(event)

    def close(self) -> None:
        """End what has not ended, as failed."""
        for fit in self._fits.values():
            self._submit("log_trial_end", trial=fit, failed=True)
        self._fits.clear()
        for each in self._loggers:
            each.close()

    def _epoch(self, event: Progress) -> None:
        fit = self._fit(event.task, after=event.done - 1)
        if event.done > self._epochs[event.task]:
            self._epochs[event.task] = event.done
            found = {"loss": event.loss, "accuracy": event.accuracy, "images_per_s": event.images_per_s}
            self._measured(fit, {f"train/{name}": value for name, value in found.items()})

    def _finished(self, event: Receipt | EvalResult) -> None:
        fit = self._fit(event.task, after=0)
        kind = "score" if isinstance(event, Receipt) else "test"
        self._measured(fit, {f"{kind}/accuracy": event.accuracy, "seconds": event.seconds})
        self._submit("log_trial_end", trial=self._fits.pop(event.task))

    def _fit(self, task: str, *, after: int) -> LoggedFit:
        if task not in self._fits:
            assert self._config.out is not None
            self._epochs[task] = after
            self._fits[task] = LoggedFit(
                name=f"{self._within}/{task}" if self._within else task,
                config={"task": task, **flat_fields(self._config.to_json())},
                trial_id=os.urandom(4).hex(),
                experiment_dir_name=os.path.basename(self._config.out.rstrip("/")),
                after=after,
            )
            self._submit("log_trial_start", trial=self._fits[task])
        return self._fits[task]

    def _measured(self, fit: LoggedFit, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        epoch = self._epochs[fit.config["task"]]
        self._submit("log_trial_result", iteration=epoch, trial=fit, result={_STEP: epoch, **finite})

    def _submit(self, method: str, **arguments: Any) -> None:
        for each in self._loggers:
            each.submit(method, **arguments)


@contextlib.contextmanager
def tracked(config: PruneConfig, on_event: Observer, *, within: str = "") -> Iterator[Observer]:
    """An observer that logs to `log_to`, then calls `on_event`.

    Args:
        config: the run's.
        on_event: called after the loggers.
        within: a folder for the fits, where a run has several of one name.

    Raises:
        ConfigError: if a logger is not installed, or its service refuses; nothing has been trained by then.
    """
    if config.log_to == "none" or not config.out:
        yield on_event
        return
    with _local_folder(config.out) as local:
        made = _loggers_of(config, config.out, local)
        tracker = Tracker(config, within, [BackgroundLogger(name, each) for name, each in made.items()])

        def both(event: Progress | Receipt | EvalResult) -> None:
            tracker(event)
            on_event(event)

        try:
            yield both
        finally:
            tracker.close()


def _local_folder(out: str) -> contextlib.AbstractContextManager[str]:
    """Where loggers may keep files: the run's folder, or a temporary one where that is a URI."""
    if not is_uri(out):
        return contextlib.nullcontext(out)
    # A logger that hangs is left behind, and may still write while its folder is removed.
    return tempfile.TemporaryDirectory(prefix="unseen-ray-logs-", ignore_cleanup_errors=True)


def _loggers_of(config: PruneConfig, out: str, local: str) -> dict[str, Logger]:
    names = config.log_to
    if names is None:
        names = "tensorboard" if importlib.util.find_spec("tensorboardX") else []
    found = {}
    for name, options in map(plug_of, names if isinstance(names, list) else [names]):
        try:
            found[str(name)] = _logger(str(name), options, out, local)
        except ConfigError:
            raise
        except ModuleNotFoundError as error:
            raise ConfigError(f"log_to: {name} needs {error.name}. Install it: pip install {error.name}.") from None
        except Exception as error:  # of any service
            raise ConfigError(f"log_to: {name} cannot be used: {shown(f'{type(error).__name__}: {error}')}") from None
    return found


def _logger(name: str, options: dict[str, Any], out: str, local: str) -> Logger:
    if name == "tensorboard":
        import tensorboardX  # noqa: F401

        return TensorBoard(out, local)
    if name == "wandb":
        return Wandb(local, options)
    import mlflow  # noqa: F401
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    callback = MLflowLoggerCallback(**{"experiment_name": _PROJECT, **options})
    callback.setup()
    found: Logger = callback
    return found
