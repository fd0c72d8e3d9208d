"""Real Ray: one session for the tests that need no more than that, and simulated clusters of several nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

import unseen_ray as ur
from unseen_ray.config.run import load_yaml
from unseen_ray.execution.ray.connect import ray_session

ON_IMAGES: dict[str, Any] = {
    "keep": 0.5,
    "folds": 4,
    "schedule": [0.3, 0.5],
    "model": {"use": "small_cnn"},
    "recipe": {"epochs": 20, "min_steps": 0},
    "scoring": {"share": 1},
}


@pytest.fixture(scope="session")
def images(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the YAML of a run on the first images of CIFAR-10."""
    folder = tmp_path_factory.mktemp("images")
    source = {"use": "parquet", "path": str((real_data / "cifar10-train.parquet").resolve()), "limit": 5000}
    (folder / "run.yaml").write_text(yaml.safe_dump({"source": source, **ON_IMAGES}))
    return folder


@pytest.fixture(scope="session")
def on_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    """What that run picks in one process."""
    fields = load_yaml(images / "run.yaml")
    return ur.prune(ur.PruneConfig(**fields, executor="local", out=tmp_path_factory.mktemp("on-images")))


SHARED = contextlib.ExitStack()


@pytest.fixture(scope="session", autouse=True)
def _ends_with_the_tests() -> Iterator[None]:
    yield
    SHARED.close()


@pytest.fixture(scope="module")
def session() -> None:
    """A private Ray cluster on this machine's CPUs, shared by every module that takes it, until one wants to be alone."""
    if not ray.is_initialized():
        SHARED.enter_context(ray_session(None))


@pytest.fixture(scope="module")
def alone() -> None:
    """No cluster that an earlier module has left open."""
    SHARED.close()


@pytest.fixture(scope="module")
def simulated(alone: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three Ray nodes on this machine: a head without GPU, and two workers with a pretended GPU each; a folder to write to."""
    with cluster_of_workers(gpus=1):
        yield tmp_path_factory.mktemp("simulated")


@pytest.fixture(scope="module")
def four_gpus(alone: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with two pretended GPUs each, in whose place models are trained on the CPU."""
    with cluster_of_workers(gpus=2, worker_process_setup_hook="tests.distributed.conftest.train_on_the_cpu"):
        yield tmp_path_factory.mktemp("four_gpus")


@contextlib.contextmanager
def cluster_of_workers(*, gpus: int, **environment: str) -> Iterator[None]:
    """A head of one CPU, and two workers of so many CPUs and pretended GPUs; this process is connected to it.

    `environment` is the Ray runtime environment of all workers.
    """
    import logging

    from ray.cluster_utils import Cluster

    memory = 200 * 2**20
    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=gpus, num_gpus=gpus, object_store_memory=memory)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=environment)
    cluster.wait_for_nodes()
    yield
    ray.shutdown()
    cluster.shutdown()


def train_on_the_cpu() -> None:
    """Let this worker's pretended GPU be the CPU for torch, which would refuse it otherwise."""
    import torch

    from unseen_ray.training import hardware

    hardware.first_gpu = lambda: torch.device("cpu")
