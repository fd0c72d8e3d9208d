"""A cluster that has no GPU yet: its autoscaler is asked, and waited for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.distributed.nodes import BIN, client_environment, free_ports, start, stop, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUN = """
import sys, unseen_ray as ur
config = ur.PruneConfig(source={"use": "digits", "limit": 100}, keep=0.5, folds=2, out=sys.argv[1], address=sys.argv[2],
                        cpus_per_fold=float(sys.argv[3]), wait_s=float(sys.argv[4]), fit="tests.plugs:centroids")
result = ur.prune(config)
print(len(result.coreset), result.manifest.environment["nodes"])
"""


@pytest.fixture(scope="module")
def growing() -> Iterator[tuple[str, dict[str, str]]]:
    """Address and client environment of a head without GPU whose autoscaler may add one node with a pretended GPU."""
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    env = client_environment(scratch)
    gcs, dashboard, agent = free_ports(3)
    (scratch / "cluster.yaml").write_text(yaml.safe_dump(autoscaling_config()))
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=1"]
    head += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}/r"]
    head += [f"--autoscaling-config={scratch}/cluster.yaml"]
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000"}
    node = start({**env, **fake}, scratch / "head.log", *head)
    wait_for(scratch / "head.log", "Ray runtime started")
    yield f"127.0.0.1:{gcs}", {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    stop(node)
    shutil.rmtree(scratch, ignore_errors=True)


def autoscaling_config() -> dict[str, object]:
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    nothing: dict[str, object] = {key: [] for key in empty}
    return nothing | {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode"},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1,
    }


def prune(
    growing: tuple[str, dict[str, str]], out: Path, *, cpus: float, wait_s: float
) -> subprocess.CompletedProcess[str]:
    address, env = growing
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", RUN, str(out), address, str(cpus), str(wait_s)],
        env={**env, "PYTHONPATH": root},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_autoscaler_is_asked_and_waited_for(growing: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    done = prune(growing, tmp_path, cpus=64, wait_s=20)
    assert done.returncode != 0
    assert (
        "the autoscaler was asked for 64 CPU and 0 GPU for a fold, and no such node came within wait_s=20 s"
        in done.stderr
    )
    assert json.loads((tmp_path / "manifest.json").read_text())["stages"] == []
    (log,) = Path(growing[1]["RAY_AUTH_TOKEN_PATH"]).parent.glob("r/session_2*/logs/monitor.log")
    assert "{'CPU': 64.0}: 2+ pending tasks/actors" in log.read_text()


def test_submit_takes_a_run_that_the_autoscaler_may_bring_a_node_for(
    growing: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    line = ["--source", "digits", "--keep", "0.5", "--gpus_per_fold", "1", "--out", str(tmp_path / "run"), "--no-wait"]
    submit = [str(BIN / "unseen-ray"), "submit", *line, "--working-dir", str(tmp_path), "--submission-id", "growing"]
    done = subprocess.run(submit, env=growing[1], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "growing\n"
    subprocess.run([str(BIN / "ray"), "job", "stop", "growing"], env=growing[1], capture_output=True, timeout=60)
