"""A cluster of three hosts with a network between them, and hosts that are cut off from it while they train."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import unseen_ray as ur
from tests.distributed.hosts import Host, Network, network, why_not
from tests.distributed.jobs import Followed, done, epochs, followed, ours, rays, until, votes
from tests.distributed.nodes import client_environment, start, wait_for
from unseen_ray.storage.filesystem import sha256_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.realdata, pytest.mark.timeout(1200)]

HEALTH = {  # a silent node is given up after some twelve seconds, and goes on by itself for as long as it is cut off
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster over three hosts: a head without CPUs, and two workers with one each."""

    env: dict[str, str]
    scratch: Path
    net: Network
    nodes: dict[str, subprocess.Popen[bytes]]

    @property
    def head(self) -> Host:
        return self.net.hosts[0]

    def host(self, name: str) -> Host:
        return next(host for host in self.net.hosts if host.name == name)

    def start(self, host: Host) -> None:
        """Start Ray on a host, and wait until it has."""
        log = self.scratch / f"{host.name}.log"
        at = f"--node-ip-address={host.address}"
        if host is self.head:
            role = ["--head", "--port=6379", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
        else:
            role = [f"--address={self.head.address}:6379", "--num-cpus=1"]
        self.nodes[host.name] = start(self.env, log, at, *role, on=host.on)
        wait_for(log, "Ray runtime started")


@pytest.fixture(scope="module")
def cluster(real_data: Path) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"three hosts: {reason}")
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    with contextlib.ExitStack() as stack:
        nodes: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.callback(ended, nodes)
        net = stack.enter_context(network(scratch, "ur-head", "ur-one", "ur-two"))
        env = client_environment(scratch) | HEALTH | {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
        cluster = Cluster(env, scratch, net, nodes)
        for host in net.hosts:
            cluster.start(host)
        yield cluster


def ended(nodes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait for nodes whose hosts are gone."""
    for node in nodes.values():
        node.kill()
        node.wait(60)


def assert_same(out: Path, on_images: ur.PruneResult) -> None:
    """A run is that of one process, and each of its files is the one that the manifest speaks of."""
    result = ur.load(out)
    assert result.coreset.ids.tolist() == on_images.coreset.ids.tolist()
    assert result.scores == on_images.scores
    files = result.manifest.files
    assert files == {name: sha256_of((out / name).read_bytes()) for name in files}


def in_training(run: Followed, host: str) -> str:
    """The task that a host began last."""
    return ["", *run.found(rf"(stage \d(?: fold \d)?) \({host}, cpu\): started")][-1]


def test_a_run_over_three_hosts_picks_the_ids_of_the_local_run(
    cluster: Cluster, images: Path, on_images: ur.PruneResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = done([*cluster.head.on, *ours(images, str(images / "run.yaml"), "--out", str(out))], cluster.env, 400)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "requires no token" not in run.stderr
    manifest = ur.load(out).manifest
    assert manifest.environment["nodes"] == 3
    assert {task["node"] for task in manifest.stages[0]["tasks"]} == {"ur-one", "ur-two"}
    assert_same(out, on_images)


def test_a_short_cut_costs_no_more_than_a_pause(
    cluster: Cluster, images: Path, on_images: ur.PruneResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    line = [*cluster.head.on, *rays(images, "run.yaml", "--out", str(out))]
    with followed(line, cluster.env, tmp_path / "run.log") as run:
        until(lambda: epochs(out).get(in_training(run, "ur-two"), 0) >= 2, "ur-two does not train", 240)
        cluster.net.cut(cluster.host("ur-two"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.ended(4)
        cluster.net.mend(cluster.host("ur-two"))
        assert run.ended() == 0, run.text()[-3000:]
    assert not run.found("was lost|does not answer|resuming")
    assert len(run.found("stage 0 fold . .*: started")) == 4
    assert_same(out, on_images)


def test_a_host_that_is_cut_off_loses_its_fold_and_comes_back(
    cluster: Cluster, images: Path, on_images: ur.PruneResult, tmp_path: Path
) -> None:
    out, cut = tmp_path / "run", cluster.host("ur-two")
    line = [*cluster.head.on, *rays(images, "run.yaml", "--out", str(out))]
    with followed(line, cluster.env, tmp_path / "run.log") as run:
        until(
            lambda: votes(out) and epochs(out).get(in_training(run, cut.name), 0) >= 2,
            "ur-two does not train",
            240,
        )
        lost, finished = in_training(run, cut.name), votes(out)
        cluster.net.cut(cut)
        until(lambda: run.found(f"{lost}: its .* was lost"), "the node is not given up", 60)
        # A host that is cut off trains on and stores its checkpoints: of the whole training, only the scoring may be left.
        until(
            lambda: run.found(rf"{lost} \(ur-one, cpu\): (?:resuming|done)|{lost} \(ur-two, cpu\): done"),
            "nobody goes on",
            240,
        )
        cluster.net.mend(cut)
        cluster.nodes[cut.name].wait(120)  # its Ray ends itself once it hears that it was given up
        cluster.start(cut)
        assert run.ended() == 0, run.text()[-3000:]
    assert finished.items() <= votes(out).items()
    assert all(len(run.found(rf"{task} \(\S+, cpu\): (?:started|resuming)")) == 1 for task in finished)
    assert sorted(re.findall(r"(stage 0 fold \d) \(\S+, cpu\): done", run.text())) == sorted(votes(out))
    assert_same(out, on_images)


def test_a_worker_that_wakes_up_after_its_training_was_taken_over_harms_nothing(
    cluster: Cluster, images: Path, on_images: ur.PruneResult, tmp_path: Path
) -> None:
    out, lender = tmp_path / "run", tmp_path / "lender"
    shutil.copytree(str(on_images.path), lender, ignore=shutil.ignore_patterns("stage-01"))
    line = [*cluster.head.on, *rays(images, "run.yaml", "--out", str(out), "--reuse", str(lender))]
    with followed(line, cluster.env, tmp_path / "run.log") as run:
        until(lambda: epochs(out).get("stage 1", 0) >= 2, "stage 1 does not train", 240)
        started = r"stage 1 \((\S+), cpu\): started"
        until(lambda: run.found(started), "the log does not say where it trains")
        (name,) = run.found(started)
        cut = cluster.host(name)
        worker = told(cut, "pgrep -f ^ray::FoldWorker.score").split()[0]
        told(cut, f"kill -STOP {worker}")
        cluster.net.cut(cut)
        until(lambda: run.found(r"stage 1 \(\S+, cpu\): resuming"), "nobody goes on", 120)
        until(lambda: epochs(out).get("stage 1", 0) >= 15, "whoever took over does not get on", 120)
        told(cut, f"kill -CONT {worker}")  # it goes on from where it was, behind the other one
        assert run.ended() == 0, run.text()[-3000:]
        until(lambda: rests(cut, worker), "the worker goes on for ever", 240)
        cluster.net.mend(cut)
        cluster.nodes[cut.name].wait(120)
        cluster.start(cut)
    assert_same(out, on_images)


def rests(host: Host, process: str) -> bool:
    """Whether a process of a host computes next to nothing for some seconds."""
    ticks = [int(told(host, f"sleep {pause}; cut -d ' ' -f 14 /proc/{process}/stat")) for pause in (0, 3)]
    return ticks[1] - ticks[0] < 50


def told(host: Host, command: str) -> str:
    """What a shell on a host answers."""
    return subprocess.run([*host.on, "sh", "-c", command], capture_output=True, text=True, check=True).stdout.strip()
