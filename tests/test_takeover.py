"""A worker that is given up for dead and still works, as behind a broken network: what it does late harms nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.core.tasks import ScoreTask, VotePart
from unseen_ray.errors import RunInUseError
from unseen_ray.execution.local import LocalExecutor
from unseen_ray.pruning.executor import Observer
from unseen_ray.pruning.pipeline import run_pipeline
from unseen_ray.runs.layout import vote_file
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Progress
from unseen_ray.runs.votes import write_part, write_votes
from unseen_ray.storage.environment import STORAGE_WAIT_S
from unseen_ray.storage.filesystem import Folder, sha256_of
from unseen_ray.storage.tables import part_file

FIELDS: dict[str, Any] = {
    "source": {"use": "digits", "limit": 200},
    "keep": 0.5,
    "folds": 2,
    "model": {"use": "small_cnn", "width": 8},
    "recipe": {"epochs": 4, "min_steps": 0},
    "scoring": {"share": 1},
    "save_probs": True,
    "executor": "local",
    "log_to": "none",
}


RECEIPT = Receipt(
    index=0,
    task="stage 0 fold 0",
    files={},
    trained=1,
    scored=1,
    image_passes=1,
    accuracy=1.0,
    train_accuracy=1.0,
    seconds=1.0,
    worker_seconds=1.0,
    gpu_seconds=0.0,
    node="",
    device="cpu",
)


class Shadowed(LocalExecutor):
    """Has another worker take up each task first, and hold still until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.shadows: list[Iterator[Progress | Receipt]] = []

    def score(self, tasks: list[ScoreTask], on_event: Observer) -> list[Receipt]:
        """Work off the tasks beside the shadows."""
        for task in tasks:
            shadow = self._ready().score(task)
            assert isinstance(next(shadow), Progress)
            self.shadows.append(shadow)
        return super().score(tasks, on_event)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**FIELDS, out=tmp_path_factory.mktemp("undisturbed")))


def assert_whole(out: Path, undisturbed: ur.PruneResult, caplog: pytest.LogCaptureFixture) -> None:
    """The run is the undisturbed one, every file is what the manifest says, and a rerun finds nothing to do."""
    files = ur.load(out).manifest.files
    assert files == {name: sha256_of((out / name).read_bytes()) for name in files}
    again = ur.prune(ur.PruneConfig(**FIELDS, out=out))
    assert "is finished already" in caplog.text and "damaged" not in caplog.text
    assert again.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    assert again.scores == undisturbed.scores


def test_votes_that_come_after_the_run_is_done_change_nothing(
    tmp_path: Path, undisturbed: ur.PruneResult, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv(STORAGE_WAIT_S, "0")
    executor, out = Shadowed(), tmp_path / "run"
    run_pipeline(ur.PruneConfig(**FIELDS, out=out), executor=executor, on_event=lambda event: None)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for shadow in executor.shadows:
        with pytest.raises(RunInUseError, match=r"its lock, lease\.json, is gone"):
            list(shadow)
    assert len(executor.shadows) == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert_whole(out, undisturbed, caplog)


def test_whoever_took_over_does_not_train_on_when_the_votes_come(
    tmp_path: Path, undisturbed: ur.PruneResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    executor, out = Shadowed(), tmp_path / "run"
    trained: list[tuple[str, int]] = []

    def observe(event: object) -> None:
        if isinstance(event, Progress) and event.done:
            trained.append((event.task, event.done))
            if executor.shadows:
                *_, receipt = executor.shadows.pop(0)
                assert isinstance(receipt, Receipt)

    run_pipeline(ur.PruneConfig(**FIELDS, out=out), executor=executor, on_event=observe)
    assert trained == [("stage 0 fold 0", 1), ("stage 0 fold 1", 1)]
    assert not (out / "checkpoints").exists()
    assert_whole(out, undisturbed, caplog)


def test_votes_that_come_before_those_of_whoever_took_over_stand(
    tmp_path: Path, undisturbed: ur.PruneResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    executor, out = Shadowed(), tmp_path / "run"
    early: dict[str, str] = {}

    def observe(event: object) -> None:
        if isinstance(event, Progress) and event.doing == "train" and event.done == 3 and executor.shadows:
            *_, receipt = executor.shadows.pop(0)
            assert isinstance(receipt, Receipt)
            early.update(receipt.files)

    run_pipeline(ur.PruneConfig(**FIELDS, out=out), executor=executor, on_event=observe)
    assert len(early) == 4
    assert early.items() <= ur.load(out).manifest.files.items()
    assert not (out / "checkpoints").exists()
    assert_whole(out, undisturbed, caplog)


def votes_of(count: int, *, top: float = 1.0) -> VotePart:
    ids, ones = np.arange(count), np.ones(count, np.float32)
    return VotePart(
        index=0, ids_M=ids, pred_M=ids % 3, p_top_M=top * ones, p_label_M=ones, scores={"entropy": 0 * ones}
    )


def test_of_votes_that_come_at_the_same_moment_one_file_stands(tmp_path: Path) -> None:
    folder, together, part = Folder(str(tmp_path)), threading.Barrier(8), votes_of(50_000)

    def write(worker: int) -> Receipt:
        together.wait()
        return write_votes(folder, 0, "key", part, RECEIPT.model_copy(update={"node": f"node-{worker}"}))

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(write, range(8)))
        digest = sha256_of((tmp_path / vote_file(0, 0)).read_bytes())
        assert {receipt.files[vote_file(0, 0)] for receipt in said} == {digest}
        assert len({receipt.node for receipt in said}) == 1
        assert [receipt.reused for receipt in said].count(False) == 1
        folder.delete(vote_file(0, 0))


def test_of_parts_that_come_at_the_same_moment_one_stands(tmp_path: Path) -> None:
    folder, together = Folder(str(tmp_path)), threading.Barrier(8)

    def write(worker: int) -> dict[str, str]:
        together.wait()
        return write_part(folder, 0, "key", 0, votes_of(50_000, top=worker))  # as of workers that round differently

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(write, range(8)))
        name = part_file(vote_file(0, 0), 0)
        assert said == [{name: sha256_of((tmp_path / name).read_bytes())}] * 8
        folder.delete_folder(vote_file(0, 0))
