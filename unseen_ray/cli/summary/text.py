"""Parts of tables and sentences that all commands share."""

from __future__ import annotations

from rich.table import Table

__all__ = ["bare_table", "bytes_text", "hours_text", "several"]


def bare_table(*titles: str) -> Table:
    """A table without borders; all columns but the first are right-aligned."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place == 0 else "right")
    return table


def several(count: int, what: str) -> str:
    """'1 stage', '3 stages'."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def hours_text(hours: float) -> str:
    """'2.5 h', '12.0 min', '8 s'."""
    return (
        f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min" if hours * 60 >= 1 else f"{hours * 3600:,.0f} s"
    )


def bytes_text(count: float) -> str:
    """'12 kB', '3.1 MB', '1.2 TB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.1f} {unit}" if count < 10 and unit in ("MB", "GB") else f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
