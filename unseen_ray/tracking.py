"""Every fit's epochs, told to TensorBoard, and to MLflow and Weights & Biases through Ray's own loggers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from unseen_ray.config import PruneConfig
from unseen_ray.errors import ConfigError
from unseen_ray.executor import Observer
from unseen_ray.job import EvalResult, Progress, Receipt
from unseen_ray.resolve import plug_of
from unseen_ray.run import TENSORBOARD, flat_fields
from unseen_ray.storage import Folder, is_uri

__all__ = ["tracked"]

logger = logging.getLogger(__name__)

_PROJECT = "unseen-ray"
_STEP = "training_iteration"


@dataclass(eq=False, slots=True)
class Fit:
    """One fit, as Ray's loggers want to know a trial.

    Attributes:
        name: the task's.
        config: fields of the run, those of its recipe dotted.
        trial_id: unlike any other's.
        experiment_dir_name: the run that it belongs to.
        local_path: a folder on this machine.
        epoch: the last one that was told.
    """

    name: str
    config: dict[str, Any]
    trial_id: str
    experiment_dir_name: str
    local_path: str
    epoch: int = 0

    def __str__(self) -> str:
        return f"{self.experiment_dir_name}: {self.name}"


class Logger(Protocol):
    """The part of Ray's `LoggerCallback` that a run needs."""

    def setup(self) -> None: ...

    def log_trial_start(self, trial: Any) -> None: ...

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None: ...

    def log_trial_end(self, trial: Any, failed: bool = False) -> None: ...

    def on_experiment_end(self, trials: list[Any]) -> None: ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`, one folder a fit; on object storage they appear as each fit ends."""

    def __init__(self, out: str) -> None:
        self._out = Folder(out)
        self._writers: dict[Fit, Any] = {}
        self._aside: tempfile.TemporaryDirectory[str] | None = None

    def setup(self) -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise ConfigError("log_to: tensorboard needs tensorboardX. Install it, or set log_to: none.")
        if is_uri(self._out.root):
            self._aside = tempfile.TemporaryDirectory(prefix="unseen-ray-tensorboard-")

    def log_trial_start(self, trial: Fit) -> None:
        from tensorboardX import SummaryWriter

        root = self._aside.name if self._aside else self._out.path(TENSORBOARD)
        folder = os.path.join(root, re.sub(r"\W+", "-", trial.name))
        self._writers[trial] = SummaryWriter(
            folder, purge_step=trial.epoch + 1, flush_secs=10, filename_suffix=f".{trial.trial_id}"
        )

    def log_trial_result(self, iteration: int, trial: Fit, result: dict[str, Any]) -> None:
        for name, value in result.items():
            if name != _STEP:
                self._writers[trial].add_scalar(name, value, iteration)

    def log_trial_end(self, trial: Fit, failed: bool = False) -> None:
        writer = self._writers.pop(trial)
        writer.close()
        if self._aside:
            folder = os.path.relpath(writer.logdir, self._aside.name)
            for file in os.scandir(writer.logdir):
                with open(file.path, "rb") as stream:
                    self._out.write(f"{TENSORBOARD}/{folder}/{file.name}", stream.read())

    def on_experiment_end(self, trials: list[Fit]) -> None:
        if self._aside:
            self._aside.cleanup()


class Tracker:
    """An observer of a run's tasks that tells its loggers. One that fails is told no more, and the run goes on."""

    def __init__(self, config: PruneConfig, loggers: dict[str, Logger]) -> None:
        self._config, self._loggers = config, loggers
        self._fits: dict[str, Fit] = {}

    def __call__(self, event: Progress | Receipt | EvalResult) -> None:
        """Tell an epoch once, however often its fit was started, and what a finished task has measured."""
        if isinstance(event, Progress):
            if event.doing == "train" and event.done > 0:
                self._epoch(event)
        elif not (isinstance(event, Receipt) and event.reused):
            self._finished(event)

    def close(self) -> None:
        """End what has not ended, as failed."""
        for fit in self._fits.values():
            self._tell("log_trial_end", trial=fit, failed=True)
        self._fits.clear()
        self._tell("on_experiment_end", trials=[])

    def _epoch(self, event: Progress) -> None:
        fit = self._fit(event.task, before=event.done - 1)
        if event.done > fit.epoch:
            fit.epoch = event.done
            found = {"loss": event.loss, "accuracy": event.accuracy, "images_per_s": event.images_per_s}
            self._measured(fit, {f"train/{name}": value for name, value in found.items()})

    def _finished(self, event: Receipt | EvalResult) -> None:
        fit = self._fit(event.task, before=0)
        kind = "score" if isinstance(event, Receipt) else "test"
        self._measured(fit, {f"{kind}/accuracy": event.accuracy, "seconds": event.seconds})
        self._tell("log_trial_end", trial=self._fits.pop(event.task))

    def _fit(self, task: str, *, before: int) -> Fit:
        if task not in self._fits:
            assert self._config.out is not None
            self._fits[task] = Fit(
                name=task,
                config={"task": task, **flat_fields(self._config.to_json())},
                trial_id=os.urandom(4).hex(),
                experiment_dir_name=os.path.basename(self._config.out.rstrip("/")),
                local_path=os.getcwd(),
                epoch=before,
            )
            self._tell("log_trial_start", trial=self._fits[task])
        return self._fits[task]

    def _measured(self, fit: Fit, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._tell("log_trial_result", iteration=fit.epoch, trial=fit, result={_STEP: fit.epoch, **finite})

    def _tell(self, method: str, **arguments: Any) -> None:
        for name, told in list(self._loggers.items()):
            try:
                getattr(told, method)(**arguments)
            except Exception as error:  # whatever a service answers: the training is worth more than its log
                logger.warning("%s is told no more of this run: %s: %s", name, type(error).__name__, error)
                del self._loggers[name]


@contextlib.contextmanager
def tracked(config: PruneConfig, on_event: Observer) -> Iterator[Observer]:
    """An observer that tells the loggers of `log_to`, then `on_event`.

    Raises:
        ConfigError: if a logger is not installed, or its service refuses; nothing has been trained by then.
    """
    loggers = _loggers_of(config)
    for name, told in loggers.items():
        try:
            told.setup()
        except ConfigError:
            raise
        except Exception as error:  # whatever a service answers
            raise ConfigError(f"log_to: {name} cannot be used: {type(error).__name__}: {error}") from None
    tracker = Tracker(config, loggers)

    def both(event: Progress | Receipt | EvalResult) -> None:
        tracker(event)
        on_event(event)

    try:
        yield both
    finally:
        tracker.close()


def _loggers_of(config: PruneConfig) -> dict[str, Logger]:
    if config.log_to == "none" or not config.out:
        return {}
    if config.log_to is None:
        return {"tensorboard": TensorBoard(config.out)} if importlib.util.find_spec("tensorboardX") else {}
    asked = config.log_to if isinstance(config.log_to, list) else [config.log_to]
    return {str(name): _logger(str(name), options, config.out) for name, options in map(plug_of, asked)}


def _logger(name: str, options: dict[str, Any], out: str) -> Logger:
    if name == "tensorboard":
        return TensorBoard(out)
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"log_to: {name} needs the package {name}. Install it: pip install {name}.")
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        mlflow: Logger = MLflowLoggerCallback(**{"experiment_name": _PROJECT, **options})
        return mlflow
    from ray.air.integrations.wandb import WandbLoggerCallback

    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    wandb: Logger = WandbLoggerCallback(**{"project": project, **options})
    return wandb
