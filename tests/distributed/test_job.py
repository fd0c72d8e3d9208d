"""A cluster as users have it: a head and two workers with token authentication, `ray job submit` and `unseen-ray submit`."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

import unseen_ray as ur
from tests.distributed.jobs import done, epochs, followed, ours, places_of, rays, until, until_checkpoint, votes
from tests.distributed.nodes import BIN, client_environment, command_lines, free_ports, start, stop, wait_for
from unseen_ray.cli import main
from unseen_ray.config.run import load_yaml
from unseen_ray.execution.ray.jobs import follow

pytestmark = pytest.mark.ray

RUN_YAML = """
source: {use: digits, limit: 300}
keep: 0.6
folds: 3
schedule: [0.4, 0.6]
model: {use: small_cnn, width: 16}
recipe: {epochs: 3, min_steps: 0}
scoring: {share: 1}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a client of a running three-node cluster."""
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    env = client_environment(scratch)
    gcs, dashboard, head_agent, *worker_agents = free_ports(5)
    head = [
        "--head",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={scratch}/r",
    ]
    nodes = [start(env, scratch / "head.log", *head, "--num-cpus=1", f"--dashboard-agent-listen-port={head_agent}")]
    try:
        wait_for(scratch / "head.log", "Ray runtime started")
        for number, agent in enumerate(
            worker_agents
        ):  # one after the other: two that start at once may hinder each other
            log = scratch / f"worker-{number}.log"
            worker = [f"--address=127.0.0.1:{gcs}", "--num-cpus=1", f"--dashboard-agent-listen-port={agent}"]
            worker += [f"--labels=worker={number}"]
            nodes.append(start(env, log, *worker))
            wait_for(log, "Ray runtime started")
        yield {
            **env,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "GCS": f"127.0.0.1:{gcs}",
            "SCRATCH": str(scratch),
        }
    finally:
        stop(*nodes)
        shutil.rmtree(scratch, ignore_errors=True)


def submit(env: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return done(rays(folder, *args), env)


def submit_ours(env: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return done(ours(folder, *args), env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the YAML of a run."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "run.yaml").write_text(RUN_YAML)
    return folder


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    """What the run of that YAML picks in one process."""
    fields = load_yaml(folder / "run.yaml")
    return ur.prune(ur.PruneConfig(**fields, executor="local", out=tmp_path_factory.mktemp("local")))


@pytest.mark.slow
def test_a_submitted_job_picks_the_ids_of_the_local_run(
    cluster: dict[str, str], folder: Path, local: ur.PruneResult, tmp_path: Path
) -> None:
    done = submit(cluster, folder, "run.yaml", "--out", str(tmp_path / "submitted"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Kept 180 of 300 samples" in done.stdout
    submitted = ur.load(tmp_path / "submitted")
    assert submitted.manifest.environment["nodes"] == 3
    assert submitted.coreset.ids.tolist() == local.coreset.ids.tolist()
    assert submitted.scores == local.scores


def test_submit_follows_the_run_and_leaves_the_token_nowhere(
    cluster: dict[str, str], folder: Path, local: ur.PruneResult, tmp_path: Path
) -> None:
    line = ours(folder, str(folder / "run.yaml"), "--out", str(tmp_path / "run"), "--submission-id", "ours")
    line += ["--placement.driver", "{worker: '1'}"]
    token, seen = Path(cluster["RAY_AUTH_TOKEN_PATH"]).read_text(), 0
    with (
        (tmp_path / "said.log").open("w") as said,
        subprocess.Popen(line, env=cluster, stdout=said, stderr=said) as run,
    ):
        while run.poll() is None:
            lines = list(command_lines())
            seen += any("unseen_ray" in each and "prune" in each for each in lines)
            assert not any(token in each for each in lines)
            time.sleep(0.5)
    text = (tmp_path / "said.log").read_text()
    assert run.returncode == 0, text[-3000:]
    assert seen, "the job's process was never looked at"
    assert "stage 0 fold 2" in text and "Kept 180 of 300 samples" in text
    assert f"ray job stop --address {cluster['RAY_API_SERVER_ADDRESS']} ours" in text
    assert "requires no token" not in text
    assert ur.load(tmp_path / "run").coreset.ids.tolist() == local.coreset.ids.tolist()
    client = JobSubmissionClient(
        cluster["RAY_API_SERVER_ADDRESS"], headers={"Authorization": f"Bearer {token}"}, verify=False
    )
    driver = client.get_job_info("ours").driver_node_id
    nodes = client._do_request("GET", "/api/v0/nodes?detail=1").json()["data"]["result"]["result"]
    assert [node["node_id"] for node in nodes if node["labels"].get("worker") == "1"] == [driver]
    ur.report(tmp_path / "run")
    token_file = Path(cluster["RAY_AUTH_TOKEN_PATH"])
    assert places_of(token, Path(cluster["SCRATCH"]), tmp_path) == [token_file]
    again = subprocess.run(line, env=cluster, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2
    assert "--submission-id ours belongs to another job" in again.stderr


class Breaking(JobSubmissionClient):
    """Its streams end, without an error, after the first piece of a log and when the job has ended, as those of a busy node may."""

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        async for text in super().tail_job_logs(job_id):
            yield text
            while not self.get_job_info(job_id).status.is_terminal():
                await asyncio.sleep(0.1)
            return


def test_a_log_is_whole_although_its_stream_broke_as_the_job_ended(cluster: dict[str, str]) -> None:
    token, pieces = Path(cluster["RAY_AUTH_TOKEN_PATH"]).read_text(), list[str]()
    client = Breaking(cluster["RAY_API_SERVER_ADDRESS"], headers={"Authorization": f"Bearer {token}"}, verify=False)
    job = client.submit_job(entrypoint="echo begun; sleep 3; echo ended")
    assert follow(client, job, pieces.append).code == 0
    assert len(pieces) == 2 and pieces[1] == "ended\n"
    assert "".join(pieces) == client.get_job_logs(job)


@pytest.mark.slow
def test_submit_ends_with_the_exit_code_of_the_run(cluster: dict[str, str], folder: Path, tmp_path: Path) -> None:
    source = ["--source", str(tmp_path / "none.parquet"), "--keep", "0.5"]
    done = submit_ours(cluster, folder, *source, "--out", str(tmp_path / "out"))
    assert done.returncode == 3, done.stderr[-3000:]
    assert "does not exist" in done.stdout
    assert "ended with exit code 3" in done.stderr


def test_submit_refuses_what_the_cluster_cannot_bring(cluster: dict[str, str], folder: Path, tmp_path: Path) -> None:
    line = [str(folder / "run.yaml"), "--out", str(tmp_path / "out")]
    done = submit_ours(cluster, folder, *line, "--gpus_per_fold", "1")
    assert done.returncode == 2
    assert "a fold asks for 1 CPU and 1 GPU on one node, but the largest node has 1 CPU and 0 GPU" in done.stderr
    done = submit_ours(cluster, folder, *line, "--placement", "{driver: {worker: a}, fits: {worker: 'in(b, c)'}}")
    assert done.returncode == 2
    for part in ("driver={'worker': 'a'}", "fits={'worker': 'in(b, c)'}"):
        assert f"placement.{part} matches no node of the cluster; its nodes have worker: 0 (1 of 3)" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "401 Unauthorized: Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "403 Forbidden: Invalid authentication token"),
    ],
)
def test_a_client_without_the_token_is_refused(
    cluster: dict[str, str], folder: Path, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    done = submit_ours({**cluster, **changed}, folder, str(folder / "run.yaml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert said in done.stderr
    assert (
        "RAY_AUTH_TOKEN, else from the file that RAY_AUTH_TOKEN_PATH names, else from ~/.ray/auth_token" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(
    cluster: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    out, epochs = tmp_path / "run", ["--recipe.epochs", "400"]
    line = ours(folder, str(folder / "run.yaml"), "--out", str(out), *epochs)
    with subprocess.Popen(
        [*line, "--submission-id", "stopped"], env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        until_checkpoint(out)
        subprocess.run([str(BIN / "ray"), "job", "stop", "stopped"], env=cluster, check=True, capture_output=True)
        text = run.stdout.read()
    assert run.returncode == 130, text[-3000:]
    assert "job stopped was stopped; submit the same line again to resume it" in text
    assert not (out / "coreset.parquet").exists()
    done = subprocess.run(line, env=cluster, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    fields = load_yaml(folder / "run.yaml") | {"recipe": {"epochs": 400, "min_steps": 0}}
    local = ur.prune(ur.PruneConfig(**fields, executor="local", out=tmp_path / "local"))
    assert ur.load(out).coreset.ids.tolist() == local.coreset.ids.tolist()


@pytest.mark.slow
@pytest.mark.realdata
def test_a_stopped_job_on_real_images_is_submitted_again_and_trains_no_fold_twice(
    cluster: dict[str, str], images: Path, on_images: ur.PruneResult, tmp_path: Path
) -> None:
    out, last = tmp_path / "run", "stage 0 fold 3"  # three nodes train the others at the same time
    line = ["run.yaml", "--out", str(out)]
    with followed(rays(images, *line, job="images"), cluster, tmp_path / "first.log") as first:
        until(lambda: votes(out) and epochs(out).get(last, 0) >= 2, "fold 3 is not in training", 240)
        subprocess.run([str(BIN / "ray"), "job", "stop", "images"], env=cluster, check=True, capture_output=True)
        first.ended(60)
        assert first.found(r"stage 0 fold 0 \(\S+, cpu\): started")
    finished = votes(out)
    assert last not in finished
    again = done(rays(images, *line), cluster, 400)
    assert again.returncode == 0, again.stdout[-3000:]
    assert set(re.findall(r"(stage 0 fold \d) was finished before", again.stdout)) == finished.keys()
    assert not set(re.findall(r"(stage 0 fold \d) \(\S+, cpu\): started", again.stdout)) & finished.keys()
    (going_on,) = re.findall(rf"{last} \(\S+, cpu\): resuming after epoch (\d+)/20", again.stdout)
    assert int(going_on) >= 2
    submitted = ur.load(out)
    assert {task["task"] for task in submitted.manifest.stages[0]["tasks"] if task["reused"]} == finished.keys()
    assert finished.items() <= votes(out).items()
    assert submitted.coreset.ids.tolist() == on_images.coreset.ids.tolist()
    assert submitted.scores == on_images.scores


@pytest.mark.slow
def test_ctrl_c_ends_the_following_and_not_the_job(cluster: dict[str, str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ours(folder, str(folder / "run.yaml"), "--out", str(out), "--recipe.epochs", "20000")
    ray = str(BIN / "ray"), "job"
    with subprocess.Popen(
        [*line, "--submission-id", "left"],
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        assert run.stdout is not None
        until_checkpoint(out)
        run.send_signal(signal.SIGINT)
        text = run.stdout.read()
    assert run.returncode == 130, text[-3000:]
    assert "stopped following the log; the job keeps running" in text
    status = subprocess.run([*ray, "status", "left"], env=cluster, capture_output=True, text=True)
    assert "RUNNING" in status.stdout + status.stderr
    second = subprocess.run(line, env=cluster, capture_output=True, text=True, timeout=240)
    assert second.returncode == 4
    assert "is held by" in second.stdout and "job left" in second.stdout
    assert subprocess.run([*ray, "stop", "left"], env=cluster, capture_output=True).returncode == 0


OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_warned_of(folder: Path, tmp_path: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="ur"))
    env = {**client_environment(scratch), **OPEN}
    gcs, dashboard, agent = free_ports(3)
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    head = start(env, scratch / "head.log", "--head", "--dashboard-host=127.0.0.1", *ports, f"--temp-dir={scratch}/r")
    try:
        wait_for(scratch / "head.log", "Ray runtime started")
        url = f"http://127.0.0.1:{dashboard}"
        line = [str(folder / "run.yaml"), "--out", str(tmp_path / "out"), "--address", url, "--gpus_per_fold", "1"]
        done = submit_ours(env, folder, *line)
    finally:
        stop(head)
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 2
    assert f"WARNING the cluster at {url} requires no token" in done.stderr
    assert "a fold asks for 1 CPU and 1 GPU" in done.stderr


@pytest.mark.slow
def test_a_job_of_a_bad_configuration_fails_with_the_message(cluster: dict[str, str], tmp_path: Path) -> None:
    done = submit(cluster, tmp_path, "--source", "digits", "--keep", "1.5", "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "keep=1.5 is outside (0, 1)" in done.stdout + done.stderr


PRIVATE = """
import os, stat, ray
from unseen_ray.execution.ray.connect import ray_session
with ray_session(None):
    path = os.environ["RAY_AUTH_TOKEN_PATH"]
    print(ray.get_runtime_context().gcs_address, len(ray.nodes()), oct(stat.S_IMODE(os.stat(path).st_mode)))
print(os.path.exists(path), os.environ.get("RAY_AUTH_TOKEN_PATH") == path)
"""


@pytest.mark.slow
def test_a_cluster_on_the_same_host_is_not_joined_by_accident(cluster: dict[str, str]) -> None:
    ambient = {key: value for key, value in cluster.items() if key not in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")}
    done = subprocess.run([sys.executable, "-c", PRIVATE], env=ambient, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = done.stdout.splitlines()
    address, nodes, mode = first.split()
    assert address != cluster["GCS"]
    assert (nodes, mode) == ("1", "0o600")
    assert second == "False False"


def test_a_cluster_that_does_not_answer_is_named(
    alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(SystemExit) as left:
        main(["prune", "--source", "digits", "--keep", "0.5", "--out", str(tmp_path / "out"), "--address", address])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert f"the Ray cluster at {address} cannot be joined" in said
    assert "Traceback" not in said
