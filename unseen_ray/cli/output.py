"""What commands print on stdout, and the codes that they end with."""

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
    """Sentences, one a line."""
    for line in lines:
        click.echo(line)


def print_json(values: dict[str, Any]) -> None:
    """Values as JSON."""
    click.echo(json.dumps(values, indent=1))


def print_table(table: Any) -> None:
    """A table of rich."""
    console_of().print(table)


def console_of() -> Console:
    """stdout as rich writes to it; of a fixed width where nobody looks at it."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
