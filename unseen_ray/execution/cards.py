"""How results show themselves: some facts below a title, as text in a terminal and as a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["html_card", "placement_texts", "stages_text", "text_card"]


def text_card(title: str, facts: Mapping[str, str]) -> str:
    """The title, and a line for each fact."""
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def html_card(title: str, facts: Mapping[str, str]) -> str:
    """A small table with the title above it."""
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th><td style="text-align:left">{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><strong>{html.escape(title)}</strong><table>{rows}</table></div>"


def stages_text(targets: Sequence[int]) -> str:
    """Samples kept after each stage, in words."""
    kept = ", ".join(f"{target:,}" for target in targets)
    return f"1, keeps {kept}" if len(targets) == 1 else f"{len(targets)}, keep {kept} in all"


def placement_texts(placement: Mapping[str, Any] | None) -> list[str]:
    """Which nodes do what, where the configuration says so.

    >>> placement_texts({"fits": {"zone": "a"}, "fallback": [{"zone": "!b"}]})
    ['trainings on nodes with zone: a, else zone: !b']
    """
    given = placement or {}
    selectors = {
        "trainings": [given.get("fits"), *given.get("fallback", ())],
        "merges": [given.get("aggregator")],
        "the job of submit": [given.get("driver")],
    }
    texts = {
        part: [", ".join(f"{label}: {value}" for label, value in each.items()) for each in wanted if each]
        for part, wanted in selectors.items()
    }
    return [f"{part} on nodes with {', else '.join(each)}" for part, each in texts.items() if each]
