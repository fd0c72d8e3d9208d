"""Prune training sets with scores from models that never saw the samples: UNSEEN (AAAI 2026) on Ray.

Importing this package loads neither torch nor ray; what a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseen_ray import core as core
    from unseen_ray.api import export as export
    from unseen_ray.api import plan as plan
    from unseen_ray.api import plan_values as plan_values
    from unseen_ray.api import report as report
    from unseen_ray.api import report_values as report_values
    from unseen_ray.api import score as score
    from unseen_ray.api import select as select
    from unseen_ray.api import torch_subset as torch_subset
    from unseen_ray.comparison import Evaluation as Evaluation
    from unseen_ray.config import PruneConfig as PruneConfig
    from unseen_ray.core.coreset import Coreset as Coreset
    from unseen_ray.core.folds import FoldPlan as FoldPlan
    from unseen_ray.core.folds import plan_folds as plan_folds
    from unseen_ray.errors import ConfigError as ConfigError
    from unseen_ray.errors import DataError as DataError
    from unseen_ray.errors import UnseenError as UnseenError
    from unseen_ray.measuring import evaluate as evaluate
    from unseen_ray.preparing import Prepared as Prepared
    from unseen_ray.preparing import prepare as prepare
    from unseen_ray.recipe import Recipe as Recipe
    from unseen_ray.running import PruneResult as PruneResult
    from unseen_ray.running import load as load
    from unseen_ray.running import prune as prune
    from unseen_ray.sweeping.config import SweepConfig as SweepConfig
    from unseen_ray.sweeps import SweepResult as SweepResult
    from unseen_ray.sweeps import sweep as sweep

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "errors",
    "Coreset": "core.coreset",
    "DataError": "errors",
    "Evaluation": "comparison",
    "FoldPlan": "core.folds",
    "Prepared": "preparing",
    "PruneConfig": "config",
    "PruneResult": "running",
    "Recipe": "recipe",
    "SweepConfig": "sweeping.config",
    "SweepResult": "sweeps",
    "UnseenError": "errors",
    "evaluate": "measuring",
    "export": "api",
    "load": "running",
    "plan": "api",
    "plan_folds": "core.folds",
    "plan_values": "api",
    "prepare": "preparing",
    "prune": "running",
    "report": "api",
    "report_values": "api",
    "score": "api",
    "select": "api",
    "sweep": "sweeps",
    "torch_subset": "api",
}

__all__ = ["__version__", "core", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "core":
        return importlib.import_module("unseen_ray.core")
    if name not in _HOME:
        raise AttributeError(f"module 'unseen_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unseen_ray.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
