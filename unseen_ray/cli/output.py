"""How commands print to stdout, and their exit codes."""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from typing import IO, TYPE_CHECKING, Any

import click

from unseen_ray.storage.plain_text import shown

if TYPE_CHECKING:
    from rich.console import Console

    from unseen_ray.cli.tables import Table

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "LogFormatter",
    "console_of",
    "folded",
    "print_answer",
    "print_hint",
    "print_json",
    "print_lines",
    "say",
]

INTERRUPTED = 130
FAILED = 4


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text to stdout or stderr; what comes from data in it is shown and not obeyed.

    A terminal gets whole lines folded between words; see `folded`.
    """
    text = shown(text)
    click.echo(folded(text, sys.stderr if err else sys.stdout) if nl else text, err=err, nl=nl)


def folded(text: str, stream: IO[str]) -> str:
    """Text whose lines fit the terminal that a stream goes to, broken between words; unchanged in a pipe or a file.

    Indented lines, which hold commands to copy, stay whole, but for the items of a list.
    """
    if not stream.isatty():
        return text
    width = os.get_terminal_size(stream.fileno()).columns
    lines = []
    for line in text.split("\n"):
        item = line.startswith("  - ")
        whole = len(line) <= width or not width or (line.startswith(" ") and not item)
        lines += (
            [line]
            if whole
            else textwrap.wrap(
                line, width, subsequent_indent="    " if item else "", break_long_words=False, break_on_hyphens=False
            )
        )
    return "\n".join(lines)


def print_lines(lines: list[str]) -> None:
    """Print each sentence on a line of its own."""
    for line in lines:
        say(line)


def print_json(values: dict[str, Any]) -> None:
    """Print values as JSON."""
    click.echo(shown(json.dumps(values, indent=1)))


def print_answer(*parts: list[str] | Table) -> None:
    """Print sentences and tables, with a blank line between them; a pipe or file gets tables as tab-separated values."""
    filled = [part for part in parts if (part if isinstance(part, list) else part.rows)]
    for place, part in enumerate(filled):
        if place:
            say("")
        if isinstance(part, list):
            print_lines(part)
        elif sys.stdout.isatty():
            console_of().print(part, soft_wrap=True)
        else:
            print_lines(part.tsv())


def print_hint(text: str, command: str) -> None:
    """Print what may be done next, and the command on a line of its own, which stays whole; on a terminal alone."""
    if sys.stdout.isatty():
        print_lines(["", f"{text}:", f"  {command}"])


def console_of(*, stderr: bool = False) -> Console:
    """stdout or stderr for rich."""
    from unseen_ray.execution.console import PlainTextConsole

    return PlainTextConsole(stderr=stderr, highlight=False)


class LogFormatter(logging.Formatter):
    """The lines of the log, in which text from data is shown and not obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, or several with a traceback."""
        return folded(shown(super().format(record)), sys.stderr)
