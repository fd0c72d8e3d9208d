"""A cluster as users have it: a head and a worker with token authentication, and `ray job submit`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import unseen_ray as ur
from tests.distributed.nodes import BIN, client_environment, free_ports, start, stop, wait_for

pytestmark = pytest.mark.ray

RUN_YAML = """
source: {use: digits, limit: 300}
keep: 0.6
folds: 3
schedule: [0.4, 0.6]
model: {use: small_cnn, width: 16}
recipe: {epochs: 3, min_steps: 0}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a client of a running two-node cluster."""
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    env = client_environment(scratch)
    gcs, dashboard, head_agent, worker_agent = free_ports(4)
    head = [
        "--head",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={scratch}/r",
    ]
    nodes = [
        start(env, scratch / "head.log", *head, "--num-cpus=1", f"--dashboard-agent-listen-port={head_agent}"),
    ]
    wait_for(scratch / "head.log", "Ray runtime started")
    worker = [f"--address=127.0.0.1:{gcs}", "--num-cpus=1", f"--dashboard-agent-listen-port={worker_agent}"]
    nodes.append(start(env, scratch / "worker.log", *worker))
    wait_for(scratch / "worker.log", "Ray runtime started")
    yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "GCS": f"127.0.0.1:{gcs}"}
    for node in reversed(nodes):
        stop(node)
    shutil.rmtree(scratch, ignore_errors=True)


def submit(env: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(folder), "--", "unseen-ray", "prune", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


def test_a_submitted_job_picks_the_ids_of_the_local_run(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "run.yaml").write_text(RUN_YAML)
    done = submit(cluster, tmp_path / "job", "run.yaml", "--out", str(tmp_path / "submitted"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Kept 180 of 300 samples" in done.stdout
    submitted = ur.load(tmp_path / "submitted")
    assert submitted.manifest.environment["nodes"] == 2
    from unseen_ray.config import load_yaml

    fields = load_yaml(tmp_path / "job" / "run.yaml")
    local = ur.prune(ur.PruneConfig(**fields, executor="local", out=tmp_path / "local"))
    assert submitted.coreset.ids.tolist() == local.coreset.ids.tolist()
    assert submitted.scores == local.scores


def test_a_job_of_a_bad_configuration_fails_with_the_message(cluster: dict[str, str], tmp_path: Path) -> None:
    done = submit(cluster, tmp_path, "--source", "digits", "--keep", "1.5", "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "keep=1.5 is outside (0, 1)" in done.stdout + done.stderr


PRIVATE = """
import os, stat, ray
from unseen_ray.distributed.session import ray_session
with ray_session(None):
    path = os.environ["RAY_AUTH_TOKEN_PATH"]
    print(ray.get_runtime_context().gcs_address, len(ray.nodes()), oct(stat.S_IMODE(os.stat(path).st_mode)))
print(os.path.exists(path), os.environ.get("RAY_AUTH_TOKEN_PATH") == path)
"""


def test_a_cluster_on_the_same_host_is_not_joined_by_accident(cluster: dict[str, str]) -> None:
    ambient = {key: value for key, value in cluster.items() if key not in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")}
    done = subprocess.run([sys.executable, "-c", PRIVATE], env=ambient, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = done.stdout.splitlines()
    address, nodes, mode = first.split()
    assert address != cluster["GCS"]
    assert (nodes, mode) == ("1", "0o600")
    assert second == "False False"


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [str(BIN / "unseen-ray"), "prune", "--source", "digits", "--keep", "0.5", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--address", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert f"the Ray cluster at 127.0.0.1:{port} cannot be joined" in done.stderr
    assert "Traceback" not in done.stderr
