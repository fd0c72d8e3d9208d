"""`unseen-ray submit`: prune as a job of a Ray cluster."""

from __future__ import annotations

import re
import shlex
import sys

import click

from unseen_ray.cli.commands.sweep import is_sweep
from unseen_ray.cli.flags import FieldCommand, field_options, given_flags, merged_fields
from unseen_ray.cli.output import INTERRUPTED, say
from unseen_ray.config.run import PruneConfig
from unseen_ray.errors import ConfigError
from unseen_ray.storage.environment import RAY_API_SERVER, variable

__all__ = ["submit"]

# A job runs on the cluster that it is submitted to, and on Ray.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m|\r(?=\n)")  # Ray colours the names of its workers
_FIELDS = [name for name in PruneConfig.model_fields if name not in ("address", "executor")]


@click.command(cls=FieldCommand)
@click.argument("run_yaml", required=False)
@field_options(only=_FIELDS)
@click.option("--fresh", is_flag=True, help="delete the run in out and start over; refused if out holds anything else")
@click.option("--address", metavar="URL", help="the head's dashboard  [default: RAY_API_SERVER_ADDRESS]")
@click.option(
    "--working_dir",
    default=".",
    metavar="DIR",
    help="folder that is copied to the cluster: the YAML and your own functions  [default: .]",
)
@click.option("--no_wait", is_flag=True, help="print the job's id and exit, without following its log")
@click.option("--submission_id", metavar="ID", help="the job's id  [default: made by Ray]")
def submit(
    run_yaml: str | None,
    fresh: bool,
    address: str | None,
    working_dir: str,
    no_wait: bool,
    submission_id: str | None,
    **flags: str | None,
) -> None:
    """Submit a prune to a Ray cluster, and follow its log. Ends with the job's exit code. Submit the same line again to resume.

    \b
    unseen-ray submit run.yaml --out /shared/runs/mine --address http://127.0.0.1:8265
    unseen-ray submit run.yaml --out s3://bucket/runs/mine --no_wait
    """
    from unseen_ray.execution.job_checks import shippable

    yaml = _shipped(run_yaml, working_dir)
    config = shippable(merged_fields(run_yaml, flags), working_dir)
    address = _dashboard(address)
    from unseen_ray.execution.ray import jobs as submission  # loads Ray: only once nothing above was refused

    client = submission.connect(address)
    submission.check_cluster(client, config)
    arguments = ["prune", *yaml, *given_flags(flags), *(["--fresh"] if fresh else [])]
    driver = (config.placement or {}).get("driver")
    job = submission.submit(client, arguments, working_dir=working_dir, submission_id=submission_id, placed=driver)
    say(f"submitted job {job}\n{_hints(job, address)}", err=True)
    say(f"  its progress:  unseen-ray watch {shlex.quote(str(config.out))}", err=True)
    if no_wait:
        say(job)
        return
    try:
        ending = submission.follow(client, job, _write)
    except KeyboardInterrupt:
        say(f"\nstopped following the log; the job keeps running.\n{_hints(job, address)}", err=True)
        sys.exit(INTERRUPTED)
    say(f"job {job} {ending.message}", err=True)
    sys.exit(ending.code)


def _shipped(run_yaml: str | None, working_dir: str) -> list[str]:
    """The YAML's argument within the job's copy of the working directory."""
    from unseen_ray.execution.job_checks import shipped_yaml

    if run_yaml is None:
        return []
    inside = shipped_yaml(run_yaml, working_dir)
    if is_sweep(run_yaml):
        raise ConfigError(
            f"{run_yaml} is a sweep. Submit it by: ray job submit --working-dir {shlex.quote(working_dir)} -- unseen-ray sweep "
            f"{shlex.quote(inside)} --out /shared/runs/sweep"
        )
    return [inside]


def _dashboard(address: str | None) -> str:
    found = address or variable(RAY_API_SERVER)
    if found is None:
        raise ConfigError(
            "--address is missing: give the URL of the head's dashboard, such as http://127.0.0.1:8265 through a tunnel, "
            "or set RAY_API_SERVER_ADDRESS."
        )
    return found


def _hints(job: str, address: str) -> str:
    there = f"--address {address} {job}"
    return f"  its log:       ray job logs --follow {there}\n  its status:    ray job status {there}\n  to stop it:    ray job stop {there}"


def _write(text: str) -> None:
    say(_COLOUR.sub("", text).replace("\r", "\n"), nl=False)
