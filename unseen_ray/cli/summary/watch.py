"""A run as `watch` shows it: a live table on a terminal, elsewhere a line for each change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.text import Text

from unseen_ray.cli.live_log import beside_control_c
from unseen_ray.cli.summary.text import accuracy_text, held_out_text
from unseen_ray.cli.tables import Cell, Column, Table

if TYPE_CHECKING:
    from unseen_ray.runs.status import RunStatus, TaskStatus, Watcher

__all__ = ["headline", "print_changes", "sentences", "show_live", "task_table", "wait_for"]

_PAUSE_S = 2.0
_LINE_EVERY_S = 10.0
_SHOWN = 24
# A driver renews its lock far more often than this.
_SILENT_S = 60.0
_COLUMNS = (
    Column("task", left=True),
    Column("node", 3, left=True),
    Column("epoch"),
    Column("accuracy", 0, ".3f"),
    Column("images/s", 2, ",.0f"),
    Column("seconds", 2, ",.1f"),
    Column("last update", 1),
)


def sentences(status: RunStatus) -> list[str]:
    """The state of a run in sentences."""
    return [line for line in (headline(status), driver(status), cost(status)) if line]


def task_table(status: RunStatus) -> Table:
    """A row for each of the latest tasks."""
    table = Table(_COLUMNS)
    for task in status.tasks[-_SHOWN:]:
        table.add(task.name, task.node, *_cells(task), finished=task.done)
    return table


def wait_for(watcher: Watcher) -> None:
    """Wait until a run has begun."""
    while not watcher.has_begun():
        time.sleep(_PAUSE_S)


def show_live(watcher: Watcher, console: Console) -> None:
    """Keep a table up to date until the run has finished."""
    status = watcher.look()
    with Live(_view(status, console), console=console, refresh_per_second=2) as live:
        while not status.finished:
            time.sleep(_PAUSE_S)
            status = watcher.look()
            live.update(_view(status, console))


def _view(status: RunStatus, console: Console) -> Constrain:
    parts: list[RenderableType] = [Text(line) for line in sentences(status)]
    if status.tasks:
        parts.append(task_table(status))
    return beside_control_c(Group(*parts), console)


def print_changes(watcher: Watcher, write: Callable[[str], None]) -> None:
    """Print a line for each change until the run has finished."""
    changes = _Changes()
    while True:
        status = watcher.look()
        for line in changes.since(status):
            write(line)
        if status.finished:
            return
        time.sleep(_PAUSE_S)


def headline(status: RunStatus) -> str:
    """How far a run is, in a line."""
    data = f"{status.path}: {status.source}, {status.samples:,} samples{held_out_text(status.holdout, status.samples)}"
    if status.finished:
        return f"{data}; finished, kept {status.kept:,}"
    done = sum(task.done for task in status.of_stage())
    speed = status.images_per_s()
    return (
        f"{data}; stage {status.stage} ({status.stage + 1} of {status.stages}), {done} of {status.total} tasks done, "
        f"kept {status.kept:,} so far" + (f"; {speed:,.0f} images/s" if speed else "")
    )


def driver(status: RunStatus) -> str:
    """Which process works on a run, and when it last gave a sign of life."""
    if status.finished:
        return ""
    holder = status.holder
    if holder is None:
        return "no process is working on it; run the same line again to resume"
    if holder.is_dead() or holder.age_s() > _SILENT_S:
        return f"{holder} is gone or silent, last heard from {holder.silence()} ago; run the same line again to resume"
    return f"held by {holder}, last heard from {holder.silence()} ago"


def cost(status: RunStatus) -> str:
    """The cost of the work so far."""
    return f"cost so far: {status.worker_s:,.1f} worker-seconds, {status.gpu_s:,.1f} GPU-seconds"


@dataclass(slots=True)
class _Changes:
    """What was printed before, so that it is not printed again."""

    head: tuple[bool, int, int, int] | None = None
    who: str = ""
    cost: str = ""
    done: set[str] = field(default_factory=set)
    epochs: dict[str, tuple[int, float]] = field(default_factory=dict)

    def since(self, status: RunStatus) -> Iterator[str]:
        """Lines for what is new."""
        for task in status.tasks:
            if task.done and task.name not in self.done:
                self.done.add(task.name)
                yield f"{task.name} ({task.node}): done, accuracy {accuracy_text(task.accuracy, task.name)}, {task.seconds:.1f} s"
            elif not task.done and self._is_news(task):
                yield (
                    f"{task.name}: epoch {task.epoch}/{task.epochs}, training accuracy {task.accuracy:.3f}, "
                    f"{task.images_per_s:,.0f} images/s, {task.seconds:.1f} s"
                )
        who = driver(status)
        # A new holder is news; that its last sign of life is older than a moment ago is not.
        if who.partition(", last heard")[0] != self.who:
            self.who = who.partition(", last heard")[0]
            if who:
                yield who
        head = status.finished, status.stage, status.kept, sum(task.done for task in status.of_stage())
        if head_is_new := head != self.head:
            self.head = head
            yield headline(status)
        if (so_far := cost(status)) != self.cost and head_is_new:
            self.cost = so_far
            yield so_far

    def _is_news(self, task: TaskStatus) -> bool:
        epoch, said = self.epochs.get(task.name, (0, -math.inf))
        now = time.monotonic()
        if task.epoch == epoch or now - said < _LINE_EVERY_S:
            return False
        self.epochs[task.name] = task.epoch, now
        return True


def _cells(task: TaskStatus) -> tuple[Cell, ...]:
    if task.done:
        return "done", accuracy_text(task.accuracy, task.name), None, task.seconds, None
    age = None if math.isnan(task.age_s) else f"{task.age_s:.0f} s ago"
    return f"{task.epoch}/{task.epochs}", task.accuracy, task.images_per_s, task.seconds, age
