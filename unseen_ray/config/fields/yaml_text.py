"""YAML that a user, or whoever gave them a file, has written: read within limits, so that a few lines never become gigabytes."""

from __future__ import annotations

from typing import Any

__all__ = ["MOST_DEPTH", "MOST_VALUES", "parsed_yaml"]

MOST_VALUES = 1_000_000
"""Values of a document, those that aliases repeat counted each time."""
MOST_DEPTH = 100
"""Lists and mappings within one another."""


def parsed_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: if it is not YAML, or beyond the limits.
    """
    import yaml

    try:
        _check_size(text)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem}.") from None
    except (yaml.YAMLError, OverflowError, AttributeError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check_size(text: str) -> None:
    """ValueError if a document is nested or repeated without bounds; nothing is built for it."""
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and values so far
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append((anchor, 1))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), MOST_VALUES)  # of one that is still open: it holds itself
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        if anchor is not None and size and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = size
        open_nodes[-1] = open_nodes[-1][0], open_nodes[-1][1] + size
        if open_nodes[-1][1] >= MOST_VALUES:
            raise ValueError(f"it holds {MOST_VALUES:,} values or more, with those that aliases repeat. Write fewer")
        if len(open_nodes) > MOST_DEPTH:
            raise ValueError(f"its lists and mappings are nested more than {MOST_DEPTH} deep. Write a flatter one")
