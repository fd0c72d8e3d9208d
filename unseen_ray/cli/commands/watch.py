"""`unseen-ray watch`: the progress of a run, read from its folder."""

from __future__ import annotations

import sys

import click

from unseen_ray.cli.flags import FieldCommand
from unseen_ray.cli.output import console_of, print_answer, say

__all__ = ["watch"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--once", is_flag=True, help="print the current state and exit")
def watch(run_dir: str, once: bool) -> None:
    """Follow a run until it has finished. Any machine that sees its folder will do. The run may start later.

    \b
    unseen-ray watch /shared/runs/mine
    unseen-ray watch s3://bucket/runs/mine --once
    """
    from unseen_ray.cli.summary import watch as summary
    from unseen_ray.runs.status import Watcher
    from unseen_ray.storage.filesystem import Folder

    watcher = Watcher(Folder(run_dir))
    if once:
        status = watcher.look()
        return print_answer(summary.sentences(status), summary.task_table(status))
    if not watcher.has_begun():
        say(f"no run has started in {run_dir} yet; waiting for one (Ctrl-C to stop)", err=True)
        summary.wait_for(watcher)
    if sys.stdout.isatty():
        return summary.show_live(watcher, console_of())
    return summary.print_changes(watcher, say)
