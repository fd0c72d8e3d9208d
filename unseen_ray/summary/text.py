"""What the tables and sentences of all commands share."""

from __future__ import annotations

from rich.table import Table

__all__ = ["several", "table_of"]


def table_of(*titles: str) -> Table:
    """A bare table with these columns, all but the first to the right."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place == 0 else "right")
    return table


def several(count: int, what: str) -> str:
    """'1 stage', '3 stages'."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
