"""How commands print to stdout, and their exit codes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from unseen_ray.cli.tables import Table

__all__ = ["FAILED", "INTERRUPTED", "print_answer", "print_json", "print_lines"]

INTERRUPTED = 130
FAILED = 4


def print_lines(lines: list[str]) -> None:
    """Print each sentence on a line of its own."""
    for line in lines:
        click.echo(line)


def print_json(values: dict[str, Any]) -> None:
    """Print values as JSON."""
    click.echo(json.dumps(values, indent=1))


def print_answer(*parts: list[str] | Table) -> None:
    """Print sentences and tables, with a blank line between them; a pipe or file gets tables as tab-separated values."""
    filled = [part for part in parts if (part if isinstance(part, list) else part.rows)]
    for place, part in enumerate(filled):
        if place:
            click.echo()
        if isinstance(part, list):
            print_lines(part)
        elif sys.stdout.isatty():
            from rich.console import Console

            Console(highlight=False).print(part, soft_wrap=True)
        else:
            print_lines(part.tsv())
