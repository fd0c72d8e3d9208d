"""Nodes that are taken away with notice, as clouds take spot instances: nothing that was trained is trained again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

import unseen_ray as ur
from unseen_ray.execution.ray.capacity import survey

pytestmark = pytest.mark.ray

SMALL = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
STEP_S = 0.1
STEPS = 60  # of both folds together


@pytest.fixture
def cluster(alone: None) -> Iterator[Cluster]:
    """A head without CPUs, and three nodes of one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **SMALL})
    for _ in range(3):
        cluster.add_node(num_cpus=1, num_gpus=0, **SMALL)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def config(out: Path, **fields: Any) -> ur.PruneConfig:
    recipe = {"epochs": 1, "min_steps": 0, "batch_size": 10}
    given = {"source": {"use": "digits", "limit": STEPS * 10}, "keep": 0.5, "folds": 2, "scoring": {"share": 1}}
    return ur.PruneConfig(**{**given, "recipe": recipe, "log_to": "none", "out": str(out), **fields})


class Drainer(threading.Thread):
    """Takes away one node after another on which a training has begun, a second after it has."""

    def __init__(self, cluster: Cluster, log: Path, *, times: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.log, self.times = cluster, log, times
        self.drained: list[str] = []

    def run(self) -> None:
        for _ in range(self.times):
            while not (node := self.training_on()) or node in self.drained:
                time.sleep(0.05)
            time.sleep(1)
            deadline_ms = int((time.time() + 30) * 1000)
            gcs = GcsClient(address=self.cluster.address)
            accepted, why = gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "spot", deadline_ms)
            assert accepted, why
            self.drained.append(node)

    def training_on(self) -> str:
        return self.log.read_text().split("\n")[-2].split()[0] if self.log.exists() else ""


@pytest.mark.slow
def test_nodes_taken_away_one_after_another_cost_no_step_and_no_retry(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "steps"
    model = {"use": "tests.plugs:noted_steps", "log": str(log), "seconds": STEP_S}
    drainer = Drainer(cluster, log, times=2)
    drainer.start()
    result = ur.prune(config(tmp_path / "run", model=model, max_retries=0))
    drainer.join(60)
    steps = [line.split() for line in log.read_text().splitlines()]
    assert len(drainer.drained) == 2
    assert {node for node, _ in steps} >= set(drainer.drained)
    assert len(steps) == STEPS, f"{(len(steps) - STEPS) * STEP_S:.1f} s were trained again"
    assert not set(drainer.drained) & set(survey().node_ids)
    local = ur.prune(config(tmp_path / "local", model=model, executor="local"))
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()
