"""A run as a job of a Ray cluster, by Ray's Jobs API: what is checked before, how it is followed, what it ended with."""

from __future__ import annotations

import asyncio
import contextlib
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

from unseen_ray.errors import ClusterError, ConfigError
from unseen_ray.execution.ray.capacity import Capacity, check_fits
from unseen_ray.execution.ray.connect import api_server, knock

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

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
        code: what a command that followed it ends with.
        said: what to say of it.
    """

    code: int
    said: str


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API of the cluster whose dashboard is at `address`.

    Raises:
        ConfigError: if nobody answers there, or it asks for a token that this process does not have.
    """
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise ConfigError(
            f"--address {url.scheme}://{url.hostname or ''} must be that of the head's dashboard, such as http://HEAD:8265."
        )
    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    try:
        knock(url.hostname, url.port or (443 if url.scheme == "https" else 80))
        with api_server(url.geturl()):
            client = JobSubmissionClient(url.geturl())
    except AuthenticationError as error:
        raise ConfigError(f"the Ray cluster at {address} refuses this process ({_refusal(error)}). {_TOKEN}.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray dashboard answers at {address}: {_first_line(error).rstrip('.')}. Check --address, and that the tunnel to it is up."
        ) from None
    _warn_of_open_door(url.geturl())
    return client


def check_cluster(client: JobSubmissionClient, config: PruneConfig) -> None:
    """Refuse a cluster that could not do the run, as far as its REST interface tells.

    Raises:
        ConfigError: with every problem at once.
    """
    problems = version_problems(_get(client, "/api/v0/cluster_metadata"))
    capacity = _capacity(client)
    try:
        check_fits(config, capacity)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def version_problems(cluster: Mapping[str, Any]) -> list[str]:
    """What is wrong with a cluster's Ray and Python, which a driver from here would have to share."""
    there = str(cluster.get("rayVersion")), _minor(str(cluster.get("pythonVersion")))
    here = ray.__version__, _minor(platform.python_version())
    problems = []
    for name, theirs, ours in zip(("Ray", "Python"), there, here, strict=True):
        if theirs != ours:
            problems.append(
                f"the cluster runs {name} {theirs}, and {name} {ours} is here: they must be the same. Submit from an environment "
                "like the cluster's, or start the cluster from one like this."
            )
    return problems


def submit(
    client: JobSubmissionClient, arguments: Sequence[str], *, working_dir: str, submission_id: str | None = None
) -> str:
    """Submit `unseen-ray ARGUMENTS` with a copy of a folder; returns the job's id.

    Raises:
        ConfigError: if the cluster does not take it.
    """
    entrypoint = shlex.join(["python", "-m", "unseen_ray", *arguments])  # finds a copy in the working directory, too
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint, submission_id=submission_id, runtime_env={"working_dir": working_dir}
            )
        )
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error)
        if submission_id is not None and "already" in said:
            raise ConfigError(
                f"--submission-id {submission_id} belongs to another job of this cluster. Leave it out, or take another one: a run "
                "goes on by its out, whatever the id."
            ) from None
        raise ConfigError(f"the cluster does not take the job: {_last_line(said)}") from None


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> Ending:
    """Hand over a job's log as it grows, until the job has ended; its connection may break meanwhile.

    Args:
        client: from `connect`.
        job: its id.
        write: takes the log's next piece.

    Raises:
        ClusterError: if the cluster has not answered for two minutes.
    """
    log, failing_since = _Log(write), 0.0
    while True:
        try:
            asyncio.run(log.follow(client, job))
            info = client.get_job_info(job)
            failing_since = 0.0
            if info.status.is_terminal():
                return _ending(info)
        except BrokenPipeError:
            raise
        except Exception as error:  # of requests, aiohttp and Ray, which share no other base
            now = time.monotonic()
            if not failing_since or log.heard > failing_since:
                failing_since = now  # a log may be quiet for hours: silence begins with the first failure
            if now - failing_since > _SILENCE_S:
                raise ClusterError(
                    f"the cluster has not answered for {_SILENCE_S:.0f} s ({_first_line(error)}). The job may still run: "
                    f"`ray job status {job}` tells. If it does not, the same line goes on with the run."
                ) from None
        time.sleep(_PAUSE_S)


@dataclass(slots=True)
class _Log:
    """A job's log, each piece of which is handed over once though a new connection begins at the start."""

    write: Callable[[str], None]
    seen: int = 0
    heard: float = 0.0

    async def follow(self, client: JobSubmissionClient, job: str) -> None:
        """Hand over what is new until the log ends or the connection breaks."""
        before = 0
        async for text in client.tail_job_logs(job):
            self.heard = time.monotonic()
            fresh = text[max(self.seen - before, 0) :]
            before += len(text)
            self.seen = max(self.seen, before)
            if fresh:
                self.write(fresh)


def _ending(info: Any) -> Ending:
    if info.status == JobStatus.STOPPED:
        return Ending(_INTERRUPTED, "was stopped; submit the same line again to go on")
    code = info.driver_exit_code
    if code in _EXIT_CODES:
        return Ending(code, f"ended with exit code {code}")
    if code is None:
        return Ending(_FAILED, f"could not start or was lost: {_last_line(str(info.message))}")
    why = {
        127: ": there is no `python` on the path of the head node. Start Ray there from the environment that holds unseen_ray",
        137: ", as if it was killed; submit the same line again to go on",
        -9: ", as if it was killed; submit the same line again to go on",
        1: ", which is none of unseen_ray's: is unseen_ray installed on the cluster, or in the working directory?",
    }
    return Ending(_FAILED, f"ended with exit code {code}{why.get(code, '')}")


def _warn_of_open_door(url: str) -> None:
    """Say that a cluster answers strangers."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/version", timeout=_PROBE_S):
        logger.warning(
            "the cluster at %s asks nobody for a token: whoever reaches that address can run code on it. "
            "Start it with RAY_AUTH_MODE=token.",
            url,
        )


def _capacity(client: JobSubmissionClient) -> Capacity:
    """The nodes that are alive, and whether more may come; Ray's REST interface does not say of which kind."""
    nodes = _get(client, f"/api/v0/nodes?detail=1&limit={_MOST_NODES}")["result"]["result"]
    status = _get(client, "/api/cluster_status")["clusterStatus"]
    # without an autoscaler the head names a type after each node; version 2 of the autoscaler reports nothing here
    kinds = ((status or {}).get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
    autoscaling = status is None or any(not str(kind).startswith("node_") for kind in kinds.values())
    return Capacity(
        nodes=tuple(node["resources_total"] for node in nodes if node["state"] == "ALIVE"), autoscaling=autoscaling
    )


def _get(client: JobSubmissionClient, path: str) -> dict[str, Any]:
    """The data of an answer of the dashboard, asked for as the client does, with its token."""
    try:
        response = client._do_request("GET", path, timeout=_PROBE_S * 3)
        response.raise_for_status()
        data: dict[str, Any] = response.json()["data"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the cluster does not answer {path.partition('?')[0]}: {_first_line(error)}") from None
    return data


def _refusal(error: BaseException) -> str:
    return (
        _first_line(error)
        .replace("Authentication required: ", "401 ")
        .replace("Authentication failed: ", "403 ")
        .rstrip(".")
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(text: str) -> str:
    return (text.strip(" .\n") or "it does not say why").splitlines()[-1]
