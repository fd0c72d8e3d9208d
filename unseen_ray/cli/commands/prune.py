"""`unseen-ray prune`: the whole method."""

from __future__ import annotations

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import console_of, print_answer, print_hint, print_json
from unseen_ray.cli.signals import interruption
from unseen_ray.config.run import PruneConfig

__all__ = ["prune"]


@click.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options()
@click.option("--fresh", is_flag=True, help="delete the run in out and start over; refused if out holds anything else")
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def prune(run_yaml: str | None, fresh: bool, as_json: bool, **flags: str | None) -> None:
    """Prune a training set; run the same line again to resume.

    \b
    unseen-ray prune --source digits --keep 0.7 --out runs/digits
    unseen-ray prune run.yaml --folds 8 --recipe.epochs 30
    """

    import unseen_ray as ur
    from unseen_ray.cli.progress import run_progress
    from unseen_ray.cli.summary import run as summary

    config = PruneConfig(**merged_fields(run_yaml, flags))
    with run_progress(console_of(stderr=True)) as observer:
        result = ur.prune(config, fresh=fresh, on_event=interruption.interruptible(observer))
    values = summary.prune_values(result)
    if as_json:
        return print_json(values)
    first, *rest = summary.prune_lines(values)
    print_answer([first], summary.stage_table(values), summary.class_table(values), rest)
    return print_hint(*summary.next_step(result))
