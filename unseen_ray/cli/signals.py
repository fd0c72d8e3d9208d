"""Signals that end a command, remembered until it has ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Interruption", "interruption"]

E = TypeVar("E")


class Interruption:
    """SIGINT, SIGTERM (`ray job stop`, Kubernetes) and SIGHUP (a closed terminal), each raised as KeyboardInterrupt.

    Python drops an exception that is raised while a destructor or the callback of a weak reference runs, and the end of every
    thread runs one. So the signal is remembered, and raised again at the next event of the run; of the dropped one nothing
    is printed.
    """

    def __init__(self) -> None:
        self._came = False

    def listen(self) -> None:
        """Take the signals; one that the caller has chosen to ignore, such as SIGHUP under `nohup`, stays ignored."""
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._take)
        print_dropped = sys.unraisablehook

        def hook(dropped: sys.UnraisableHookArgs) -> None:
            if not (self._came and issubclass(dropped.exc_type, KeyboardInterrupt)):
                print_dropped(dropped)

        sys.unraisablehook = hook

    def heeded(self, on_event: Callable[[E], None]) -> Callable[[E], None]:
        """An observer that raises what was dropped, else tells `on_event`."""

        def observe(event: E) -> None:
            if self._came:
                raise KeyboardInterrupt
            on_event(event)

        return observe

    def _take(self, number: int, frame: Any) -> None:
        self._came = True
        raise KeyboardInterrupt


interruption = Interruption()
"""That of the command line."""
