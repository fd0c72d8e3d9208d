"""Progress of a run, on stderr: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from unseen_ray.cli.live_log import beside_control_c, logging_above
from unseen_ray.cli.summary.text import accuracy_text
from unseen_ray.cli.tables import Cell, Column, Table
from unseen_ray.execution.progress import resumes, sentence_of
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Progress

if TYPE_CHECKING:
    from unseen_ray.pruning.executor import Observer

__all__ = ["LineProgress", "TableProgress", "run_progress"]

_LINE_EVERY_S = 10.0
# A live table that is taller than the terminal is cut at its lower end, where the active tasks are.
_SHOWN = 24
_COLUMNS = (
    Column("task", left=True),
    Column("node", 4, left=True),
    Column("device", 3, left=True),
    Column("epoch"),
    Column("loss", 2, ".4f"),
    Column("accuracy", 0, ".3f"),
    Column("images/s", 1, ",.0f"),
    Column("time"),
)


@dataclass(slots=True)
class _Row:
    last: Progress
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    result: Receipt | EvalResult | None = None
    first: int | None = None  # the epoch after which this start of the task began

    def take(self, event: Progress) -> None:
        """Update from an event."""
        self.last = event
        # Time left is estimated from the epochs of this start alone: the first event may report one of an earlier start.
        if self.first is None and event.done and event.doing == "train":
            self.first = 0 if event.done == 1 else event.done

    def eta_s(self) -> float:
        """Seconds that the training will still take; NaN if that is not known."""
        if not self.last.done or self.last.doing != "train":
            return math.nan
        done = self.last.done - (self.first or 0)
        return (time.monotonic() - self.began) / done * (self.last.total - self.last.done) if done else math.nan


@dataclass(slots=True)
class TableProgress:
    """One row per task: node, device, epoch, loss, accuracy, images per second, time left."""

    live: Live
    rows: dict[str, _Row] = field(default_factory=dict)

    def __call__(self, event: Progress | Receipt | EvalResult) -> None:
        """Show an event."""
        if isinstance(event, Progress):
            row = self.rows.setdefault(event.task, _Row(event))
            row.take(event)
        else:
            name = event.task
            row = self.rows.setdefault(name, _Row(_started(event)))
            row.result = event
        self.live.update(beside_control_c(self.table(), self.live.console))

    def table(self) -> Table:
        """The table of the latest tasks."""
        table = Table(_COLUMNS)
        for name, row in list(self.rows.items())[-_SHOWN:]:
            table.add(name, row.last.node, row.last.device, *_cells(row), finished=row.result is not None)
        return table


@dataclass(slots=True)
class LineProgress:
    """A line when a task begins, when it resumes from a checkpoint, every ten seconds, and when it is done."""

    console: Console
    rows: dict[str, _Row] = field(default_factory=dict)

    def __call__(self, event: Progress | Receipt | EvalResult) -> None:
        """Print an event, if it is due."""
        if isinstance(event, Progress):
            fresh = event.task not in self.rows
            row = self.rows.setdefault(event.task, _Row(event))
            row.take(event)
            if fresh or resumes(event) or time.monotonic() - row.said >= _LINE_EVERY_S:
                row.said = time.monotonic()
                self._print(f"{event.task} ({event.node}, {event.device}): {sentence_of(event, row.eta_s())}")
        else:
            self._print(f"{event.task} ({event.node}, {event.device}): {sentence_of(event)}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def run_progress(console: Console) -> Iterator[Observer]:
    """An observer that shows a run on this console: a live table on a terminal, else lines."""
    # A table would fill a log file with copies of itself.
    if not console.is_terminal:
        yield LineProgress(console)
        return
    with Live(console=console, refresh_per_second=4, transient=False) as live, logging_above(live):
        yield TableProgress(live)


def _cells(row: _Row) -> tuple[Cell, ...]:
    last = row.last
    if isinstance(row.result, Receipt):
        said = "done before" if row.result.reused else "done"
        return said, None, accuracy_text(row.result.accuracy, row.result.task), None, f"{row.result.seconds:.1f} s"
    if isinstance(row.result, EvalResult):
        return "done", None, f"{row.result.accuracy:.3f} test", None, f"{row.result.seconds:.1f} s"
    if last.doing == "score":
        return f"scoring {last.done:,}/{last.total:,}", None, None, None, None
    if not last.done:
        return "started", None, None, None, None
    eta = row.eta_s()
    left = None if math.isnan(eta) else f"{eta:.0f} s left"
    return f"{last.done}/{last.total}", last.loss, last.accuracy, last.images_per_s, left


def _started(event: Receipt | EvalResult) -> Progress:
    return Progress(task=event.task, node=event.node, device=event.device, doing="train", done=0, total=0)
