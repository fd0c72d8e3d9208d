"""What `submit` refuses before it turns to a cluster."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from unseen_ray.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a run in it."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "run.yaml").write_text("source: digits\nkeep: 0.5\n")
    return folder


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--working-dir", str(folder), *args])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_every_problem_is_named_at_once(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    said = refused(capsys, folder, str(folder / "run.yaml"), "--folds", "1", "--out", "runs/a", "--keep", "2")
    assert "3 problems" in said
    assert "keep=2 is outside (0, 1)" in said
    assert "folds=1 is not allowed" in said
    assert "out='runs/a' is relative: it would be lost with the job's copy of the working directory" in said


def test_what_a_job_would_not_find_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "source: photos/\ntest: ../elsewhere/*.parquet\nkeep: 0.5\nexecutor: local\nreuse: runs/b\n"
    )
    said = refused(capsys, folder, str(folder / "run.yaml"), "--out", "/shared/runs/a")
    assert "source='photos/' is relative, and the working directory" in said
    assert "test='../elsewhere/*.parquet' is relative" in said
    assert "reuse='runs/b' is relative" in said
    assert "executor: local would train everything in one process of the head node" in said


def test_an_address_in_the_yaml_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "run.yaml").write_text("source: digits\nkeep: 0.5\naddress: 10.0.0.1:6379\n")
    said = refused(capsys, folder, str(folder / "run.yaml"), "--out", "s3://bucket/a")
    assert "address='10.0.0.1:6379' in the YAML has no effect in a job" in said


def test_out_is_needed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "out is missing. Give an absolute path or a URI" in refused(capsys, folder, str(folder / "run.yaml"))


def test_the_yaml_must_be_shipped(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder.parent / "far.yaml").write_text("source: digits\nkeep: 0.5\n")
    said = refused(capsys, folder, str(folder.parent / "far.yaml"), "--out", "/shared/runs/a")
    assert "lies outside the working directory" in said
    said = refused(capsys, folder / "none", str(folder / "run.yaml"), "--out", "/shared/runs/a")
    assert "is not a folder. Name the one that holds the YAML" in said


def test_data_in_the_working_directory_is_shipped(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    (folder / "data").mkdir()
    (folder / "data" / "a.parquet").write_bytes(b"")
    said = refused(capsys, folder, "--source", "data/*.parquet", "--keep", "0.5", "--out", "~/runs/a")
    assert "--address is missing: give the URL of the head's dashboard" in said


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://me:secret@10.0.0.1:8265", "http://"])
def test_an_address_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str], folder: Path, address: str) -> None:
    said = refused(capsys, folder, str(folder / "run.yaml"), "--out", "/shared/a", "--address", address)
    assert "must be the address of the head's dashboard, such as http://HEAD:8265" in said
    assert "secret" not in said


def test_a_dashboard_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    said = refused(capsys, folder, str(folder / "run.yaml"), "--out", "/shared/a", "--address", "127.0.0.1:1")
    assert "no Ray dashboard answers at 127.0.0.1:1: " in said
    assert "that the tunnel to it is up" in said


def test_other_versions_of_ray_and_python_are_refused() -> None:
    import ray

    from unseen_ray.execution.ray.jobs import version_problems

    same = {"rayVersion": ray.__version__, "pythonVersion": platform.python_version()}
    assert version_problems(same) == []
    assert version_problems({**same, "pythonVersion": platform.python_version().rpartition(".")[0] + ".99"}) == []
    problems = version_problems({"rayVersion": "2.59.0", "pythonVersion": "3.9.1"})
    assert "the cluster runs Ray 2.59.0" in problems[0] and "the cluster runs Python 3.9" in problems[1]


def test_a_sweep_is_submitted_by_ray(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "sweep.yaml").write_text("run: {source: digits, keep: 0.5, holdout: 0.1}\nspace: {folds: [2, 4]}\n")
    said = refused(capsys, folder, str(folder / "sweep.yaml"), "--out", "/shared/a")
    assert "sweep.yaml is a sweep. Submit it by: ray job submit --working-dir" in said
    assert "-- unseen-ray sweep sweep.yaml --out /shared/runs/sweep" in said
