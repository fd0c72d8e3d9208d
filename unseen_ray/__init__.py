"""Prune training sets with scores from models that never saw the samples: UNSEEN (AAAI 2026) on Ray.

Importing this package loads neither torch nor ray; what a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseen_ray import core as core
    from unseen_ray.config.recipe import Recipe as Recipe
    from unseen_ray.config.run import PruneConfig as PruneConfig
    from unseen_ray.core.folds import FoldPlan as FoldPlan
    from unseen_ray.core.folds import plan_folds as plan_folds
    from unseen_ray.core.samples.coreset import Coreset as Coreset
    from unseen_ray.data.prepare.prepare import Prepared as Prepared
    from unseen_ray.data.prepare.prepare import prepare as prepare
    from unseen_ray.data.related.copies import Copies as Copies
    from unseen_ray.data.related.copies import find_copies as find_copies
    from unseen_ray.errors import ConfigError as ConfigError
    from unseen_ray.errors import DataError as DataError
    from unseen_ray.errors import UnseenError as UnseenError
    from unseen_ray.evaluation.evaluate import evaluate as evaluate
    from unseen_ray.evaluation.table import Evaluation as Evaluation
    from unseen_ray.execution.api import load as load
    from unseen_ray.execution.api import prune as prune
    from unseen_ray.execution.api import prune_dataset as prune_dataset
    from unseen_ray.execution.api import score as score
    from unseen_ray.execution.api import select as select
    from unseen_ray.execution.plan import plan as plan
    from unseen_ray.execution.plan import plan_values as plan_values
    from unseen_ray.execution.result import PruneResult as PruneResult
    from unseen_ray.reporting.export import export as export
    from unseen_ray.reporting.export import torch_subset as torch_subset
    from unseen_ray.reporting.kept_sampler import KeptSampler as KeptSampler
    from unseen_ray.reporting.report import report as report
    from unseen_ray.reporting.report import report_values as report_values
    from unseen_ray.sweeps.config import SweepConfig as SweepConfig
    from unseen_ray.sweeps.plan import sweep_plan_values as sweep_plan_values
    from unseen_ray.sweeps.sweep import SweepResult as SweepResult
    from unseen_ray.sweeps.sweep import sweep as sweep

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "errors",
    "Copies": "data.related.copies",
    "Coreset": "core.samples.coreset",
    "DataError": "errors",
    "Evaluation": "evaluation.table",
    "FoldPlan": "core.folds",
    "KeptSampler": "reporting.kept_sampler",
    "Prepared": "data.prepare.prepare",
    "PruneConfig": "config.run",
    "PruneResult": "execution.result",
    "Recipe": "config.recipe",
    "SweepConfig": "sweeps.config",
    "SweepResult": "sweeps.sweep",
    "UnseenError": "errors",
    "evaluate": "evaluation.evaluate",
    "export": "reporting.export",
    "find_copies": "data.related.copies",
    "load": "execution.api",
    "plan": "execution.plan",
    "plan_folds": "core.folds",
    "plan_values": "execution.plan",
    "prepare": "data.prepare.prepare",
    "prune": "execution.api",
    "prune_dataset": "execution.api",
    "report": "reporting.report",
    "report_values": "reporting.report",
    "score": "execution.api",
    "select": "execution.api",
    "sweep": "sweeps.sweep",
    "sweep_plan_values": "sweeps.plan",
    "torch_subset": "reporting.export",
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
