"""The command line: one short function a command. stdout carries the answer, stderr the log and the progress."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import click

from unseen_ray import __version__, commands
from unseen_ray.config import EXECUTOR_FIELDS, NAMED_FIELDS, PruneConfig
from unseen_ray.errors import ConfigError, UnseenError
from unseen_ray.flags import FieldCommand, field_options, merged_fields
from unseen_ray.interruption import interruption

__all__ = ["entry", "main"]

_INTERRUPTED = 130
_FAILED = 4


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="unseen-ray")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside, too.")
def cli(verbose: bool) -> None:
    """Prune training sets with scores from models that never saw the samples."""
    _start_logging(verbose)


@cli.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options()
@commands.cluster_options
@click.option("--json", "as_json", is_flag=True, help="print the plan as JSON")
def plan(run_yaml: str | None, as_json: bool, **flags: Any) -> None:
    """Show what a run, or a sweep, would do and cost; start nothing.

    \b
    unseen-ray plan --source digits --keep 0.7 --schedule '[0.5,0.6,0.7]'
    unseen-ray plan run.yaml --folds 8 --workers 8 --images_per_s 2000
    unseen-ray plan run.yaml --workers 8 --measure
    """
    from unseen_ray import api
    from unseen_ray.summary import cluster as of_cluster
    from unseen_ray.summary import plan as summary

    asked_of = commands.taken(flags)
    if run_yaml is not None and commands.is_sweep(run_yaml):
        return commands.plan_sweep(run_yaml, flags, asked_of, as_json)
    asked = PruneConfig(**merged_fields(run_yaml, flags))
    values = api.plan_values(asked, **asked_of)
    if as_json:
        return _print_json(values)
    _print_lines(summary.plan_lines(values, asked, chosen=asked.model is None and asked.fit is None))
    _print_table(summary.plan_table(values))
    _print_lines(of_cluster.cluster_lines(values))
    if values["cluster"] is not None:
        _print_table(of_cluster.cluster_table(values))
    if values["needs"]:
        _print_table(of_cluster.needs_table(values))
    for warning in values["warnings"]:
        logging.getLogger(__name__).warning("%s", warning)
    return None


@cli.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options()
@click.option("--fresh", is_flag=True, help="remove the run that out holds, if it holds nothing else, and begin anew")
@click.option("--json", "as_json", is_flag=True, help="print the closing summary as JSON")
def prune(run_yaml: str | None, fresh: bool, as_json: bool, **flags: str | None) -> None:
    """Prune a training set; run the same line again to resume.

    \b
    unseen-ray prune --source digits --keep 0.7 --out runs/digits
    unseen-ray prune run.yaml --folds 8 --recipe.epochs 30
    """
    from rich.console import Console

    from unseen_ray import api
    from unseen_ray.progress import watching
    from unseen_ray.summary import run as summary

    config = PruneConfig(**merged_fields(run_yaml, flags))
    with watching(Console(stderr=True)) as observer:
        result = api.prune(config, fresh=fresh, on_event=interruption.heeded(observer))
    values = summary.prune_values(result)
    if as_json:
        return _print_json(values)
    first, *rest = summary.prune_lines(values)
    _print_lines([first])
    _print_table(summary.stage_table(values))
    _print_table(summary.class_table(values))
    _print_lines(rest)
    return None


@cli.command(cls=FieldCommand)
@click.argument("run_dir")
@field_options(only=("keep", "out", "score", "policy", "guard", "combine"), inherited=True)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def select(run_dir: str, as_json: bool, **flags: str | None) -> None:
    """Choose again from stage 0 of a finished run, without training.

    \b
    unseen-ray select runs/digits --keep 0.5 --score margin --policy class_balanced --out runs/digits-half
    """
    from unseen_ray import api
    from unseen_ray.summary import run as summary

    fields = merged_fields(None, flags)
    missing = [
        f"--{name} is missing: {PruneConfig.model_fields[name].description}."
        for name in ("keep", "out")
        if name not in fields
    ]
    if missing:
        raise ConfigError(missing)
    values = summary.prune_values(api.select(run_dir, **fields))
    if as_json:
        return _print_json(values)
    first, *rest = summary.prune_lines(values)
    _print_lines([first])
    _print_table(summary.class_table(values))
    _print_lines(rest)
    return None


@cli.command(cls=FieldCommand)
@click.option("--probs", multiple=True, required=True, metavar="FILE", help=".npy of (N, C) probabilities, one a model")
@click.option("--labels", required=True, metavar="FILE", help=".npy of (N,) integer labels")
@click.option(
    "--folds", default=None, metavar="FILE", help=".npy of (N,) folds, where one file holds all folds' answers"
)
@field_options(only=("out", "source", "score", "also_score", "combine", "guard", "seed"))
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def score(probs: tuple[str, ...], labels: str, folds: str | None, as_json: bool, **flags: str | None) -> None:
    """Score samples by out-of-fold probabilities of your own; `select` chooses by them.

    \b
    unseen-ray score --probs oof.npy --labels labels.npy --out runs/scores
    unseen-ray score --probs a.npy --probs b.npy --labels labels.npy --out runs/scores     # NaN rows: not scored by that model
    """
    from unseen_ray import api

    fields = merged_fields(None, flags)
    if "out" not in fields:
        raise ConfigError("--out is missing: name a new folder for the scores.")
    values = api.score(probs, labels, folds=folds, **fields)
    if as_json:
        return _print_json(values)
    _print_lines(
        [
            f"Scored {values['samples']:,} samples of {values['classes']} classes with {values['votes']} votes each, "
            f"{values['accuracy']:.1%} of which are right.",
            f"Choose by them: unseen-ray select {values['out']} --keep 0.7 --score {values['score']} --out NEW",
        ]
    )
    return None


@cli.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--seeds", type=int, default=None, metavar="INT", help="trainings of each arm  [default: 3]")
@click.option(
    "--against",
    default=None,
    metavar="NAMES",
    help="baselines among random, random_matched (the coreset's class counts), full, fitting  [default: random,full]",
)
@click.option(
    "--selections",
    type=int,
    default=None,
    metavar="INT",
    help="choices of the coreset, each by a whole prune with another seed  [default: 1]",
)
@click.option(
    "--budget",
    default=None,
    metavar="WHAT",
    help="epochs: every arm as many passes over its own samples; iterations: as many steps as full  [default: epochs]",
)
@field_options(
    only=("test", "model", "recipe", "threads", "gpus_per_fit", "log_to", *EXECUTOR_FIELDS, *NAMED_FIELDS),
    inherited=True,
)
@click.option("--json", "as_json", is_flag=True, help="print the table as JSON")
def evaluate(
    run_dir: str,
    seeds: int | None,
    against: str | None,
    selections: int | None,
    budget: str | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Train on the coreset and on baselines by the same recipe, and measure after the last epoch.

    \b
    unseen-ray evaluate runs/cifar --test cifar10-test.parquet --seeds 3 --against random,full
    """
    from rich.console import Console

    from unseen_ray import api
    from unseen_ray.progress import watching
    from unseen_ray.summary import evaluation as summary

    asked: dict[str, Any] = merged_fields(None, flags)
    given = {"seeds": seeds, "selections": selections, "budget": budget}
    asked |= {name: value for name, value in given.items() if value is not None}
    if against is not None:
        asked["against"] = tuple(name.strip() for name in against.split(",") if name.strip())
    with watching(Console(stderr=True)) as observer:
        evaluation = api.evaluate(run_dir, on_event=interruption.heeded(observer), **asked)
    if as_json:
        return _print_json(evaluation.to_json())
    first, *rest = summary.evaluation_lines(evaluation)
    _print_lines([first])
    _print_table(summary.evaluation_table(evaluation))
    _print_lines(rest)
    return None


@cli.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--json", "as_json", is_flag=True, help="print every number of the page as JSON, and write no page")
def report(run_dir: str, as_json: bool) -> None:
    """Write one self-contained HTML page on a finished run: RUN_DIR/report.html.

    \b
    unseen-ray evaluate runs/digits --against random,full,fitting
    unseen-ray report runs/digits
    """
    from unseen_ray import api

    if as_json:
        return _print_json(api.report_values(run_dir))
    _print_lines([f"Wrote {api.report(run_dir)}."])
    return None


@cli.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option(
    "--to",
    required=True,
    metavar="FILE",
    help=".npy: ids, .txt: keys, .csv, .parquet: all columns; a folder: the pruned data",
)
def export(run_dir: str, to: str) -> None:
    """Write the kept ids or keys to a file, or the pruned data set into a folder.

    \b
    unseen-ray export runs/digits --to kept.npy
    unseen-ray export runs/digits --to data/digits-pruned/
    """
    from unseen_ray import api

    count = api.export(run_dir, to)
    _print_lines([f"Wrote {count:,} samples to {to}."])


@cli.command("list", cls=FieldCommand)
@click.argument("what", type=click.Choice(["scores", "policies", "guards", "sources", "models", "recipes"]))
def list_names(what: str) -> None:
    """List what goes by a bare name, with a line on each."""
    from unseen_ray.listing import entries

    rows = entries(what)
    width = max(len(name) for name, _ in rows)
    _print_lines([f"{name:<{width}}  {line}" for name, line in rows])


cli.add_command(commands.prepare)
cli.add_command(commands.submit)
cli.add_command(commands.sweep)
cli.add_command(commands.watch)


def main(args: list[str] | None = None) -> None:
    """Run a command and end with its exit code: 0 done, 2 bad configuration, 3 bad data, 4 failed, 130 interrupted."""
    sys.path.insert(0, os.getcwd())
    interruption.listen()
    try:
        cli.main(args=args, prog_name="unseen-ray", standalone_mode=False)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        sys.exit(error.exit_code)
    except UnseenError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; run the same line again to go on", err=True)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        logging.getLogger(__name__).exception("this is a bug in unseen_ray, or in a function of yours")
        sys.exit(_FAILED)


def entry() -> None:
    """The console script: `main`, then an end without the interpreter's tear-down.

    Everything is closed by then; pyarrow's threads have been seen to abort the process while Python takes itself apart.
    """
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _start_logging(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("unseen_ray")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)


def _print_json(values: dict[str, Any]) -> None:
    click.echo(json.dumps(values, indent=1))


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
