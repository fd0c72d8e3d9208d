"""A cluster without GPU whose autoscaler may add nodes with a pretended one: Ray's own fake provider, of real processes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.distributed.nodes import client_environment, free_ports, start, stop, wait_for

_NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
_EMPTY = (
    "initialization_commands setup_commands head_setup_commands worker_setup_commands head_start_ray_commands "
    "worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
)


@dataclass(frozen=True)
class Growing:
    """A running head.

    Attributes:
        address: where drivers connect to.
        env: of a client.
        scratch: folder of the cluster's files.
        head: the process.
    """

    address: str
    env: dict[str, str]
    scratch: Path
    head: subprocess.Popen[bytes]

    def lose(self, node_id: str) -> None:
        """End all processes of a node at once, as when a spot instance is taken away."""
        for raylet in psutil.Process(self.head.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if raylet.name() == "raylet" and raylet.environ().get(_NODE_ID) == node_id:
                    for process in [raylet, *raylet.children(recursive=True)]:
                        with contextlib.suppress(psutil.Error):
                            process.kill()
                    return
        raise LookupError(f"no raylet of node {node_id}")


def autoscaling_config(gcs: int, *, cpus: int, most: int, idle_s: float) -> dict[str, object]:
    """The autoscaler's file: a group of nodes with a pretended GPU each, from none to `most` of them, which join at port `gcs`."""
    nothing: dict[str, object] = {key: [] for key in _EMPTY.split()}
    return nothing | {
        "cluster_name": "growing",
        "max_workers": most,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{gcs}",
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": cpus, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": max(most, 1),
    }


@contextlib.contextmanager
def growing_cluster(
    *, cpus: int, most: int, idle_s: float = 300.0, settings: Mapping[str, str] | None = None
) -> Iterator[Growing]:
    """A head of one CPU with an autoscaler; it ends with the context, and its nodes with it.

    Args:
        cpus: of each node that may come.
        most: how many may be there at once.
        idle_s: after how long an idle one is removed.
        settings: more of the head's environment, which the nodes inherit.
    """
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    env = client_environment(scratch)
    gcs, dashboard, agent = free_ports(3)
    grows = autoscaling_config(gcs, cpus=cpus, most=most, idle_s=idle_s)
    (scratch / "cluster.yaml").write_text(yaml.safe_dump(grows))
    line = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=1"]
    line += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}/r", "--num-gpus=0"]
    line += [f"--autoscaling-config={scratch}/cluster.yaml"]
    fake = {"RAY_FAKE_CLUSTER": "1", _NODE_ID: "f" * 51 + "00000", **(settings or {})}
    head = start({**env, **fake}, scratch / "head.log", *line)
    started: list[psutil.Process] = []
    try:
        wait_for(scratch / "head.log", "Ray runtime started")
        url = f"http://127.0.0.1:{dashboard}"
        yield Growing(f"127.0.0.1:{gcs}", {**env, "RAY_API_SERVER_ADDRESS": url}, scratch, head)
    finally:
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(head.pid).children(recursive=True)
        stop(head)
        for process in started:  # nodes that the autoscaler started outlive it
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(scratch, ignore_errors=True)
