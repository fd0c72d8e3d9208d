"""Paths that stand for several files: `*` for characters of a name, `**` for any folders, `{000..146}` for numbers, `{a,b}` for words."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence

from unseen_ray.storage.filesystem import absolute_path, is_uri, real_path

__all__ = ["MARKS", "covers", "is_glob", "matches", "without_braces"]

MARKS = "*?["
_QUERY = re.compile(r"\?[\w.]+=.*")  # of a URI, such as ?region=us-east-1


def is_glob(path: str) -> bool:
    """Whether a path is a pattern; brackets, braces and stars in the name of a local file that exists are just characters."""
    if is_uri(path):
        return any(mark in _QUERY.sub("", path) for mark in MARKS + "{")
    return any(mark in path for mark in MARKS + "{") and not os.path.lexists(absolute_path(path))


def without_braces(pattern: str) -> list[str]:
    """The patterns that one with braces stands for, as a shell expands them."""
    found = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    words = found[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if first <= last else -1
        words = [str(number).zfill(len(numbers[1])) for number in range(first, last + step, step)]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [each for word in words for each in without_braces(f"{start}{word}{end}")]


def matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern without braces part by part, so that `*` does not match a slash."""
    return _parts_match(name.split("/"), pattern.split("/"))


def _parts_match(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_parts_match(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _parts_match(parts[1:], patterns[1:])


def covers(place: str, to: str, names: Sequence[str] | None = None) -> bool:
    """Whether the source at `place` may pick up files written to the folder `to`; what is hidden below a source is not read.

    Args:
        place: a folder, a file or a pattern.
        to: the folder to write.
        names: of the files that lie directly in it; None if they are not known.
    """
    if is_glob(place):
        return any(_reaches(pattern, to, names) for pattern in without_braces(place))
    top, folder = real_path(place), real_path(to)
    if not f"{folder}/".startswith(f"{top}/"):
        return False
    return not any(part.startswith(".") for part in folder[len(top) :].split("/"))


def _reaches(pattern: str, to: str, names: Sequence[str] | None) -> bool:
    """Whether a pattern may match files of these names in a folder, or something below it."""
    head = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    patterns = [*real_path(head).split("/"), *pattern[len(head) :].strip("/").split("/")]
    parts = real_path(to).split("/")
    if "**" in patterns:
        start = patterns[: patterns.index("**")]
        return len(parts) >= len(start) and _parts_match(parts[: len(start)], start)
    rest = patterns[len(parts) :]
    if not rest or not _parts_match(parts, patterns[: len(parts)]):
        return False
    return len(rest) > 1 or names is None or any(fnmatch.fnmatchcase(name, rest[0]) for name in names)
