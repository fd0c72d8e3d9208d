"""Tasks whose training is a user's function. Loads torch only if that function does."""

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

from unseen_ray.training.host import freed_memory_kept
from unseen_ray.training.task_runner import ScoringTask
from unseen_ray.training.user_fit import user_predictions

if TYPE_CHECKING:
    from unseen_ray.core.tasks import ScoreTask
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.runs.tasks import Progress
    from unseen_ray.training.task_runner import TaskRunner

__all__ = ["UserTask", "when_imported"]


@dataclass(slots=True, kw_only=True, eq=False)
class UserTask:
    """Runs the scoring tasks of a run whose `fit` is the user's own.

    Args:
        runner: what the tasks share.
        device: the GPU as torch knows it; None for the CPU.
    """

    runner: TaskRunner
    device: Any = None

    def score(self, task: ScoreTask) -> Iterator[Progress | Receipt]:
        """Let the user's function train and predict, score its predictions and write the votes; the last value is the receipt.

        Raises:
            LeakError: if it predicts samples that it was given to train on.
            FitError: if its predictions cannot be used.
        """
        scoring = ScoringTask(self.runner, task)
        if (receipt := scoring.stored_receipt()) is not None:
            yield receipt
            return
        yield self.runner.begun(task.name)
        for _ in scoring.left():
            pass  # it predicts all, and what is stored already is not scored again
        with self._numerics():
            for predictions in user_predictions(scoring):
                yield from scoring.add(predictions)
        yield scoring.write()

    @contextlib.contextmanager
    def _numerics(self) -> Iterator[None]:
        """Threads as configured; also torch's settings and generators, as soon as something has imported torch."""
        from threadpoolctl import threadpool_limits

        config = self.runner.job.config
        with contextlib.ExitStack() as stack:

            def set_up_torch() -> None:
                import torch

                from unseen_ray.training.hardware import numerics

                device = torch.device("cpu") if self.device is None else self.device
                stack.enter_context(numerics(config.threads, config.recipe.deterministic, device))

            if self.device is not None or "torch" in sys.modules:
                set_up_torch()
            else:
                stack.enter_context(freed_memory_kept())
                stack.enter_context(threadpool_limits(config.threads))
                # The user's module may import torch only inside its function, after this line.
                stack.enter_context(when_imported("torch", set_up_torch))
            yield


@contextlib.contextmanager
def when_imported(name: str, do: Callable[[], None]) -> Iterator[None]:
    """Within, call `do` once a module has been imported, before the importing code continues."""
    finder = _Finder(name, do)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, once, by the finders after it."""

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
    """Loads as another loader does, then calls a function."""

    def __init__(self, loader: Any, do: Callable[[], None]) -> None:
        self._loader, self._do = loader, do

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        # The module must look as if its own loader had loaded it: code may ask it for resources.
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._do()
