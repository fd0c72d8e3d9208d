"""The private modules and attributes of Ray that this package uses, each behind a function; a test tells when one has moved."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = [
    "autoscaler_groups",
    "autoscaler_kinds",
    "canonical_address",
    "cause_of",
    "cpus_of_machine",
    "dashboard_get",
    "dead_processes",
    "draining_nodes",
    "end_processes",
    "is_unhealthy_worker",
    "is_worker",
    "pending_requests",
    "preferring",
    "reread_authentication",
    "session_folder",
    "start_cluster",
]


def is_worker() -> bool:
    """Whether this process is a worker of Ray, not a driver."""
    import ray

    return bool(ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def start_cluster(folder: str | None) -> None:
    """Start a private cluster on this machine, with its session below `folder`; None for Ray's default.

    Its workers are in this process's environment and folder. Under `uv run`, Ray would give them a copy of the folder each, in which
    uv makes another environment.
    """
    import ray
    from ray._private import ray_constants

    follow_uv = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        ray.init(
            address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, _temp_dir=folder
        )
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = follow_uv


def preferring(node: str) -> NodeAffinitySchedulingStrategy:
    """On this node if it has room at once, else on another; public options would wait for the node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are about to be taken away. `ray.nodes` does not tell them."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def autoscaler_groups() -> tuple[Mapping[str, float], ...]:
    """Resources of the kinds of node that an autoscaler of version 2, which KubeRay runs, may add.

    `ray.autoscaler.v2.sdk` tells the present nodes and the demand alone.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    groups: Any = config.node_group_configs if config is not None else ()
    return tuple(
        {name: float(amount) for name, amount in group.resources.items()} for group in groups if group.max_count != 0
    )


def autoscaler_kinds() -> tuple[str, ...]:
    """The kinds of node in the report of an autoscaler of version 1; of none, they are named after the nodes' ids."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    raw = _internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode())
    report = (json.loads(raw).get("autoscaler_report") if raw else None) or {}
    return tuple(map(str, (report.get("node_type_mapping") or {}).values()))


def pending_requests() -> tuple[tuple[Mapping[str, float], int], ...]:
    """What the actors, tasks and placement groups of the whole cluster that have yet to start ask for, and how many ask for it."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    asking = [*demands.ray_task_actor_demand, *demands.placement_group_demand]
    return tuple((each.bundle, each.count) for demand in asking for each in demand.bundles_by_count)


def cpus_of_machine() -> float:
    """The CPUs that a cluster on this machine would have: those that a container allows."""
    from ray._private.utils import get_num_cpus

    return float(get_num_cpus())


def canonical_address(address: str) -> str | None:
    """The address that `auto` stands for; ConnectionError where no cluster runs."""
    from ray._private.services import canonicalize_bootstrap_address

    found: str | None = canonicalize_bootstrap_address(address)
    return found


def session_folder() -> str:
    """The folder of the private cluster of this process, which Ray leaves behind."""
    from ray._private import worker

    return str(worker.global_worker.node.get_session_dir_path())


def dead_processes() -> frozenset[str]:
    """What has ended of the private cluster of this process: its raylet, its gcs_server."""
    from ray._private import worker

    return frozenset(str(kind) for kind, _ in worker.global_worker.node.dead_processes())


def end_processes(start: TracebackType | None) -> str | None:
    """End what a failed start of Ray has left running, which Ray would do only when this process ends.

    Args:
        start: the traceback of the failure.

    Returns:
        The session's folder, if it has one yet.
    """
    import traceback

    from ray._private import worker
    from ray._private.node import Node

    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(start))
    node = next((each for each in frames if isinstance(each, Node)), worker._global_node)
    if node is None:
        return None
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    return str(node.get_session_dir_path()) if hasattr(node, "_session_dir") else None


def reread_authentication() -> None:
    """Ray reads its authentication variables once, at import; have it read them again, as `ray.init` itself does."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def dashboard_get(client: JobSubmissionClient, path: str, timeout_s: float) -> dict[str, Any]:
    """The data of a response of the dashboard, asked with the client's token.

    Raises:
        OSError, ValueError, KeyError: if it does not answer, or with something else.
    """
    response = client._do_request("GET", path, timeout=timeout_s)
    response.raise_for_status()
    data: dict[str, Any] = response.json()["data"]
    return data


def cause_of(failure: BaseException) -> BaseException:
    """What a worker of Ray Train raised, out of the exception that Ray Train wraps it in."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure


def is_unhealthy_worker(failure: BaseException) -> bool:
    """Whether Ray Train gave up a worker that did not answer."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    return isinstance(failure, (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError))
