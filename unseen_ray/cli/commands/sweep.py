"""`unseen-ray sweep`: many configurations, each measured on a holdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from unseen_ray.cli.flags import FieldCommand, field_options, with_flags
from unseen_ray.cli.output import FAILED, print_answer, print_json
from unseen_ray.cli.signals import interruption
from unseen_ray.config.run import PruneConfig, load_yaml

__all__ = ["is_sweep", "sweep", "sweep_fields"]

# What a sweep sets for its trials, or refuses.
_LEFT_OUT = ("address", "executor", "out", "seed", "mode", "reuse", "log_to", "test", "fit")
_OF_TRIALS = [name for name in PruneConfig.model_fields if name not in _LEFT_OUT]


@click.command(cls=FieldCommand)
@click.argument("sweep_yaml")
@field_options(only=_OF_TRIALS)
@click.option("--out", metavar="DIR", help="folder of the sweep; give it again to resume")
@click.option("--trials", type=int, metavar="INT", help="how many configurations random and optuna try")
@click.option("--seeds", type=int, metavar="INT", help="runs of each configuration  [default: 1]")
@click.option(
    "--seed", type=int, metavar="INT", help="seed of the first of these runs, and of the search  [default: 0]"
)
@click.option("--max_concurrent_trials", type=int, metavar="INT", help="trials that run at the same time")
@click.option("--address", metavar="ADDRESS", help="the Ray cluster to join  [default: RAY_ADDRESS]")
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def sweep(
    sweep_yaml: str,
    out: str | None,
    trials: int | None,
    seeds: int | None,
    seed: int | None,
    max_concurrent_trials: int | None,
    address: str | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Try many configurations, each measured on a holdout. Run the same line again to resume.

    Options that name a field of a run apply to every trial.

    \b
    unseen-ray plan sweep.yaml
    unseen-ray sweep sweep.yaml --out runs/sweep
    """
    import unseen_ray as ur
    from unseen_ray.cli.summary import sweep as summary

    own = {"out": out, "trials": trials, "seeds": seeds, "seed": seed, "address": address}
    own["max_concurrent_trials"] = max_concurrent_trials
    given = {name: value for name, value in own.items() if value is not None}
    config = ur.SweepConfig(**{**sweep_fields(sweep_yaml, flags), **given})
    result = ur.sweep(config, on_end=interruption.interruptible(summary.trial_logger(config)))
    if as_json:
        print_json(summary.sweep_values(result))
    else:
        first, *rest = summary.sweep_lines(result)
        print_answer([first], summary.trials_table(result), summary.trainings_table(result), rest)
    # No trial has finished: a script must not go on to best.yaml.
    if result.best is None:
        sys.exit(FAILED)


def is_sweep(path: str) -> bool:
    """Whether a YAML file describes a sweep."""
    return "space" in load_yaml(path)


def sweep_fields(path: str, flags: Mapping[str, str | None]) -> dict[str, Any]:
    """Fields of a sweep, those of its runs changed by flags."""
    fields = load_yaml(path)
    run = fields.get("run")
    return {**fields, "run": with_flags(run if isinstance(run, dict) else {}, flags)}
