"""A simulated cluster: each fold on its own (node, GPU), the rest queued; lost workers; requests that cannot be met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import ray
import torch

import unseen_ray as ur
from unseen_ray.errors import FoldFailedError, LeakError
from unseen_ray.execution.ray.actor_pool import FoldPool
from unseen_ray.execution.ray.capacity import survey
from unseen_ray.runs.manifest import Manifest, write_manifest
from unseen_ray.runs.manifest_entries import SourceEntry
from unseen_ray.storage.filesystem import Folder

NO_SOURCE = SourceEntry(fingerprint="", num_samples=0, num_classes=0, class_names=[])

pytestmark = pytest.mark.ray

SOURCE = {"use": "digits", "limit": 200}


def run(out: Path, **fields: object) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{"source": SOURCE, "keep": 0.5, "out": str(out), **fields}))


def test_each_fold_has_a_gpu_of_its_own_and_the_rest_waits(simulated: Path, tmp_path: Path) -> None:
    result = run(tmp_path, folds=5, fit={"use": "tests.plugs:noted_centroids", "log": str(simulated), "together": 2})
    notes = [json.loads(path.read_text()) for path in sorted(simulated.glob("0-*.json"))]
    assert [note["fold"] for note in notes] == [0, 1, 2, 3, 4]
    assert len({(note["node"], note["gpu"]) for note in notes}) == 2
    for one, other in combinations(notes, 2):
        apart = one["ended"] <= other["began"] or other["ended"] <= one["began"]
        assert apart or (one["node"], one["gpu"]) != (other["node"], other["gpu"])
    assert any(a["began"] < b["ended"] and b["began"] < a["ended"] for a, b in combinations(notes, 2))
    assert result.manifest.config["gpus_per_fold"] == 1
    local = run(tmp_path / "local", folds=5, fit="tests.plugs:centroids", executor="local")
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({"cpus_per_fold": 3}, "3 CPU and 1 GPU on one node, but the largest node has 1 CPU and 1 GPU"),
        ({"cpus_per_fold": 8, "gpus_per_fold": 0}, "8 CPU and 0 GPU on one node, but the largest node has 1 CPU"),
    ],
)
def test_a_request_that_no_node_can_meet_is_refused(
    simulated: Path, tmp_path: Path, fields: dict[str, float], numbers: str
) -> None:
    with pytest.raises(ur.ConfigError, match=numbers):
        run(tmp_path, fit="tests.plugs:centroids", **fields)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_a_gpu_that_torch_cannot_use_is_refused(simulated: Path, tmp_path: Path) -> None:
    said = r"a training on node .* is to use a GPU, and torch cannot.*gpus_per_fold=0 to train on CPUs. Torch says: .*(NVIDIA|CUDA)"
    with pytest.raises(ur.ConfigError, match=said):
        run(tmp_path / "ray")
    with pytest.raises(ur.ConfigError, match=said):
        run(tmp_path / "local", executor="local", gpus_per_fold=1)


def test_a_lost_worker_is_replaced(simulated: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "run", folds=3, fit={"use": "tests.plugs:dies_once", "log": str(tmp_path)})
    assert (tmp_path / "died").exists()
    undisturbed = run(tmp_path / "local", folds=3, fit="tests.plugs:centroids", executor="local")
    assert result.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()


@pytest.mark.slow
def test_a_worker_that_is_always_lost_ends_the_run_and_keeps_what_was_finished(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(FoldFailedError, match="stage 0 fold 1 failed after it was started 2 times") as failure:
        run(tmp_path, folds=3, fit="tests.plugs:dies_always", max_retries=1)
    assert failure.value.attempts == 2
    assert (tmp_path / "stage-00" / "votes" / "00.parquet").exists()


def test_a_bug_of_the_users_fails_at_once_with_its_own_traceback(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FoldFailedError, match=r"(?s)failed after it was started once.*in buggy.*KeyError: \"a bug of the user's\""
    ):
        run(
            tmp_path / "run",
            folds=2,
            gpus_per_fold=1,
            fit={"use": "tests.plugs:buggy", "log": str(tmp_path)},
            max_retries=3,
        )
    assert len((tmp_path / "calls").read_text()) <= 2


@pytest.mark.slow
def test_a_fold_whose_gpu_fails_moves_to_another(simulated: Path, tmp_path: Path) -> None:
    fit = {"use": "tests.plugs:fails_on_one_gpu", "log": str(tmp_path)}
    result = run(tmp_path / "run", folds=4, fit=fit, max_retries=1, gpus_per_fold=0.5)
    for task in result.manifest.stages[0]["tasks"]:
        assert task["worker_seconds"] == pytest.approx(task["seconds"] / 2, abs=0.001), "two folds share a GPU"
    assert (tmp_path / "used").read_text().splitlines().count((tmp_path / "faulty").read_text()) == 1
    local = run(tmp_path / "local", folds=4, fit="tests.plugs:centroids", executor="local")
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()


def test_a_leak_on_a_worker_is_refused(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(LeakError, match="its own model was trained on"):
        run(tmp_path, folds=2, fit="tests.plugs:leaking")


def test_a_node_that_does_not_see_the_folder_is_named(simulated: Path) -> None:
    import ray

    from unseen_ray.execution.ray.actors import FoldWorker

    actor = ray.remote(FoldWorker).options(num_cpus=0).remote()
    with pytest.raises(ur.ConfigError, match="does not see the run's folder: out=/nowhere/run must be on storage"):
        ray.get(actor.describe.remote("auto", "/nowhere/run"))
    ray.kill(actor)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_node_that_computes_in_another_way_is_not_used(simulated: Path, tmp_path: Path, deterministic: bool) -> None:
    """The first worker is made up: of hardware that has what this one lacks, or lacks what this one has, or of another name."""
    write_manifest(Folder(str(tmp_path)), Manifest(created="", config={}, asked={}, source=NO_SOURCE))
    pool = FoldPool(
        request={"CPU": 1.0, "GPU": 0.0},
        capacity=survey(),
        precision="bf16",
        deterministic=deterministic,
        max_retries=0,
        wait_s=1,
        out=str(tmp_path),
    )
    try:
        real = pool.first_worker()
        lacks = [p for p in ("float32", "bf16") if p == "float32" or p not in real["supported"]]
        other = {**real, **({"device": "another"} if deterministic else {"supported": lacks})}
        pool.close()
        pool.worker_infos[:] = [other]
        pool.request_actors(1)
        deadline = time.monotonic() + 60
        while not pool._parked and time.monotonic() < deadline:
            pool._admit(ray.wait(list(pool._coming), num_returns=1, timeout=1)[0])
        assert len(pool._parked) == 1
        assert not pool.has_actors()
        assert pool.worker_infos == [other]
    finally:
        pool.close()


@pytest.mark.slow
def test_files_in_the_working_folder_hide_no_library_of_the_workers_and_are_found_as_a_user_s_own(
    tmp_path: Path,
) -> None:
    for name in ("numpy", "torch", "PIL", "pyarrow", "statistics"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hidden')")
    (tmp_path / "my_lab.py").write_text("def least(log_probs_NC, labels_N):\n    return -log_probs_NC.max(axis=1)\n")
    fields = "--source digits --source.limit 100 --keep 0.5 --folds 2 --recipe.epochs 1 --score my_lab:least --log_to none --out run"
    line = [sys.executable, "-P", "-m", "unseen_ray", "prune", *fields.split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(ur.__file__).parents[1])}
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(ur.load(tmp_path / "run").coreset) == 50
