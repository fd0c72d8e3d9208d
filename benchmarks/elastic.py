"""Nodes that come from nothing and go while a run goes on, against the same run on nodes that were there before.

Eight folds on a cluster that begins without GPU: its autoscaler (Ray's own, with real processes as nodes and pretended GPUs) may add
up to four nodes of one GPU, one of which is killed in the middle as a spot instance would be, and removes them when they are idle. The
folds wait rather than compute, so that the machine's cores decide nothing. The ids must be those of a run in one process.

    python benchmarks/elastic.py --json benchmarks/results/elastic_cpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timing import conditions, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import unseen_ray as ur
from tests.distributed.growing import Growing, growing_cluster
from tests.distributed.nodes import client_environment, free_ports, start, stop, wait_for

ROOT = str(Path(__file__).resolve().parent.parent)
FIELDS: dict[str, Any] = {"source": {"use": "digits", "limit": 400}, "keep": 0.5, "log_to": "none", "gpus_per_fold": 1}
SETTINGS = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_LOOK_S = 0.25
_LEAVE_S = 120.0


def drive(fields: dict[str, Any], address: str, notes: Path, leave: bool) -> None:
    """A run in this process; notes with the time its progress, and which nodes with a GPU there are, in the end until none is."""
    import ray

    ray.init(address=address, log_to_driver=False)
    with notes.open("a", buffering=1) as stream:
        seen: list[set[str]] = [set()]

        def note(**facts: Any) -> None:
            stream.write(json.dumps({"at": time.time(), **facts}) + "\n")

        def look() -> set[str]:
            nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")}
            if nodes != seen[0]:
                note(nodes=sorted(nodes))
            seen[0] = nodes
            return nodes

        over = threading.Event()

        def watch() -> None:
            while not over.wait(_LOOK_S):
                look()

        look()
        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        note(began=True)
        result = ur.prune(ur.PruneConfig(**fields), on_event=lambda event: note(task=event.task, **_told(event)))
        note(finished=result.coreset.ids.tolist())
        over.set()
        watching.join()
        limit = time.monotonic() + _LEAVE_S
        while leave and look() and time.monotonic() < limit:
            time.sleep(_LOOK_S)


def _told(event: Any) -> dict[str, Any]:
    return {"finishes": hasattr(event, "files"), "begins": getattr(event, "doing", "") == "train"}


def read(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines() if line.endswith("}")] if notes.exists() else []


def run(fields: dict[str, Any], address: str, env: dict[str, str], folder: Path, cluster: Growing | None) -> list[Any]:
    """A run as a process of its own; of a cluster that grows one node is killed when a quarter of the folds is done."""
    notes, after, killed = folder / "notes.jsonl", fields["folds"] // 4, False
    asked = json.dumps({**fields, "out": str(folder / "run")})
    line = [sys.executable, __file__, "--drive", asked, address, str(notes), "leave" if cluster else ""]
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(line, env={**env, "PYTHONPATH": ROOT}, cwd=ROOT, stdout=log, stderr=log)
        try:
            while driver.poll() is None:
                time.sleep(_LOOK_S)
                told = read(notes)
                if cluster and not killed and sum(each.get("finishes", False) for each in told) >= after:
                    nodes = [each["nodes"] for each in told if "nodes" in each][-1]
                    cluster.lose(nodes[0])
                    with notes.open("a") as stream:
                        stream.write(json.dumps({"at": time.time(), "killed": nodes[0]}) + "\n")
                    killed = True
        finally:
            driver.kill()
    if driver.returncode:
        raise RuntimeError((folder / "driver.log").read_text()[-3000:])
    return read(notes)


@contextmanager
def fixed_cluster(nodes: int) -> Iterator[tuple[str, dict[str, str]]]:
    """A head as that of the growing cluster, and as many nodes as that may have, all up."""
    with tempfile.TemporaryDirectory(prefix="ur") as scratch:
        folder, running = Path(scratch), []
        env = client_environment(folder)
        (gcs,) = free_ports(1)
        head = ["--head", f"--port={gcs}", "--num-cpus=1", "--num-gpus=0", f"--temp-dir={folder}/r"]
        worker = [f"--address=127.0.0.1:{gcs}", "--num-cpus=1", "--num-gpus=1"]
        try:
            for number, line in enumerate([[*head, "--include-dashboard=false"], *[worker] * nodes]):
                (port,) = free_ports(1)
                log = folder / f"{number}.log"
                running.append(start({**env, **SETTINGS}, log, *line, f"--dashboard-agent-listen-port={port}"))
                wait_for(log, "Ray runtime started")
            yield f"127.0.0.1:{gcs}", env
        finally:
            for node in reversed(running):
                stop(node)


def figures(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds since the run began, by what happened."""
    began = next(each["at"] for each in told if "began" in each)
    ended = next(each["at"] for each in told if "finished" in each)
    nodes = [(each["at"] - began, each["nodes"]) for each in told if "nodes" in each]
    killed = next((each for each in told if "killed" in each), None)
    found: dict[str, Any] = {
        "run_s": round(ended - began, 2),
        "first_task_s": round(next(each["at"] for each in told if each.get("begins")) - began, 2),
        "nodes_over_time": [[round(max(at, 0.0), 2), len(ids)] for at, ids in nodes],
        "nodes_in_all": len({node for _, ids in nodes for node in ids}),
        "starts": sum(each.get("begins", False) for each in told),
    }
    if killed is not None:
        at = killed["at"] - began
        here = next(ids for when, ids in reversed(nodes) if when <= at)
        newcomers = [when for when, ids in nodes if when > at and set(ids) - set(here)]
        found |= {
            "first_node_s": round(next(when for when, ids in nodes if ids), 2),
            "killed_at_s": round(at, 2),
            "loss_seen_after_s": round(
                next(when for when, ids in nodes if killed["killed"] not in ids and when > at) - at, 2
            ),
            "replaced_after_s": round(newcomers[0] - at, 2) if newcomers else None,
            "last_node_left_after_s": None if nodes[-1][1] else round(nodes[-1][0] - (ended - began), 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one fold")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds after which an idle node is removed")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    fields = {**FIELDS, "folds": args.folds}
    waits = {**fields, "fit": {"use": "tests.plugs:slow_centroids", "seconds": args.seconds}}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("local", "fixed", "elastic")}
        for folder in folders.values():
            folder.mkdir()
        alone = {
            **fields,
            "gpus_per_fold": 0,
            "fit": "tests.plugs:centroids",
            "executor": "local",
            "out": str(folders["local"]),
        }
        ids = ur.prune(ur.PruneConfig(**alone)).coreset.ids.tolist()
        with fixed_cluster(args.nodes) as (address, env):
            told = {"fixed": run(waits, address, env, folders["fixed"], None)}
        with growing_cluster(cpus=1, most=args.nodes, idle_s=args.idle, settings=SETTINGS) as cluster:
            told["elastic"] = run(waits, cluster.address, cluster.env, folders["elastic"], cluster)
    report: dict[str, Any] = {
        **{name: figures(each) for name, each in told.items()},
        "same_ids": all(each["finished"] == ids for notes in told.values() for each in notes if "finished" in each),
        "settings": SETTINGS,
        "conditions": conditions(torch.device("cpu"), args),
    }
    for name in told:
        print(name, json.dumps(report[name]))
    print(
        f"elastic took {report['elastic']['run_s'] - report['fixed']['run_s']:.1f} s more; same ids: {report['same_ids']}"
    )
    write(args.json, report)
    if not report["same_ids"]:
        sys.exit("falls short: other ids than in one process")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        drive(json.loads(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), bool(sys.argv[5]))
    else:
        main()
