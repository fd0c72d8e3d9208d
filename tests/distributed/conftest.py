"""Real Ray: one session for the tests that need no more than that, and simulated clusters of several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unseen_ray.distributed.session import ray_session


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """A private Ray cluster on this machine's CPUs, shared by a module's tests."""
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three Ray nodes on this machine: a head without GPU, and two workers with a pretended GPU each; a folder to write to."""
    import logging

    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=200 * 2**20)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    cluster.wait_for_nodes()
    yield tmp_path_factory.mktemp("simulated")
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def four_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A head without GPU and two workers of two pretended GPUs each; a folder to write to."""
    import logging

    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=200 * 2**20)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    cluster.wait_for_nodes()
    yield tmp_path_factory.mktemp("four_gpus")
    ray.shutdown()
    cluster.shutdown()
