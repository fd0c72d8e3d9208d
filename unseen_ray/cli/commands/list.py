"""`unseen-ray list`: the built-in scores, policies, guards, sources, models and recipes."""

from __future__ import annotations

import inspect
from types import ModuleType

import click

from unseen_ray.cli.flags import FieldCommand
from unseen_ray.cli.output import print_answer

__all__ = ["entries", "list_names"]


@click.command("list", cls=FieldCommand)
@click.argument("what", type=click.Choice(["scores", "policies", "guards", "sources", "models", "recipes"]))
def list_names(what: str) -> None:
    """List the built-in names that a field takes, with a line on each."""
    from unseen_ray.cli.tables import Column, Table

    table = Table([Column("name", left=True), Column("what it is", left=True, prose=True)])
    for row in entries(what):
        table.add(*row)
    print_answer(table)


def entries(what: str) -> list[tuple[str, str]]:
    """(name, one line) of the scores, policies, guards, sources, models or recipes."""
    from unseen_ray.config.models import MODELS, TIMM
    from unseen_ray.config.named_recipes import RECIPES
    from unseen_ray.core import combine_votes, dynamics, guard, scores, select
    from unseen_ray.data.sources.registry import SOURCES

    tables = {
        "scores": [
            *_of_module(scores),
            *_of_module(dynamics),
            *(
                (name, _first_line(getattr(combine_votes, name)))
                for name in (*combine_votes.OF_VOTES, *combine_votes.OF_STAGES)
            ),
        ],
        "policies": _of_module(select),
        "guards": _of_module(guard),
        "sources": [(name, _first_line(function)) for name, function in SOURCES.items()],
        "models": [
            *((name, entry.summary) for name, entry in MODELS.items()),
            (f"{TIMM}NAME", "any model of timm, where it is installed"),
        ],
        "recipes": [(name, summary) for name, (_, summary) in RECIPES.items()],
    }
    return tables[what]


def _of_module(module: ModuleType) -> list[tuple[str, str]]:
    return [(name, _first_line(getattr(module, name))) for name in module.__all__]


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n", 1)[0]
