"""`unseen-ray plan`: what a run, or a sweep, would do and cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import click

from unseen_ray.cli.commands.sweep import is_sweep, sweep_fields
from unseen_ray.cli.flags import Command, FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import print_json, print_lines, print_table
from unseen_ray.config.run import PruneConfig
from unseen_ray.errors import ConfigError

__all__ = ["plan"]

_OF_CLUSTER = ("workers", "images_per_s", "scoring_images_per_s", "decode_images_per_s", "measure")


def _cluster_options(command: Command) -> Command:
    """A decorator that adds what `plan` is told of a cluster."""
    rows: list[tuple[str, Any, str | None, str]] = [
        ("--workers", int, "INT", "GPUs, or CPU workers, that the cluster has: for waves, idle workers, hours"),
        ("--images_per_s", float, "NUMBER", "images a second that one worker trains, to estimate hours"),
        ("--scoring_images_per_s", float, "NUMBER", "that one worker scores  [default: 3 x images_per_s]"),
        ("--decode_images_per_s", float, "NUMBER", "that one core decodes"),
    ]
    command = click.option(
        "--measure", is_flag=True, help="measure here what of these is not given; takes half a minute"
    )(command)
    for name, kind, metavar, text in reversed(rows):
        command = click.option(name, type=kind, default=None, metavar=metavar, help=text)(command)
    return command


@click.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options()
@_cluster_options
@click.option("--json", "as_json", is_flag=True, help="print the plan as JSON")
def plan(run_yaml: str | None, as_json: bool, **flags: Any) -> None:
    """Show what a run, or a sweep, would do and cost; start nothing.

    \b
    unseen-ray plan --source digits --keep 0.7 --schedule '[0.5,0.6,0.7]'
    unseen-ray plan run.yaml --folds 8 --workers 8 --images_per_s 2000
    unseen-ray plan run.yaml --workers 8 --measure
    """
    import unseen_ray as ur
    from unseen_ray.cli.summary import cluster as of_cluster
    from unseen_ray.cli.summary import plan as summary

    asked_of = {name: flags.pop(name) for name in _OF_CLUSTER}
    if run_yaml is not None and is_sweep(run_yaml):
        return _plan_sweep(run_yaml, flags, asked_of, as_json)
    asked = PruneConfig(**merged_fields(run_yaml, flags))
    values = ur.plan_values(asked, **asked_of)
    if as_json:
        return print_json(values)
    print_lines(summary.plan_lines(values, asked, chosen=asked.model is None and asked.fit is None))
    print_table(summary.plan_table(values))
    print_lines(of_cluster.cluster_lines(values))
    if values["cluster"] is not None:
        print_table(of_cluster.cluster_table(values))
    if values["needs"]:
        print_table(of_cluster.needs_table(values))
    for warning in values["warnings"]:
        logging.getLogger(__name__).warning("%s", warning)
    return None


def _plan_sweep(path: str, flags: Mapping[str, str | None], asked: Mapping[str, Any], as_json: bool) -> None:
    """Show what a sweep would do and cost."""
    from unseen_ray.cli.summary import sweep as summary
    from unseen_ray.execution.estimate.estimate import check_asked
    from unseen_ray.sweep.config import SweepConfig
    from unseen_ray.sweep.plan import plan_sweep

    if idle := [name for name in _OF_CLUSTER if name != "images_per_s" and asked[name]]:
        raise ConfigError(
            f"--{idle[0]} is for the plan of a run; of a sweep, --images_per_s gives the hours. Leave it out."
        )
    rate = asked["images_per_s"]
    check_asked(None, {"training": rate})
    values = summary.plan_values(plan_sweep(SweepConfig(**sweep_fields(path, flags))), rate)
    if as_json:
        return print_json(values)
    print_lines(summary.plan_lines(values))
    print_table(summary.plan_table(values))
    return None
