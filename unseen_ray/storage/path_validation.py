"""Checks of paths that users write."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["as_text", "given_path", "path_problem"]


def as_text(value: Any) -> Any:
    """A `pathlib.Path` as text; anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def given_path(field: str, value: Any) -> str | None:
    """The path or address given to a field, as text, with `~` for the home folder expanded; ValueError if it is not one."""
    value = as_text(value)
    what = "an address" if field == "address" else "a path or URI"
    if value is not None and (problem := path_problem(field, value, what)):
        raise ValueError(problem)
    return None if value is None else os.path.expanduser(value)


def path_problem(field: str, value: object, what: str = "a path or URI") -> str:
    """What is wrong with a path that a user wrote; empty if nothing is.

    Args:
        field: its name in the message.
        value: the user's value.
        what: the kind of value that is expected.
    """
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return ""
    # YAML reads a bare 2024 as a number, and an unset shell variable gives "", which would mean the current folder.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    hint = f" Write './{value}' for one whose name is a number." if is_number else ""
    return f"{field}={value!r} is not allowed: it must be {what}, as non-empty text.{hint}"
