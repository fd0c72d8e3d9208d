"""Signals that end a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Interruption", "interruption"]

E = TypeVar("E")


class Interruption:
    """SIGINT, SIGTERM (`ray job stop`, Kubernetes) and SIGHUP (a closed terminal), each raised as KeyboardInterrupt.

    Python drops an exception that is raised inside a destructor or the callback of a weak reference, and every thread runs
    one when it ends. So the signal is remembered and raised again at the run's next event. Python's report of the dropped
    exception is suppressed.
    """

    def __init__(self) -> None:
        self._came = False

    def listen(self) -> None:
        """Handle the signals, except those that the caller ignores, such as SIGHUP under `nohup`."""
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` ignores SIGHUP before it starts us, and that must stay so.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._take)
        print_dropped = sys.unraisablehook

        def hook(dropped: sys.UnraisableHookArgs) -> None:
            if not (self._came and issubclass(dropped.exc_type, KeyboardInterrupt)):
                print_dropped(dropped)

        sys.unraisablehook = hook

    def interruptible(self, on_event: Callable[[E], None]) -> Callable[[E], None]:
        """`on_event`, preceded by a check that raises a signal whose exception was dropped."""

        def observe(event: E) -> None:
            if self._came:
                raise KeyboardInterrupt
            on_event(event)

        return observe

    def _take(self, number: int, frame: Any) -> None:
        self._came = True
        raise KeyboardInterrupt


interruption = Interruption()
"""The one of the command line."""
