"""`unseen-ray plan`: what a run or a sweep would do and cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import click

from unseen_ray.cli.commands.sweep import is_sweep, sweep_fields
from unseen_ray.cli.flags import Command, FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import print_answer, print_json
from unseen_ray.config.run import PruneConfig
from unseen_ray.errors import ConfigError

__all__ = ["plan"]

_OF_CLUSTER = ("workers", "images_per_s", "scoring_images_per_s", "decode_images_per_s", "measure")


def _cluster_options(command: Command) -> Command:
    """A decorator that adds the options that describe a cluster."""
    rows: list[tuple[str, Any, str | None, str]] = [
        ("--workers", int, "INT", "GPUs (or CPU workers) of the cluster: adds waves, idle workers and hours"),
        ("--images_per_s", float, "NUMBER", "images per second that one worker trains on, to estimate hours"),
        (
            "--scoring_images_per_s",
            float,
            "NUMBER",
            "images per second that one worker scores  [default: 3 x images_per_s]",
        ),
        ("--decode_images_per_s", float, "NUMBER", "images per second that one core decodes"),
    ]
    command = click.option(
        "--measure", is_flag=True, help="measure the missing rates on this machine; takes half a minute"
    )(command)
    for name, kind, metavar, text in reversed(rows):
        command = click.option(name, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options()
@_cluster_options
@click.option("--json", "as_json", is_flag=True, help="print the plan as JSON")
def plan(run_yaml: str | None, as_json: bool, **flags: Any) -> None:
    """Show what a run or a sweep would do and cost. Nothing is started.

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
    print_answer(
        summary.plan_lines(values, asked, chosen=asked.model is None and asked.fit is None),
        summary.plan_table(values),
        of_cluster.cluster_lines(values),
        of_cluster.cluster_table(values) if values["cluster"] is not None else [],
        of_cluster.needs_table(values),
    )
    # To the log, since stdout carries the answer.
    for warning in values["warnings"]:
        logging.getLogger(__name__).warning("%s", warning)
    return None


def _plan_sweep(path: str, flags: Mapping[str, str | None], asked: Mapping[str, Any], as_json: bool) -> None:
    """Show what a sweep would do and cost."""
    import unseen_ray as ur
    from unseen_ray.cli.summary import sweep as summary

    if idle := [name for name in _OF_CLUSTER if name != "images_per_s" and asked[name]]:
        raise ConfigError(
            f"--{idle[0]} has no effect on the plan of a sweep, which takes only --images_per_s. Remove it."
        )
    config = ur.SweepConfig(**sweep_fields(path, flags))
    values = ur.sweep_plan_values(config, images_per_s=asked["images_per_s"])
    if as_json:
        return print_json(values)
    return print_answer(summary.sweep_plan_lines(values), summary.sweep_plan_table(values))
