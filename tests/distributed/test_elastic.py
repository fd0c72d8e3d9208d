"""Nodes that join and leave a fixed cluster while a run goes on; all are real Ray nodes on this machine."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

import unseen_ray as ur
from tests.distributed.jobs import until
from tests.distributed.nodes import BIN, stop
from unseen_ray.errors import ClusterError
from unseen_ray.execution.ray.actor_pool import FoldPool
from unseen_ray.execution.ray.capacity import slots, survey
from unseen_ray.runs.manifest import Manifest, write_manifest
from unseen_ray.runs.manifest_entries import SourceEntry
from unseen_ray.storage.filesystem import Folder

NO_SOURCE = SourceEntry(fingerprint="", num_samples=0, num_classes=0, class_names=[])

pytestmark = pytest.mark.ray

SOURCE = {"use": "digits", "limit": 200}
SMALL = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
HEALTH = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "2"}


@pytest.fixture(scope="module")
def head(alone: None) -> Iterator[Cluster]:
    """A head without CPUs; a node that is lost is noticed within seconds."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in HEALTH.items():
            environment.setenv(f"RAY_health_check_{name}", value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **SMALL})
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The head alone, to which a test adds nodes."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, "nodes that were removed are gone", 30)


def add(cluster: Cluster, *, gpus: int = 0) -> Any:
    return cluster.add_node(num_cpus=1, num_gpus=gpus, **SMALL)


def once(do: Callable[[], object]) -> Callable[[object], None]:
    """An observer that does something at the first event."""
    done: list[object] = []

    def observe(event: object) -> None:
        if not done:
            done.append(event)
            do()

    return observe


def config(out: Path, **fields: object) -> ur.PruneConfig:
    return ur.PruneConfig(**{"source": SOURCE, "keep": 0.5, "folds": 4, "out": str(out), **fields})


def locally(out: Path) -> list[int]:
    ids: list[int] = ur.prune(config(out, fit="tests.plugs:centroids", executor="local")).coreset.ids.tolist()
    return ids


@pytest.mark.slow
def test_a_node_that_joins_takes_queued_folds(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [add(cluster)]
    fit = {
        "use": "tests.plugs:noted_centroids",
        "log": str(tmp_path),
        "together": 2,
    }  # the first fold waits for another
    result = ur.prune(config(tmp_path / "run", fit=fit), on_event=once(lambda: nodes.append(add(cluster))))
    notes = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("0-*.json"))]
    assert len(notes) == 4
    assert {note["node"] for note in notes} == {node.node_id for node in nodes}
    assert max(note["ended"] - note["began"] for note in notes) < 60, "the first fold waited in vain"
    assert result.coreset.ids.tolist() == locally(tmp_path / "local")


@pytest.mark.slow
def test_the_last_node_leaves_and_another_one_takes_its_place(cluster: Cluster, tmp_path: Path) -> None:
    first, later = add(cluster), []

    def lose() -> None:
        cluster.remove_node(first, allow_graceful=False)
        line = [str(BIN / "ray"), "start", f"--address={cluster.address}", "--num-cpus=1", "--num-gpus=0", "--block"]
        late = ["sh", "-c", f"sleep 8; exec {shlex.join(line)}"]
        with (tmp_path / "later.log").open("wb") as log:
            later.append(subprocess.Popen(late, stdout=log, stderr=log, start_new_session=True))

    fit = {"use": "tests.plugs:slow_centroids", "seconds": 1.0}
    try:
        result = ur.prune(config(tmp_path / "run", fit=fit, wait_s=60), on_event=once(lose))
    finally:
        for node in later:
            stop(node)
    assert len(later) == 1
    assert result.coreset.ids.tolist() == locally(tmp_path / "local")


@pytest.mark.slow
def test_a_run_without_nodes_ends_after_a_while_and_goes_on_later(cluster: Cluster, tmp_path: Path) -> None:
    node = add(cluster)
    asked = config(tmp_path / "run", fit={"use": "tests.plugs:slow_centroids", "seconds": 1.0}, wait_s=3)
    with pytest.raises(
        ClusterError, match=r"no node with 1 CPU and 0 GPU for a fold is left, and none joined .* within wait_s=3 s"
    ) as failure:
        ur.prune(asked, on_event=once(lambda: cluster.remove_node(node, allow_graceful=False)))
    assert failure.value.exit_code == 4
    add(cluster)
    assert ur.prune(asked).coreset.ids.tolist() == locally(tmp_path / "local")


@pytest.mark.slow
def test_a_pool_knows_who_left(cluster: Cluster, tmp_path: Path) -> None:
    """Actors that were idle on a node that is gone are forgotten, and count as no failure of the next task."""
    write_manifest(Folder(str(tmp_path)), Manifest(created="", config={}, asked={}, source=NO_SOURCE))
    node = add(cluster)
    request = {"CPU": 1.0, "GPU": 0.0}
    pool = FoldPool(
        request=request, capacity=survey(), precision="float32", max_retries=0, wait_s=60, out=str(tmp_path)
    )
    try:
        assert "node_id" not in pool.first_worker()
        assert pool.has_actors()
        cluster.remove_node(node, allow_graceful=False)
        waited = threading.Event()
        for _ in range(300):
            pool.request_actors(1)
            if not pool.has_actors():
                break
            waited.wait(0.1)
        assert not pool.has_actors()
        assert slots(pool.capacity, request) == 0
    finally:
        pool.close()
