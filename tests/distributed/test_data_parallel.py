"""A fit is not lost with its worker; and several workers share one, by real Ray Train over gloo."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray import PlacementGroupID
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError
from ray.train import PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.preemption import PreemptionInfo
from ray.util.placement_group import PlacementGroup

import unseen_ray as ur
from unseen_ray.execution.ray import data_parallel
from unseen_ray.execution.ray.data_parallel import _classify
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Progress
from unseen_ray.training.host import PreemptedError

pytestmark = pytest.mark.ray

FIELDS = {"source": "digits", "keep": 0.5, "folds": 2, "schedule": [0.4, 0.5], "scoring": {"share": 1}}


def processes_of(actor: str) -> list[psutil.Process]:
    """The processes of a class of actors that belong to this one's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"ray::{actor}" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Killer:
    """Follows the epochs of a task, and after one of them kills a process that trains it: once, as a machine would."""

    def __init__(self, task: str, *, after: int, actor: str) -> None:
        self.task, self.after, self.actor = task, after, actor
        self.epochs: list[int] = []
        self.killed: int | None = None

    def __call__(self, event: object) -> None:
        if isinstance(event, Progress) and event.task == self.task and event.doing == "train" and event.done:
            self.epochs.append(event.done)
            if event.done >= self.after and self.killed is None:
                self.killed = processes_of(self.actor)[-1].pid
                os.kill(self.killed, signal.SIGKILL)

    def check_went_on(self, last: int) -> None:
        """The fit went on to its last epoch from a checkpoint, and not from the start."""
        assert self.killed is not None
        assert self.epochs[0] == 1
        assert self.epochs.count(1) == 1, "it began again from the start"
        assert set(self.epochs) >= set(range(self.after, last + 1))


@pytest.mark.slow
def test_two_workers_are_as_accurate_as_one(tmp_path: Path) -> None:
    fields = {**FIELDS, "recipe": {"epochs": 15}}
    alone = ur.prune(ur.PruneConfig(**fields, out=str(tmp_path / "alone")))
    together = ur.prune(ur.PruneConfig(**fields, out=str(tmp_path / "together"), gpus_per_fit=2))
    assert together.scores == alone.scores  # folds are trained alone, as before
    first, second = (run.manifest.stages[1]["tasks"][0] for run in (alone, together))
    assert first["image_passes"] == second["image_passes"]
    assert abs(first["accuracy"] - second["accuracy"]) < 0.01
    assert abs(first["train_accuracy"] - second["train_accuracy"]) < 0.02
    assert not (tmp_path / "together" / "checkpoints").exists()


@pytest.mark.slow
def test_a_fit_goes_on_from_its_checkpoint_when_a_worker_is_killed(tmp_path: Path) -> None:
    killer = Killer("stage 1", after=20, actor="RayTrainWorker")
    config = ur.PruneConfig(**FIELDS, out=str(tmp_path), gpus_per_fit=2, recipe={"epochs": 200})
    result = ur.prune(config, on_event=killer)
    killer.check_went_on(200)
    assert len(set(killer.epochs)) < len(killer.epochs), "no epoch was given twice: the kill came too late"
    assert result.manifest.stages[1]["tasks"][0]["accuracy"] > 0.98


def test_what_ends_a_shared_training_is_told_by_types() -> None:
    def kind(*failures: Exception) -> str:
        wrapped = [UserExceptionWithTraceback(failure, "Traceback (most recent call last) ...") for failure in failures]
        return _classify(WorkerGroupError("training failed", dict(enumerate(wrapped))))[0]

    fault = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    broken = torch.distributed.DistBackendError("NCCL communicator was aborted")
    bug = ValueError("RayActorError: DistBackendError: so says a bug of the user's")
    assert kind(fault, broken) == "worker lost"
    assert kind(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), broken) == "worker lost"
    assert kind(torch.AcceleratorError("CUDA error: device-side assert triggered"), broken) == "error"
    assert kind(bug, broken) == kind(bug) == "error"
    assert kind(PreemptedError(), broken) == "preempted"
    assert _classify(PreemptionError(PreemptionInfo(0, {"node": [1]})))[0] == "preempted"
    dead = WorkerHealthCheckFailedError("no answer", ActorDiedError())
    assert _classify(WorkerGroupError("training failed", {0: dead}))[0] == "worker lost"


def test_a_batch_that_cannot_be_shared_and_a_cluster_too_small_are_refused(tmp_path: Path, session: None) -> None:
    with pytest.raises(ur.ConfigError, match=r"recipe.batch_size=64 is not divisible by gpus_per_fit=3. Use 63"):
        ur.PruneConfig(**FIELDS, out=str(tmp_path), gpus_per_fit=3)
    with pytest.raises(ur.ConfigError, match=r"min_gpus_per_fit=1 has no effect with recipe.deterministic: true"):
        ur.PruneConfig(**FIELDS, gpus_per_fit=2, min_gpus_per_fit=1, recipe={"deterministic": True})
    with pytest.raises(ur.ConfigError, match=r"min_gpus_per_fit=2 must be less than gpus_per_fit=2"):
        ur.PruneConfig(**FIELDS, gpus_per_fit=2, min_gpus_per_fit=2)
    with pytest.raises(ur.ConfigError, match=r"gpus_per_fit=64 workers of 1 CPU and 0 GPU do not fit on the cluster"):
        ur.prune(ur.PruneConfig(**FIELDS, out=str(tmp_path), gpus_per_fit=64))


@pytest.mark.slow
def test_workers_wait_for_what_other_work_holds_however_long(tmp_path: Path, session: None) -> None:
    @ray.remote
    class Other:
        def ready(self) -> None: ...

    other = Other.options(num_cpus=1).remote()
    ray.get(other.ready.remote())
    waited = threading.Timer(6, ray.kill, [other])

    def observe(event: object) -> None:
        if isinstance(event, Receipt) and event.index == 1 and not waited.is_alive():
            waited.start()

    cpus = int(ray.cluster_resources()["CPU"])
    fields = {
        **FIELDS,
        "source": {"use": "digits", "limit": 60 * cpus},
        "wait_s": 1,
        "recipe": {"batch_size": 16 * cpus},
    }
    result = ur.prune(ur.PruneConfig(**fields, out=str(tmp_path), gpus_per_fit=cpus), on_event=observe)
    waited.join()
    assert len(result.coreset) == 30 * cpus


@pytest.mark.slow
def test_a_fold_goes_on_from_its_checkpoint_when_its_worker_is_killed(tmp_path: Path, session: None) -> None:
    source = {"use": "digits", "limit": 800}
    fields = {
        "source": source,
        "keep": 0.5,
        "folds": 2,
        "recipe": {"epochs": 40},
        "scoring": {"share": 1},
        "cpus_per_fold": 2,
    }
    undisturbed = ur.prune(ur.PruneConfig(**fields, out=str(tmp_path / "undisturbed")))
    killer = Killer("stage 0 fold 1", after=15, actor="FoldWorker")
    result = ur.prune(ur.PruneConfig(**fields, out=str(tmp_path / "disturbed")), on_event=killer)
    killer.check_went_on(40)
    assert result.scores == undisturbed.scores


@pytest.mark.slow
def test_workers_end_when_nobody_waits_for_them(tmp_path: Path, session: None) -> None:
    def observe(event: object) -> None:
        if isinstance(event, Progress) and event.task == "stage 1" and event.done >= 2:
            raise KeyboardInterrupt

    fields = {**FIELDS, "source": {"use": "digits", "limit": 200}}
    config = ur.PruneConfig(**fields, out=str(tmp_path), gpus_per_fit=2, recipe={"epochs": 2000})
    with pytest.raises(KeyboardInterrupt):
        ur.prune(config, on_event=observe)
    _, alive = psutil.wait_procs(processes_of("RayTrainWorker"), timeout=30)
    assert not alive
    # Ray Train's cleaner asks the dashboard whether its controller lives; this cluster has none, and other tests need the CPUs.
    for name in ray.util.placement_group_table():
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


@pytest.mark.slow
def test_a_fit_goes_on_with_fewer_workers_and_takes_more_again(
    alone: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From four workers to two, as a node is lost, and back to four, as one joins."""
    caplog.set_level("INFO", "unseen_ray")
    monkeypatch.setattr(data_parallel, "_RESIZE_AFTER_S", 5.0)
    small = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=2, num_gpus=0, **small)]
    epochs: list[int] = []

    def observe(event: object) -> None:
        if isinstance(event, Progress) and event.task == "stage 1" and event.doing == "train" and event.done:
            epochs.append(event.done)
            if event.done >= 20 and len(nodes) == 1:
                cluster.remove_node(nodes[0], allow_graceful=False)
                nodes.append(None)
            if event.done > 40 and nodes[-1] is None:
                nodes[-1] = cluster.add_node(num_cpus=2, num_gpus=0, **small)

    try:
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        cluster.wait_for_nodes()
        shared = {"gpus_per_fit": 4, "min_gpus_per_fit": 2, "recipe": {"epochs": 150, "batch_size": 32}}
        result = ur.prune(ur.PruneConfig(**FIELDS, **shared, out=str(tmp_path)), on_event=observe)
    finally:
        ray.shutdown()
        cluster.shutdown()
    sizes = re.findall(r"stage 1: (\d) workers train one model together", caplog.text)
    assert sizes[0] == "4" and sizes[-1] == "4" and "2" in sizes, caplog.text
    assert epochs.count(1) == 1 and epochs[-1] == 150
    receipt = result.manifest.stages[1]["tasks"][0]
    assert receipt["accuracy"] > 0.98
    assert 2 * receipt["seconds"] < receipt["worker_seconds"] < 4 * receipt["seconds"]
