"""The votes of a long task are stored part by part: with the bits of one file, and a killed scoring goes on behind the last part."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch import Tensor, nn

import unseen_ray as ur
from tests.plugs import centroids
from tests.s3 import s3_server
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.errors import FitError
from unseen_ray.execution.local import LocalExecutor
from unseen_ray.pruning.pipeline import run_pipeline
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.result_cache import ClaimBook, ResultCache
from unseen_ray.runs.votes import find_receipt, read_key, read_receipt, read_votes
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.vote_buffer import VoteBuffer

BATCH, PART = 16, 32  # samples that are predicted at once: twice a batch of training; and in a part of at most 40
SMALL = Limits(votes_of_a_part=40)
MODEL = "tests.test_vote_parts:noting_model"
FIELDS: dict[str, Any] = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.5,
    "folds": 2,
    "holdout": 0.2,
    "model": MODEL,
    "recipe": {"epochs": 3, "min_steps": 0, "precision": "float32", "batch_size": BATCH // 2},
    "also_score": "all",
    "executor": "local",
}


_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["tests.test_vote_parts", "torch._dynamo"])


class Noting(nn.Module):
    """Notes how many samples it predicts, and kills its process after some."""

    def __init__(self, num_classes: int, notes: str, killed_after: int) -> None:
        super().__init__()
        self.notes, self.killed_after = Path(notes), killed_after
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU()), nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and self.notes.name:
            killed = self.notes.with_suffix(".killed")
            seen = len(self.notes.read_text().split()) if self.notes.exists() else 0
            if 0 <= self.killed_after <= seen and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with self.notes.open("a") as file:
                file.write(f"{len(images)} ")
        scores: Tensor = self.head(self.body(images))
        return scores


def noting_model(num_classes: int, *, notes: str = "", killed_after: int = -1) -> nn.Module:
    return Noting(num_classes, notes, killed_after)


def prune(out: Path, limits: Limits = SMALL, **fields: Any) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{**FIELDS, "out": out, **fields}), limits=limits)


def assert_same(one: Path, other: Path, *, probs: bool = False) -> None:
    """Two runs kept the same, and their votes have the same bits."""
    for name in ("coreset.parquet", "stage-00/scores.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for index in (0, 1):
        mine, its = (read_votes(Folder(str(out)), 0, index) for out in (one, other))
        assert mine.ids_M.tolist() == its.ids_M.tolist()
        assert mine.pred_M.tolist() == its.pred_M.tolist()
        assert mine.scores.keys() == its.scores.keys()
        for name, values in mine.scores.items():
            assert values.tobytes() == its.scores[name].tobytes(), name
        assert (mine.probs_MC is None) == (its.probs_MC is None) == (not probs)
        if mine.probs_MC is not None and its.probs_MC is not None:
            assert mine.probs_MC.tobytes() == its.probs_MC.tobytes()


def names_of(out: Path) -> list[str]:
    return sorted(name for name in ur.load(out).manifest.files if "/votes/00." in name)


def test_parts_have_the_bits_of_one_file(tmp_path: Path) -> None:
    whole = prune(tmp_path / "whole", DEFAULT_LIMITS, save_probs=True)
    parts = prune(tmp_path / "parts", save_probs=True)
    assert_same(tmp_path / "parts", tmp_path / "whole", probs=True)
    stored = [receipt.to_json() for run in (whole, parts) for receipt in run.manifest.stages[0].tasks]
    assert stored[0]["accuracy"] == stored[2]["accuracy"] and stored[1]["accuracy"] == stored[3]["accuracy"]
    assert names_of(tmp_path / "whole") == ["stage-00/votes/00.parquet", "stage-00/votes/00.probs.npy"]
    base = "stage-00/votes/00"
    assert names_of(tmp_path / "parts") == [
        *(f"{base}.parquet/part-{number:05d}.parquet" for number in range(4)),
        *(f"{base}.probs.npy/part-{number:05d}.npy" for number in range(4)),
    ]
    lengths = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "parts" / f"{base}.parquet").iterdir())]
    assert lengths == [PART, PART, PART, 120 - 3 * PART]
    assert pq.read_table(tmp_path / "parts" / f"{base}.parquet").num_rows == 120


def test_features_keep_a_task_whole(tmp_path: Path) -> None:
    prune(tmp_path / "run", save_features=True)
    assert (tmp_path / "run/stage-00/votes/00.parquet").is_file()
    assert (tmp_path / "run/stage-00/votes/01.parquet").is_dir()


def in_a_process(out: Path, fields: dict[str, Any]) -> int | None:
    process = _forking.Process(target=prune, args=(out,), kwargs=fields)
    process.start()
    process.join(120)
    return process.exitcode


def noted(notes: Path) -> list[int]:
    """How many samples were predicted in each batch, once whoever predicts was killed."""
    assert notes.with_suffix(".killed").exists()
    return [int(count) for count in notes.read_text().split()]


@pytest.mark.slow
def test_a_scoring_that_was_killed_goes_on_behind_what_is_stored(tmp_path: Path) -> None:
    recorded = 2 * -(-120 // BATCH)  # aum is over epochs: the model also predicts after the first two
    model = {"use": MODEL, "notes": str(tmp_path / "notes"), "killed_after": recorded + 5}
    fields = {"score": "aum", "also_score": "none", "model": model}
    assert in_a_process(tmp_path / "run", fields) == -signal.SIGKILL
    folder, name = Folder(str(tmp_path / "run")), "stage-00/votes/00.parquet"
    key = read_key(folder, name)
    assert folder.within(name).names() == ["part-00000.parquet", "part-00001.parquet"]
    assert key is not None and read_receipt(folder, name) is None and find_receipt(folder, 0, 0, key) is None
    prune(tmp_path / "run", **fields)
    counts = noted(tmp_path / "notes")
    assert sum(counts[recorded : recorded + 5]) == 2 * PART + BATCH
    assert sum(counts[recorded + 5 :]) == (120 - 2 * PART) + 3 * 120
    prune(tmp_path / "whole", DEFAULT_LIMITS, **fields)
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_was_killed_in_its_scoring_is_replaced_and_goes_on(tmp_path: Path) -> None:
    model = {"use": MODEL, "notes": str(tmp_path / "notes"), "killed_after": 10}
    fields = {"score": "entropy", "also_score": "none", "model": model}
    prune(tmp_path / "run", executor="ray", **fields)
    assert 240 <= sum(noted(tmp_path / "notes")) <= 240 + PART - BATCH
    prune(tmp_path / "whole", DEFAULT_LIMITS, **fields)
    assert_same(tmp_path / "run", tmp_path / "whole")


def backwards(task: Any, *, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A `fit` that predicts in another order, across the ends of parts."""
    ids, log_probs = (np.concatenate(each) for each in zip(*centroids(task, source=source), strict=True))
    for start in range(0, len(ids), 50):
        yield ids[::-1][start : start + 50], log_probs[::-1][start : start + 50]


def repeating(task: Any, *, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A `fit` that predicts a sample again once its part is stored."""
    predictions = list(centroids(task, source=source))
    yield from [*predictions[:3], predictions[0]]


def test_a_fit_of_your_own_may_predict_in_any_order(tmp_path: Path) -> None:
    own = {name: FIELDS[name] for name in ("source", "keep", "folds", "holdout", "executor")}
    for name, fit in (("whole", centroids), ("parts", centroids), ("backwards", backwards)):
        limits = DEFAULT_LIMITS if name == "whole" else SMALL
        ur.prune(ur.PruneConfig(**own, fit=fit, out=tmp_path / name), limits=limits)
        assert_same(tmp_path / name, tmp_path / "whole")
    assert len(names_of(tmp_path / "backwards")) == 3
    with pytest.raises(FitError, match="predicted a sample twice"):
        ur.prune(ur.PruneConfig(**own, fit=repeating, out=tmp_path / "twice"), limits=SMALL)


STOPPED, SKIP = [False], VoteBuffer.skip


def stopped_once(task: Any, *, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`centroids`, interrupted after three quarters, once."""
    for number, predictions in enumerate(centroids(task, source=source)):
        if number == 3 and not STOPPED[0]:
            STOPPED[0] = True
            raise KeyboardInterrupt
        yield predictions


@pytest.mark.slow
def test_parts_on_an_object_store_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: FIELDS[name] for name in ("source", "keep", "folds", "holdout", "executor")}
    whole = ur.prune(ur.PruneConfig(**own, fit=centroids, out=tmp_path / "whole"))
    with s3_server(monkeypatch):
        out, base = "s3://runs/parts", "stage-00/votes/00.parquet"
        with pytest.raises(KeyboardInterrupt):
            ur.prune(ur.PruneConfig(**own, fit=stopped_once, out=out), limits=SMALL)
        folder = Folder(out)
        stored = {name: folder.read(f"{base}/{name}") for name in folder.within(base).names()}
        assert list(stored) == ["part-00000.parquet", "part-00001.parquet"]
        scored: list[int] = []
        monkeypatch.setattr(VoteBuffer, "skip", lambda votes, number: (scored.append(number), SKIP(votes, number))[1])
        found = ur.prune(ur.PruneConfig(**own, fit=stopped_once, out=out), limits=SMALL)
        assert scored == [0, 1] and found.coreset.ids.tolist() == whole.coreset.ids.tolist()
        assert {name: folder.read(f"{base}/{name}") for name in stored} == stored


def test_what_is_stored_is_taken_only_if_it_is_whole(tmp_path: Path) -> None:
    whole = prune(tmp_path / "whole")
    files = {name: digest for name, digest in whole.manifest.files.items() if "/votes/" in name}
    part = tmp_path / "whole/stage-00/votes/00.parquet/part-00001.parquet"
    key = read_key(Folder(whole.path), "stage-00/votes/00.parquet")
    before = part.read_bytes()
    assert key is not None
    for damaged in (before[:-1], before[:300] + bytes([before[300] ^ 1]) + before[301:], b""):
        part.write_bytes(damaged)
        assert find_receipt(Folder(whole.path), 0, 0, key) is None
    part.unlink()
    assert find_receipt(Folder(whole.path), 0, 0, key) is None
    part.write_bytes(before)
    found = find_receipt(Folder(whole.path), 0, 0, key)
    assert found is not None and found.files == {name: files[name] for name in files if "/00." in name}


def test_parts_are_lent_and_copied(tmp_path: Path) -> None:
    told: list[Receipt] = []

    def note(event: Any) -> None:
        if isinstance(event, Receipt):
            told.append(event)

    book, fields = ClaimBook(), {**FIELDS, "save_probs": True}
    for name in ("first", "second"):
        with ResultCache(str(tmp_path / "cache"), name, book) as cache:
            config = ur.PruneConfig(**fields, out=tmp_path / name)
            run_pipeline(config, executor=LocalExecutor(), on_event=note, cache=cache, limits=SMALL)
    prune(tmp_path / "third", save_probs=True, reuse=[str(tmp_path / "first")])
    assert [receipt.reused for receipt in told] == [False, False, True, True]
    for name in ("second", "third"):
        assert_same(tmp_path / name, tmp_path / "first", probs=True)
        assert len(names_of(tmp_path / name)) == 8
