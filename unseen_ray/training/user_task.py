"""The work of a task where the user's own `fit` trains. Leaves torch alone unless the user's code imports it."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unseen_ray.training.machine import freed_memory_kept
from unseen_ray.training.user_fit import custom_log_probs

if TYPE_CHECKING:
    from unseen_ray.core.predictions import Predictions
    from unseen_ray.core.tasks import ScoreTask
    from unseen_ray.runs.entries import Receipt
    from unseen_ray.runs.tasks import Progress
    from unseen_ray.training.task_runner import TaskRunner

__all__ = ["UserTask", "when_imported"]


@dataclass(slots=True, kw_only=True, eq=False)
class UserTask:
    """Does the tasks of a run whose `fit` is the user's own.

    Args:
        desk: the run.
        device: the GPU as torch knows it; None for the CPU.
    """

    runner: TaskRunner
    device: Any = None

    def score(self, task: ScoreTask) -> Iterator[Progress | Receipt]:
        """Have the user's function train and answer; see `TaskRunner.score`."""
        yield from self.runner.score(task, lambda train_ids, votes: self._answers(task), lambda: None)

    def _answers(self, task: ScoreTask) -> Iterator[Predictions]:
        runner = self.runner
        with self._numerics():
            yield from custom_log_probs(
                runner.job, task, runner.population, runner.plane, runner.source, runner.labels_N
            )

    @contextlib.contextmanager
    def _numerics(self) -> Iterator[None]:
        """Threads as configured; torch's settings and generators, too, from the moment that there is a torch."""
        from threadpoolctl import threadpool_limits

        config = self.runner.job.config
        with contextlib.ExitStack() as open_until_the_end:

            def settle_torch() -> None:
                import torch

                from unseen_ray.training.hardware import numerics

                device = torch.device("cpu") if self.device is None else self.device
                open_until_the_end.enter_context(numerics(config.threads, config.recipe.deterministic, device))

            if self.device is not None or "torch" in sys.modules:
                settle_torch()
            else:
                open_until_the_end.enter_context(freed_memory_kept())
                open_until_the_end.enter_context(threadpool_limits(config.threads))
                open_until_the_end.enter_context(when_imported("torch", settle_torch))
            yield


@contextlib.contextmanager
def when_imported(name: str, do: Callable[[], None]) -> Iterator[None]:
    """Within, do something as soon as a module has been imported, before whoever imports it goes on."""
    finder = _Finder(name, do)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, once, where it would have been found anyway."""

    def __init__(self, name: str, do: Callable[[], None]) -> None:
        self._name, self._do = name, do

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._do)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as another loader does, and then does something."""

    def __init__(self, loader: Any, do: Callable[[], None]) -> None:
        self._loader, self._do = loader, do

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader  # as if nobody had come between
        self._loader.exec_module(module)
        self._do()
