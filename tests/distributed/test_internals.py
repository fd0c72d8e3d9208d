"""The private names of Ray: all are in one module, and each is still what that module takes it for."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.job_submission import JobSubmissionClient
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckTimeoutError

import unseen_ray
from unseen_ray.execution.ray import internals

ROOT = Path(unseen_ray.__file__).parent
PRIVATE = re.compile(
    r"\bray\.(?:\w+\.)*_[a-z]\w*|from ray\S* import .*\b_[a-z]\w*|_internal_kv|\._do_request"
    r"|\.worker\.mode\b|\b_(?:temp_dir|spill_on_unavailable)\b"
)


def test_no_other_module_uses_a_private_name_of_ray() -> None:
    found = {path.name for path in ROOT.rglob("*.py") if PRIVATE.search(path.read_text())}
    assert found == {"internals.py"}


@pytest.mark.ray
def test_what_a_session_tells(session: None) -> None:
    assert internals.draining_nodes() == frozenset()
    assert internals.autoscaler_groups() == ()
    assert internals.pending_requests() == ()
    assert all(kind.startswith("node_") for kind in internals.autoscaler_kinds())
    assert internals.dead_processes() == frozenset()
    assert Path(internals.session_folder(), "logs").is_dir()
    assert internals.cpus_of_machine() == ray.cluster_resources()["CPU"]
    here = internals.preferring(ray.get_runtime_context().get_node_id())
    assert not internals.is_worker() and ray.get(
        ray.remote(internals.is_worker).options(scheduling_strategy=here).remote()
    )
    internals.reread_authentication()
    assert internals.canonical_address(ray.get_runtime_context().gcs_address) == ray.get_runtime_context().gcs_address


def test_what_a_failed_start_leaves_is_found_in_its_traceback() -> None:
    """A node of Ray in a frame of the traceback is ended, and names its session once it has one."""
    from ray._private.node import Node

    class Failed(Node):
        def __init__(self) -> None:
            self.ended = False
            raise RuntimeError

        def kill_all_processes(self, **_: object) -> None:
            self._session_dir = "/tmp/session"

    try:
        Failed()
    except RuntimeError as error:
        assert internals.end_processes(error.__traceback__) == "/tmp/session"


def test_a_private_method_of_the_jobs_client_sends_its_token() -> None:
    assert isinstance(JobSubmissionClient._do_request, types.FunctionType)


def test_what_ray_train_wraps_is_found_again() -> None:
    bug = KeyError("a bug of the user's")
    assert internals.cause_of(UserExceptionWithTraceback(bug, "Traceback ...")) is bug
    assert internals.cause_of(bug) is bug
    assert internals.is_unhealthy_worker(WorkerHealthCheckTimeoutError("no answer"))
    assert not internals.is_unhealthy_worker(ActorDiedError())
