"""Commands beside those of a run: `submit` hands one in, `watch` looks at one from wherever its storage is seen, `sweep` tries many,
`prepare` packs a source that many will read.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import click

from unseen_ray.config import PruneConfig, load_yaml
from unseen_ray.errors import ConfigError
from unseen_ray.flags import Command, FieldCommand, field_options, given_flags, merged_fields, with_flags
from unseen_ray.interruption import interruption

__all__ = ["cluster_options", "is_sweep", "plan_sweep", "prepare", "submit", "sweep", "taken", "watch"]

_INTERRUPTED, _FAILED = 130, 4
_OF_CLUSTER = ("workers", "images_per_s", "scoring_images_per_s", "decode_images_per_s", "measure")
_FIELDS = [name for name in PruneConfig.model_fields if name not in ("address", "executor")]
_NEEDED = {"source": "name what to pack, such as a folder of class folders", "out": "name a new folder for it"}
_OF_TRIALS = [name for name in _FIELDS if name not in ("out", "seed", "mode", "reuse", "log_to", "test", "fit")]


@click.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options(only=_FIELDS)
@click.option("--fresh", is_flag=True, help="remove the run that out holds, if it holds nothing else, and begin anew")
@click.option("--address", default=None, metavar="URL", help="the head's dashboard  [default: RAY_API_SERVER_ADDRESS]")
@click.option(
    "--working_dir",
    default=".",
    metavar="DIR",
    help="the folder that the job gets a copy of: the YAML and your own functions  [default: .]",
)
@click.option("--no_wait", is_flag=True, help="print the job's id and leave, without following it")
@click.option("--submission_id", default=None, metavar="ID", help="the job's id  [default: Ray makes one]")
def submit(
    run_yaml: str | None,
    fresh: bool,
    address: str | None,
    working_dir: str,
    no_wait: bool,
    submission_id: str | None,
    **flags: str | None,
) -> None:
    """Submit a prune to a Ray cluster, follow its log, and end with its exit code; submit the same line again to resume.

    \b
    unseen-ray submit run.yaml --out /shared/runs/mine --address http://127.0.0.1:8265
    unseen-ray submit run.yaml --out s3://bucket/runs/mine --no-wait
    """
    from unseen_ray.shipping import shippable, shipped_yaml

    yaml = [] if run_yaml is None else [shipped_yaml(run_yaml, working_dir)]
    if run_yaml is not None and is_sweep(run_yaml):
        raise ConfigError(
            f"{run_yaml} is a sweep. Submit it by: ray job submit --working-dir {shlex.quote(working_dir)} -- unseen-ray sweep "
            f"{shlex.join(yaml)} --out /shared/runs/sweep"
        )
    config = shippable(merged_fields(run_yaml, flags), working_dir)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None:
        raise ConfigError(
            "--address is missing: the URL of the head's dashboard, such as http://127.0.0.1:8265 through a tunnel. "
            "RAY_API_SERVER_ADDRESS in the environment does as well."
        )
    from unseen_ray.distributed import submission

    client = submission.connect(address)
    submission.check_cluster(client, config)
    arguments = ["prune", *yaml, *given_flags(flags), *(["--fresh"] if fresh else [])]
    job = submission.submit(client, arguments, working_dir=working_dir, submission_id=submission_id)
    click.echo(f"submitted job {job}\n{_hints(job, address)}", err=True)
    click.echo(f"  its progress:  unseen-ray watch {shlex.quote(str(config.out))}", err=True)
    if no_wait:
        click.echo(job)
        return
    try:
        ending = submission.follow(client, job, _write)
    except KeyboardInterrupt:
        click.echo(f"\nno longer following; the job goes on.\n{_hints(job, address)}", err=True)
        sys.exit(_INTERRUPTED)
    click.echo(f"job {job} {ending.said}", err=True)
    sys.exit(ending.code)


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--once", is_flag=True, help="print how it stands, and leave")
def watch(run_dir: str, once: bool) -> None:
    """Show how a run stands, from its folder alone, until it has finished; on any machine that sees the folder. It may begin later.

    \b
    unseen-ray watch /shared/runs/mine
    unseen-ray watch s3://bucket/runs/mine --once
    """
    from rich.console import Console

    from unseen_ray.storage import Folder
    from unseen_ray.summary import watch as summary
    from unseen_ray.watching import Watcher

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
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


@click.command(cls=FieldCommand)
@click.argument("sweep_yaml")
@field_options(only=_OF_TRIALS)
@click.option("--out", default=None, metavar="DIR", help="the sweep's folder; the same one goes on")
@click.option("--trials", type=int, default=None, metavar="INT", help="how many configurations random and optuna try")
@click.option("--seeds", type=int, default=None, metavar="INT", help="runs of each configuration  [default: 1]")
@click.option(
    "--seed", type=int, default=None, metavar="INT", help="of the first of them, and of the search  [default: 0]"
)
@click.option("--max_concurrent_trials", type=int, default=None, metavar="INT", help="trials at work at once")
@click.option("--address", default=None, metavar="ADDRESS", help="the Ray cluster to join  [default: RAY_ADDRESS]")
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
    """Try many configurations, each measured on a holdout; run the same line again to resume. Fields of a run are those that all share.

    \b
    unseen-ray plan sweep.yaml
    unseen-ray sweep sweep.yaml --out runs/sweep
    """
    from unseen_ray.summary import sweep as summary
    from unseen_ray.sweeping.config import SweepConfig
    from unseen_ray.sweeps import sweep as run_sweep

    own = {"out": out, "trials": trials, "seeds": seeds, "seed": seed, "address": address}
    own["max_concurrent_trials"] = max_concurrent_trials
    given = {name: value for name, value in own.items() if value is not None}
    config = SweepConfig(**{**_sweep_fields(sweep_yaml, flags), **given})
    result = run_sweep(config, on_end=interruption.heeded(summary.teller(config)))
    if as_json:
        click.echo(json.dumps(summary.sweep_values(result), indent=1))
        sys.exit(_FAILED if result.best is None else 0)
    first, *rest = summary.sweep_lines(result)
    click.echo(first)
    _console().print(summary.trials_table(result))
    _console().print(summary.trainings_table(result))
    for line in rest:
        click.echo(line)
    if result.best is None:
        sys.exit(_FAILED)


@click.command(cls=FieldCommand)
@click.argument("place", metavar="SOURCE", required=False)
@field_options(only=("source",))
@click.option("--out", default=None, metavar="DIR", help="a new folder or URI; one that was begun goes on")
@click.option(
    "--size",
    type=int,
    default=None,
    metavar="INT",
    help="pixels of a JPEG's short side, never enlarged; height and width of a raw square  [default: 256]",
)
@click.option(
    "--as",
    "kind",
    default=None,
    metavar="jpeg|raw",
    help="jpeg: upright, RGB, scaled; raw: the pixels that a run of this size makes  [default: jpeg]",
)
@click.option("--quality", type=int, default=None, metavar="INT", help="of jpeg, 1 to 100  [default: 90]")
@click.option("--shard_mb", type=float, default=None, metavar="NUMBER", help="MB of a file, about  [default: 128]")
@click.option("--workers", type=int, default=None, metavar="INT", help="processes  [default: one a core]")
@field_options(only=("on_bad_sample",))
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def prepare(place: str | None, as_json: bool, **flags: Any) -> None:
    """Pack a source once into Parquet that decodes fast, ids as they were; run the same line again to go on.

    \b
    unseen-ray prepare imagenet --source.root /data/imagenet --out /data/imagenet-256
    unseen-ray prepare photos/ --out photos-64 --size 64 --as raw
    """
    from rich.console import Console

    from unseen_ray.preparing import prepare as run_prepare
    from unseen_ray.summary import prepare as summary

    if place is not None and flags["source"] is not None:
        raise ConfigError(f"SOURCE {place} and --source {flags['source']} name two sources. Give one.")
    options = {name: flags.pop(name) for name in ("out", "size", "kind", "quality", "shard_mb", "workers")}
    fields = merged_fields(None, {**flags, "source": place or flags["source"]})
    missing = [f"{name} is missing: {what}." for name, what in _NEEDED.items() if not {**options, **fields}.get(name)]
    if missing:
        raise ConfigError(missing)
    given = {name: value for name, value in {**options, **fields}.items() if value is not None}
    with summary.watching(Console(stderr=True)) as teller:
        prepared = run_prepare(**given, on_event=interruption.heeded(teller))
    values = summary.prepare_values(prepared)
    for line in [json.dumps(values, indent=1)] if as_json else summary.prepare_lines(values):
        click.echo(line)


def is_sweep(path: str) -> bool:
    """Whether a YAML file describes a sweep."""
    return "space" in load_yaml(path)


def cluster_options(command: Command) -> Command:
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


def taken(flags: dict[str, Any]) -> dict[str, Any]:
    """What `cluster_options` brought, taken out of the flags."""
    return {name: flags.pop(name) for name in _OF_CLUSTER}


def plan_sweep(path: str, flags: Mapping[str, str | None], asked: Mapping[str, Any], as_json: bool) -> None:
    """Show what a sweep would do and cost."""
    from unseen_ray.estimating import check_asked
    from unseen_ray.summary import sweep as summary
    from unseen_ray.sweeping.config import SweepConfig
    from unseen_ray.sweeping.plan import plan_sweep

    if idle := [name for name in _OF_CLUSTER if name != "images_per_s" and asked[name]]:
        raise ConfigError(
            f"--{idle[0]} is for the plan of a run; of a sweep, --images_per_s gives the hours. Leave it out."
        )
    rate = asked["images_per_s"]
    check_asked(None, {"training": rate})
    values = summary.plan_values(plan_sweep(SweepConfig(**_sweep_fields(path, flags))), rate)
    if as_json:
        click.echo(json.dumps(values, indent=1))
        return
    for line in summary.plan_lines(values):
        click.echo(line)
    _console().print(summary.plan_table(values))


def _sweep_fields(path: str, flags: Mapping[str, str | None]) -> dict[str, Any]:
    """Fields of a sweep, those of its runs changed by flags."""
    fields = load_yaml(path)
    run = fields.get("run")
    return {**fields, "run": with_flags(run if isinstance(run, dict) else {}, flags)}


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)


def _hints(job: str, address: str) -> str:
    there = f"--address {address} {job}"
    return f"  its log:       ray job logs --follow {there}\n  how it stands: ray job status {there}\n  to stop it:    ray job stop {there}"


def _write(text: str) -> None:
    click.echo(text, nl=False)
