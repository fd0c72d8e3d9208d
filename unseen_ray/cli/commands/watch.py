"""`unseen-ray watch`: how a run stands, from its folder alone."""

from __future__ import annotations

import click

from unseen_ray.cli.flags import FieldCommand
from unseen_ray.cli.output import console_of

__all__ = ["watch"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--once", is_flag=True, help="print how it stands, and leave")
def watch(run_dir: str, once: bool) -> None:
    """Show how a run stands, from its folder alone, until it has finished; on any machine that sees the folder. It may begin later.

    \b
    unseen-ray watch /shared/runs/mine
    unseen-ray watch s3://bucket/runs/mine --once
    """
    from unseen_ray.cli.summary import watch as summary
    from unseen_ray.runs.status import Watcher
    from unseen_ray.storage.filesystem import Folder

    console = console_of()
    watcher = Watcher(Folder(run_dir))
    if once:
        console.print(summary.view_of(watcher.look()))
        return
    if not watcher.has_begun():
        click.echo(f"no run has begun in {run_dir} yet: waiting for one, until Ctrl-C", err=True)
        summary.wait_for(watcher)
    if console.is_terminal:
        summary.show_live(watcher, console)
    else:
        summary.say_changes(watcher, click.echo)
