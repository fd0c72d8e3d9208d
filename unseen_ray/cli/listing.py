"""What goes by a bare name, with the first line that its own docstring says of it."""

from __future__ import annotations

import inspect
from types import ModuleType

from unseen_ray.catalog import MODELS
from unseen_ray.recipes import RECIPES
from unseen_ray.sources import SOURCES

__all__ = ["entries"]


def entries(what: str) -> list[tuple[str, str]]:
    """(name, one line) of the scores, policies, guards, sources, models or recipes."""
    from unseen_ray.core import dynamics, guard, scores, select

    tables = {
        "scores": [*_of_module(scores), *_of_module(dynamics)],
        "policies": _of_module(select),
        "guards": _of_module(guard),
        "sources": [(name, _first_line(function)) for name, function in SOURCES.items()],
        "models": [(name, entry.summary) for name, entry in MODELS.items()],
        "recipes": [(name, summary) for name, (_, summary) in RECIPES.items()],
    }
    return tables[what]


def _of_module(module: ModuleType) -> list[tuple[str, str]]:
    return [(name, _first_line(getattr(module, name))) for name in module.__all__]


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n", 1)[0]
