"""How commands print to stdout, and their exit codes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FAILED", "INTERRUPTED", "console_of", "print_json", "print_lines", "print_table"]

INTERRUPTED = 130
FAILED = 4


def print_lines(lines: list[str]) -> None:
    """Print each sentence on a line of its own."""
    for line in lines:
        click.echo(line)


def print_json(values: dict[str, Any]) -> None:
    """Print values as JSON."""
    click.echo(json.dumps(values, indent=1))


def print_table(table: Any) -> None:
    """Print a table of rich."""
    console_of().print(table)


def console_of() -> Console:
    """stdout for rich; a pipe or file has a fixed width, since rich would assume 80 columns and cut cells."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
