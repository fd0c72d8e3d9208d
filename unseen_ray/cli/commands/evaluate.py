"""`unseen-ray evaluate`: trainings on the coreset and on baselines."""

from __future__ import annotations

from typing import Any

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import console_of, print_answer, print_json
from unseen_ray.cli.signals import interruption
from unseen_ray.config.run import EXECUTOR_FIELDS, NAMED_FIELDS

__all__ = ["evaluate"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--seeds", type=int, metavar="INT", help="trainings per subset; with --until, the fewest  [default: 3]")
@click.option(
    "--until",
    type=float,
    metavar="POINTS",
    help="more trainings, up to 20 of each subset, until the interval of the lead over random is at most ± this many percentage points",
)
@click.option(
    "--against",
    metavar="NAMES",
    help="baselines: random, random_matched (with the coreset's class counts), full, fitting, resampled (random, drawn anew every "
    "epoch), resampled:fixed=0.5 (half of it always the first of the coreset; KeptSampler(result, fixed=0.5))  [default: random,full]",
)
@click.option(
    "--selections",
    type=int,
    metavar="INT",
    help="coresets to compare: each after the first prunes again with another seed, for which the run must have no holdout  [default: 1]",
)
@click.option(
    "--budget",
    metavar="WHAT",
    help="epochs: as many epochs on every subset; iterations: as many steps on every subset as on all samples; both: the two in one "
    "table  [default: epochs]",
)
@field_options(
    only=(
        "test",
        "model",
        "recipe",
        "threads",
        "gpus_per_fit",
        "min_gpus_per_fit",
        "log_to",
        *EXECUTOR_FIELDS,
    ),
    inherited=True,
)
@field_options(
    only=("source", "group"),
    text="where it is now, if it has moved since the run; or the run's own function, named again",
)
@field_options(
    only=[name for name in NAMED_FIELDS if name != "source"],
    text="the run's, named again where it is a function of yours: a run's folder alone never has one imported",
    rare=True,
)
@click.option("--json", "as_json", is_flag=True, help="print the table as JSON")
def evaluate(
    run_dir: str,
    seeds: int | None,
    until: float | None,
    against: str | None,
    selections: int | None,
    budget: str | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Train on the coreset and on baselines, and compare them. All have the same recipe, and are measured after the last epoch.

    \b
    unseen-ray evaluate runs/cifar --test cifar10-test.parquet --seeds 5
    """

    import unseen_ray as ur
    from unseen_ray.cli.progress import run_progress
    from unseen_ray.cli.summary import evaluation as summary

    asked: dict[str, Any] = merged_fields(None, flags)
    given = {"seeds": seeds, "until": until, "selections": selections, "budget": budget}
    asked |= {name: value for name, value in given.items() if value is not None}
    if against is not None:
        asked["against"] = tuple(name.strip() for name in against.split(",") if name.strip())
    with run_progress(console_of(stderr=True)) as observer:
        evaluation = ur.evaluate(run_dir, on_event=interruption.interruptible(observer), **asked)
    if as_json:
        return print_json(evaluation.to_json())
    first, *rest = summary.evaluation_lines(evaluation, until, is_random=ur.load(run_dir).manifest.is_random)
    return print_answer([first], summary.evaluation_table(evaluation), rest)
