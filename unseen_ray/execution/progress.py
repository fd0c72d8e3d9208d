"""Progress of a run in scripts and notebooks: a line a task, updated in place; nothing where nobody would see it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Progress

if TYPE_CHECKING:
    from unseen_ray.pruning.executor import Observer

__all__ = ["resumes", "sentence_of", "shown_progress"]

_SHOWN = 12  # tasks, the latest ones
_EVERY_S = 0.25


class _Lines:
    """An observer that hands on the latest state of each task as text, a few times a second at most."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._rows, self._shown = show, dict[str, str](), 0.0

    def __call__(self, event: Any) -> None:
        if not isinstance(event, Progress):
            self._rows.pop(event.task, None)  # to the end, among the latest
        self._rows[event.task] = sentence_of(event)
        if time.monotonic() - self._shown >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Show the state now."""
        self._shown = time.monotonic()
        self._show("\n".join(f"{task}: {text}" for task, text in list(self._rows.items())[-_SHOWN:]))


def sentence_of(event: Progress | Receipt | EvalResult, left_s: float = math.nan) -> str:
    """What an event tells of its task.

    Args:
        event: the latest one.
        left_s: seconds that its training will still take; NaN if that is not known.
    """
    if isinstance(event, EvalResult):
        return f"accuracy {event.accuracy:.4f} after training on {event.trained:,} samples, {event.seconds:.1f} s"
    if isinstance(event, Receipt):
        done = "done before" if event.reused else "done"
        return f"{done}, scored {event.scored:,} samples with accuracy {event.accuracy:.4f}, {event.seconds:.1f} s"
    if event.doing == "score":
        return f"scoring {event.done:,} of {event.total:,}"
    if not event.done:
        return "started"
    if resumes(event):
        return f"resuming after epoch {event.done}/{event.total}"
    left = "" if math.isnan(left_s) or event.done < 2 else f", {left_s:.0f} s left"
    speed = f"{event.images_per_s:,.0f} images/s"
    return f"epoch {event.done}/{event.total}, loss {event.loss:.4f}, accuracy {event.accuracy:.3f}, {speed}{left}"


def resumes(event: Progress) -> bool:
    """Whether a training resumes from the checkpoint of an earlier start or of a lost worker."""
    return event.doing == "train" and event.earlier and 0 < event.done < event.total


@contextmanager
def shown_progress(on_event: Observer | None, *, progress: bool) -> Iterator[Observer]:
    """The caller's observer; without one, the progress in a notebook or on a terminal, and nothing elsewhere."""
    notebook = _notebook()
    if on_event is not None or not progress or not (notebook or sys.stderr.isatty()):
        yield on_event or (lambda event: None)
        return
    with _in_notebook() if notebook else _on_terminal() as show:
        show("starting; workers take some seconds to come up")
        lines = _Lines(show)
        yield lines
        lines.flush()


def _notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def _in_notebook() -> Iterator[Callable[[str], None]]:
    display = sys.modules["IPython"].display
    handle = display.display({"text/plain": ""}, raw=True, display_id=True)
    yield lambda text: handle.update({"text/plain": text}, raw=True)


@contextmanager
def _on_terminal() -> Iterator[Callable[[str], None]]:
    from rich.live import Live
    from rich.text import Text

    from unseen_ray.execution.console import PlainTextConsole

    with Live(console=PlainTextConsole(stderr=True), refresh_per_second=4) as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"))
