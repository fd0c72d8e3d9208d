"""A cluster that has no GPU yet: its autoscaler is asked, and waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.growing import growing_cluster
from tests.distributed.nodes import BIN

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
    with growing_cluster(cpus=2, most=1) as cluster:
        yield cluster.address, cluster.env


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
        "the autoscaler was asked for 64 CPU and 0 GPU for a fold, and no such node was added within wait_s=20 s"
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []  # a run that was refused before it trained leaves the folder to the next one
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


def test_a_run_goes_on_while_nodes_come_are_lost_and_are_removed(tmp_path: Path) -> None:
    """The benchmark in little: from no node with a GPU to two, one of them killed in the middle, and back to none."""
    root = Path(__file__).parents[2]
    line = [
        sys.executable,
        root / "benchmarks" / "elastic.py",
        "--folds",
        "4",
        "--nodes",
        "2",
        "--seconds",
        "3",
        "--idle",
        "6",
    ]
    path = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [*line, "--json", tmp_path / "found.json"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["same_ids"] is True
    fixed, elastic = found["fixed"], found["elastic"]
    assert [count for _, count in fixed["nodes_over_time"]] == [2]
    assert fixed["starts"] == 4
    counts = [count for _, count in elastic["nodes_over_time"]]
    assert max(counts) == 2
    assert counts[-1] == 0, "idle nodes stayed"
    assert elastic["first_node_s"] > 0
    assert elastic["loss_seen_after_s"] < 60
    assert elastic["starts"] >= 4
