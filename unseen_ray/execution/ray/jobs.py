"""Runs as jobs of a Ray cluster, through Ray's Jobs API: check the cluster, submit, stream the log, report the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import platform
import shlex
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from unseen_ray.errors import ClusterError, ConfigError, first_line
from unseen_ray.execution.ray.capacity import Capacity, check_fits, check_placement
from unseen_ray.execution.ray.connect import api_server, check_reachable
from unseen_ray.execution.ray.internals import dashboard_get
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import answered

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.execution.ray.capacity import Selector

__all__ = ["Ending", "check_cluster", "connect", "follow", "submit", "version_problems"]

logger = logging.getLogger(__name__)

_EXIT_CODES = (0, 2, 3, 4, 130)
_FAILED, _INTERRUPTED = 4, 130
_SILENCE_S = 120.0
_PAUSE_S = 1.0
_PROBE_S = 10.0
_MOST_NODES = 10_000
_TOKEN = (
    "Ray takes the token from RAY_AUTH_TOKEN, else from the file that RAY_AUTH_TOKEN_PATH names, else from ~/.ray/auth_token, where "
    "RAY_AUTH_MODE is token (or is not set and there is such a token)"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended.

    Attributes:
        code: exit code for the command that followed it.
        message: the end of the sentence "job JOB ...".
    """

    code: int
    message: str


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API of the cluster with its dashboard at `address`.

    Raises:
        ConfigError: if no dashboard answers there, or it requires a token that this process does not have.
    """
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise ConfigError(
            f"--address {url.scheme}://{url.hostname or ''} must be the address of the head's dashboard, such as http://HEAD:8265."
        )
    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    try:
        check_reachable(url.hostname, url.port or (443 if url.scheme == "https" else 80))
        with api_server(url.geturl()):
            client = JobSubmissionClient(url.geturl())
    except AuthenticationError as error:
        raise ConfigError(f"the Ray cluster at {address} refuses this process ({_refusal(error)}). {_TOKEN}.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray dashboard answers at {address}: {reason_of(error).splitlines()[0]}. Check --address, and that the tunnel to it is up."
        ) from None
    _warn_without_token(url.geturl())
    return client


def check_cluster(client: JobSubmissionClient, config: PruneConfig) -> None:
    """Refuse a cluster that cannot do the run, as far as its REST interface tells.

    Raises:
        ConfigError: with every problem at once.
    """
    problems = version_problems(_get(client, "/api/v0/cluster_metadata"))
    capacity = _capacity(client)
    for check in (functools.partial(check_placement, parts=("driver",)), check_fits):
        try:
            check(config, capacity)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def version_problems(cluster: Mapping[str, Any]) -> list[str]:
    """Differences between the versions of Ray and Python on the cluster and here; Ray requires the same."""
    there = str(cluster.get("rayVersion")), _minor(str(cluster.get("pythonVersion")))
    here = ray.__version__, _minor(platform.python_version())
    problems = []
    for name, theirs, ours in zip(("Ray", "Python"), there, here, strict=True):
        if theirs != ours:
            problems.append(
                f"the cluster runs {name} {theirs}, but this environment has {name} {ours}: they must be the same. Submit from an "
                "environment like the cluster's, or start the cluster from one like this."
            )
    return problems


def submit(
    client: JobSubmissionClient,
    arguments: Sequence[str],
    *,
    working_dir: str,
    submission_id: str | None = None,
    placed: Selector | None = None,
) -> str:
    """Submit `unseen-ray ARGUMENTS` with a copy of a folder and return the job's id; `placed` are labels of the driver's node.

    Raises:
        ConfigError: if the cluster does not accept the job.
    """
    entrypoint = shlex.join(["python", "-m", "unseen_ray", *arguments])  # -m also finds a copy in the working directory
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env={"working_dir": working_dir},
                entrypoint_label_selector=None if placed is None else dict(placed),
            )
        )
    except (RuntimeError, ValueError, OSError) as error:
        message = str(error)
        if submission_id is not None and "already" in message:
            raise ConfigError(
                f"--submission-id {submission_id} belongs to another job of this cluster. Leave it out, or choose another one: a run "
                "resumes from its out, with any id."
            ) from None
        raise ConfigError(f"the cluster does not accept the job: {_last_line(message)}") from None


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> Ending:
    """Stream a job's log until the job has ended; reconnects when the connection breaks.

    Args:
        client: from `connect`.
        job: the job's id.
        write: called with each new piece of the log.

    Raises:
        ClusterError: if the cluster has not answered for two minutes.
    """
    log, failing_since = _Log(write), 0.0
    while True:
        try:
            asyncio.run(log.stream(client, job))
            info = client.get_job_info(job)
            failing_since = 0.0
            if info.status.is_terminal():
                log.complete(client, job)
                return _ending(info)
        except BrokenPipeError:  # from `write`, not from the cluster
            raise
        except Exception as error:  # requests, aiohttp and Ray raise errors that share no other base
            now = time.monotonic()
            if not failing_since or log.received_at > failing_since:
                failing_since = now  # not the last message: a log may be quiet for hours
            if now - failing_since > _SILENCE_S:
                raise ClusterError(
                    f"the cluster has not answered for {_SILENCE_S:.0f} s ({first_line(error)}). The job may still run: "
                    f"check with `ray job status {job}`. If it does not, the same line resumes the run."
                ) from None
        time.sleep(_PAUSE_S)


@dataclass(slots=True)
class _Log:
    """A job's log, written once although every new connection starts from its beginning."""

    write: Callable[[str], None]
    seen: int = 0
    received_at: float = 0.0

    async def stream(self, client: JobSubmissionClient, job: str) -> None:
        """Write what is new until the log ends or the connection breaks."""
        before = 0
        async for text in client.tail_job_logs(job):
            self.received_at = time.monotonic()
            self._add(text, before)
            before += len(text)

    def complete(self, client: JobSubmissionClient, job: str) -> None:
        """Write what a stream left out that broke as the job ended: to the client it looks like one that was read to its end."""
        try:
            text = answered(f"log of {job}", lambda: client.get_job_logs(job), _PROBE_S)
        except Exception as error:  # as in `follow`; a node that is gone took its log along
            logger.warning("the end of the job's log cannot be read: %s", first_line(error))
        else:
            self._add(text, 0)

    def _add(self, text: str, before: int) -> None:
        fresh = text[max(self.seen - before, 0) :]
        self.seen = max(self.seen, before + len(text))
        if fresh:
            self.write(fresh)


def _ending(info: Any) -> Ending:
    if info.status == JobStatus.STOPPED:
        return Ending(_INTERRUPTED, "was stopped; submit the same line again to resume it")
    code = info.driver_exit_code
    if code in _EXIT_CODES:
        return Ending(code, f"ended with exit code {code}")
    if code is None:
        return Ending(_FAILED, f"could not be started, or was lost: {_last_line(str(info.message))}")
    why = {
        127: ": there is no `python` on the path of the head node. Start Ray there from the environment that holds unseen_ray",
        137: ", as if it was killed; submit the same line again to resume",
        -9: ", as if it was killed; submit the same line again to resume",
        1: ", which unseen_ray never uses: is unseen_ray installed on the cluster, or in the working directory?",
    }
    return Ending(_FAILED, f"ended with exit code {code}{why.get(code, '')}")


def _warn_without_token(url: str) -> None:
    """Warn if a cluster requires no token."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/version", timeout=_PROBE_S):
        logger.warning(
            "the cluster at %s requires no token: anyone who can reach that address can run code on it. "
            "Start it with RAY_AUTH_MODE=token.",
            url,
        )


def _capacity(client: JobSubmissionClient) -> Capacity:
    """The live nodes, and whether an autoscaler may add more; Ray's REST interface does not tell their kinds."""
    nodes = _get(client, f"/api/v0/nodes?detail=1&limit={_MOST_NODES}")["result"]["result"]
    status = _get(client, "/api/cluster_status")["clusterStatus"]
    # without an autoscaler the head names one type per node, node_ID; version 2 of the autoscaler reports nothing here
    kinds = ((status or {}).get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
    autoscaling = status is None or any(not str(kind).startswith("node_") for kind in kinds.values())
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    return Capacity(
        nodes=tuple(node["resources_total"] for node in alive),
        autoscaling=autoscaling,
        labels=tuple(node.get("labels") or {} for node in alive),
    )


def _get(client: JobSubmissionClient, path: str) -> dict[str, Any]:
    """The data of a response of the dashboard."""
    try:
        return dashboard_get(client, path, _PROBE_S * 3)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the cluster does not answer {path.partition('?')[0]}: {first_line(error)}") from None


def _refusal(error: BaseException) -> str:
    return (
        first_line(error)
        .replace("Authentication required: ", "401 ")
        .replace("Authentication failed: ", "403 ")
        .rstrip(".")
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _last_line(text: str) -> str:
    return (text.strip(" .\n") or "it does not say why").splitlines()[-1]
