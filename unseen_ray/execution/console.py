"""A console of rich to which text from data is only text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console

from unseen_ray.storage.plain_text import shown

__all__ = ["PlainTextConsole"]


class PlainTextConsole(Console):
    """Shows control characters of the text that it renders, and sends only its own."""

    def render(self, *args: Any, **options: Any) -> Iterable[Any]:
        """The segments of a renderable; rich calls this for each part of a table, too, before it measures the lines."""
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))
