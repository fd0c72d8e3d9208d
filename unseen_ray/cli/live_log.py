"""Log lines above a live table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live

__all__ = ["logging_above"]


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
