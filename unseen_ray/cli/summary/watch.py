"""A run as `watch` shows it: one live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unseen_ray.runs.status import RunStatus, TaskStatus, Watcher

__all__ = ["headline", "say_changes", "show_live", "view_of", "wait_for"]

_PAUSE_S = 2.0
_LINE_EVERY_S = 10.0
_SHOWN = 24
_SILENT_S = 60.0


def view_of(standing: RunStatus) -> Group:
    """How a run stands: what there is to say of it, and a row a task."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("task", "node"):
        table.add_column(title)
    for title in ("epoch", "accuracy", "images/s", "seconds", "sign of life"):
        table.add_column(title, justify="right")
    for task in standing.tasks[-_SHOWN:]:
        table.add_row(task.name, task.node, *_cells(task), style="dim" if task.done else "")
    lines = [headline(standing), driver(standing), cost(standing)]
    return Group(*(Text(line) for line in lines if line), *([table] if standing.tasks else []))


def wait_for(watcher: Watcher) -> None:
    """Wait until a run has begun."""
    while not watcher.has_begun():
        time.sleep(_PAUSE_S)


def show_live(watcher: Watcher, console: Console) -> None:
    """Keep a table up to date until the run has finished."""
    standing = watcher.look()
    with Live(view_of(standing), console=console, refresh_per_second=2) as live:
        while not standing.finished:
            time.sleep(_PAUSE_S)
            standing = watcher.look()
            live.update(view_of(standing))


def say_changes(watcher: Watcher, say: Callable[[str], None]) -> None:
    """Say a line for whatever changes until the run has finished."""
    changes = _Changes()
    while True:
        standing = watcher.look()
        for line in changes.since(standing):
            say(line)
        if standing.finished:
            return
        time.sleep(_PAUSE_S)


def headline(standing: RunStatus) -> str:
    """Where a run stands, in a line."""
    data = f"{standing.path}: {standing.source}, {standing.samples:,} samples"
    if standing.finished:
        return f"{data}; finished, kept {standing.kept:,}"
    done = sum(task.done for task in standing.of_stage())
    speed = standing.images_per_s()
    return (
        f"{data}; stage {standing.stage} ({standing.stage + 1} of {standing.stages}), {done} of {standing.total} tasks done, "
        f"kept {standing.kept:,} so far" + (f"; {speed:,.0f} images/s" if speed else "")
    )


def driver(standing: RunStatus) -> str:
    """Who works on a run, and when that was last heard of."""
    if standing.finished:
        return ""
    holder = standing.holder
    if holder is None:
        return "nobody works on it: the run's line, given again, goes on"
    if holder.is_dead() or holder.age_s() > _SILENT_S:
        return f"{holder} is gone or silent, last heard of {holder.age_s():.0f} s ago: the run's line, given again, goes on"
    return f"held by {holder}, last heard of {holder.age_s():.0f} s ago"


def cost(standing: RunStatus) -> str:
    """What the work so far has taken."""
    return f"cost so far: {standing.worker_s:,.1f} s of workers, {standing.gpu_s:,.1f} s of GPUs"


@dataclass(slots=True)
class _Changes:
    """What was said before, so that it is not said again."""

    head: tuple[bool, int, int, int] | None = None
    who: str = ""
    done: set[str] = field(default_factory=set)
    epochs: dict[str, tuple[int, float]] = field(default_factory=dict)

    def since(self, standing: RunStatus) -> Iterator[str]:
        """Lines for what is new."""
        for task in standing.tasks:
            if task.done and task.name not in self.done:
                self.done.add(task.name)
                yield f"{task.name} ({task.node}): done, {task.accuracy:.4f} right, {task.seconds:.1f} s"
            elif not task.done and self._is_news(task):
                yield (
                    f"{task.name}: epoch {task.epoch}/{task.epochs}, accuracy {task.accuracy:.3f}, "
                    f"{task.images_per_s:,.0f} images/s, {task.seconds:.1f} s"
                )
        who = driver(standing)
        if who.partition(", last heard")[0] != self.who:
            self.who = who.partition(", last heard")[0]
            if who:
                yield who
        head = standing.finished, standing.stage, standing.kept, sum(task.done for task in standing.of_stage())
        if head != self.head:
            self.head = head
            yield headline(standing)
            yield cost(standing)

    def _is_news(self, task: TaskStatus) -> bool:
        epoch, said = self.epochs.get(task.name, (0, -math.inf))
        now = time.monotonic()
        if task.epoch == epoch or now - said < _LINE_EVERY_S:
            return False
        self.epochs[task.name] = task.epoch, now
        return True


def _cells(task: TaskStatus) -> tuple[str, ...]:
    if task.done:
        return "done", f"{task.accuracy:.3f} unseen", "", f"{task.seconds:.1f}", ""
    age = "" if math.isnan(task.age_s) else f"{task.age_s:.0f} s ago"
    return (
        f"{task.epoch}/{task.epochs}",
        f"{task.accuracy:.3f}",
        f"{task.images_per_s:,.0f}",
        f"{task.seconds:.1f}",
        age,
    )
