"""Log lines above a live table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live

__all__ = ["beside_control_c", "logging_above"]


def beside_control_c(view: RenderableType, console: Console) -> Constrain:
    """A live view that leaves room for the `^C` which a terminal echoes: where that wraps, the view would be printed twice."""
    return Constrain(view, console.width - 3)


@contextmanager
def logging_above(live: Live) -> Iterator[None]:
    """Print log lines above the table."""
    handler = _LiveHandler(live)
    root = logging.getLogger("unseen_ray")
    before = root.handlers
    handler.setFormatter(before[0].formatter if before else None)
    root.handlers = [handler]
    try:
        yield
    finally:
        root.handlers = before


class _LiveHandler(logging.Handler):
    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live

    def emit(self, record: logging.LogRecord) -> None:
        # Through rich: a line that goes straight to stderr would leave a copy of the table behind.
        self.live.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
