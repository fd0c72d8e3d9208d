"""A stage that is merged range by range is the one that is merged at once, to the bit; gaps and damage are found either way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray import merging, parts, storage
from unseen_ray.core.arrays import IdArray
from unseen_ray.core.folds import plan_folds
from unseen_ray.core.scorebook import log_of_probs
from unseen_ray.core.scores import entropy
from unseen_ray.core.tasks import VotePart
from unseen_ray.errors import IncompleteScoreError, StorageError
from unseen_ray.job import Job, Receipt
from unseen_ray.merging import MergeRequest, merge_stage, merges_by_range
from unseen_ray.sources import source_ref
from unseen_ray.storage import Folder
from unseen_ray.vote_ranges import open_votes
from unseen_ray.votes import read_votes, vote_file, write_votes

CLASSES, ROWS = 3, 500
RNG = np.random.default_rng(3)
CANDIDATES = np.sort(RNG.permutation(3 * ROWS)[:ROWS])
LABELS = RNG.integers(0, CLASSES, 3 * ROWS)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, rows in ((parts, "MOST_ROWS", 100), (parts, "PART_ROWS", 64), (merging, "RANGE_ROWS", 70)):
        monkeypatch.setattr(module, name, rows)
    monkeypatch.setattr(storage, "ROW_GROUP", 40)


def job_of(out: Path, **fields: Any) -> Job:
    config = ur.PruneConfig(source="digits", keep=0.5, out=str(out), also_score="none", **fields)
    return Job(
        config=config,
        source=source_ref("digits"),
        test=None,
        fingerprint="f",
        num_classes=CLASSES,
        size_px=8,
        out=str(out),
    )


def write(out: Path, index: int, ids: IdArray, *, probs: bool) -> None:
    rng = np.random.default_rng(index)
    p = rng.dirichlet(np.ones(CLASSES), len(ids)).astype(np.float32)
    part = VotePart(
        index=index,
        ids_M=ids,
        pred_M=p.argmax(axis=1),
        p_top_M=(rng.integers(3, 9, len(ids)) / 8).astype(np.float32),
        p_label_M=p[np.arange(len(ids)), LABELS[ids]],
        scores={"entropy": entropy(log_of_probs(p), LABELS[ids])},
        probs_MC=p if probs else None,
    )
    receipt = Receipt(
        index=index, task="t", files={}, trained=1, scored=len(ids), image_passes=1, accuracy=0.5, train_accuracy=0.5,
        seconds=1.0, worker_seconds=1.0, gpu_seconds=0.0, node="n", device="cpu",
    )  # fmt: skip
    write_votes(Folder(str(out)), 0, "key", part, receipt)


def stage(out: Path, folds: int, *, probs: bool = False) -> MergeRequest:
    plan = plan_folds(ROWS, folds, 0)
    for index in range(folds):
        write(out, index, CANDIDATES[plan.fold_of_N != index], probs=probs)
    return MergeRequest(stage=0, ids_M=CANDIDATES, num_parts=folds, votes_each=folds - 1)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("combine", ["mean", "mean_prob"])
def test_ranges_give_the_same_table(folds: int, combine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage(tmp_path, folds, probs=combine == "mean_prob")
    job = job_of(tmp_path, combine=combine)
    assert merges_by_range(job, request)
    by_range, files = merge_stage(job, LABELS, request)
    assert list(files) == [f"stage-00/scores.parquet/part-{number:05d}.parquet" for number in range(8)]
    monkeypatch.setattr(parts, "MOST_ROWS", ROWS)
    assert not merges_by_range(job, request)
    Folder(job.out).delete_folder("stage-00/scores.parquet")
    at_once, files = merge_stage(job, LABELS, request)
    assert list(files) == ["stage-00/scores.parquet"]
    assert at_once.num_rows == ROWS
    assert by_range.equals(at_once)


@pytest.mark.usefixtures("small_ranges")
def test_no_more_than_a_range_of_votes_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, read = stage(tmp_path, 3), []
    add = merging.ScoreBook.add
    monkeypatch.setattr(merging.ScoreBook, "add", lambda book, part: (read.append(len(part.ids_M)), add(book, part))[1])
    merge_stage(job_of(tmp_path), LABELS, request)
    assert len(read) == 3 * 8
    assert max(read) <= 70 and sum(read) == 2 * ROWS


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize(
    "fields", [{"combine": "rank_mean"}, {"save_probs": True}, {"guard": "label_margin"}], ids=lambda f: next(iter(f))
)
def test_what_needs_all_candidates_is_merged_at_once(fields: dict[str, Any], tmp_path: Path) -> None:
    request = MergeRequest(stage=0, ids_M=CANDIDATES, num_parts=3, votes_each=2)
    assert not merges_by_range(job_of(tmp_path, **fields), request)
    assert merges_by_range(job_of(tmp_path), request)
    assert not merges_by_range(job_of(tmp_path), replace(request, ids_M=CANDIDATES[:100]))


def test_a_range_is_that_of_the_whole(tmp_path: Path, small_ranges: None) -> None:
    stage(tmp_path, 3, probs=True)
    folder = Folder(str(tmp_path))
    whole, file = read_votes(folder, 0, 1), open_votes(folder, 0, 1)
    assert len(file.lows) == -(-len(whole.ids_M) // 40)
    for low, high in ((None, None), (None, 0), (100, 101), (300, 1100), (299, None), (2000, None), (700, 700)):
        rows = (whole.ids_M >= (0 if low is None else low)) & (whole.ids_M < (10**9 if high is None else high))
        part = file.part(low, high)
        assert part.ids_M.tolist() == whole.ids_M[rows].tolist()
        np.testing.assert_array_equal(part.scores["entropy"], whole.scores["entropy"][rows])
        assert whole.probs_MC is not None and part.probs_MC is not None
        np.testing.assert_array_equal(part.probs_MC, whole.probs_MC[rows])


@pytest.mark.usefixtures("small_ranges")
def test_gaps_strangers_and_damage_are_found(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    request = stage(tmp_path, 3)
    Folder(job.out).delete(vote_file(0, 2))
    with pytest.raises(StorageError, match=r"02.parquet is missing\. Is `out` on storage"):
        merge_stage(job, LABELS, request)
    write(tmp_path, 2, CANDIDATES[plan_folds(ROWS, 3, 0).fold_of_N != 2][:-1], probs=False)
    with pytest.raises(
        IncompleteScoreError, match=r"1 of 10 candidates do not have 2 votes; the first is id \d+ with 1"
    ):
        merge_stage(job, LABELS, request)
    for stranger in np.setdiff1d(np.arange(3 * ROWS), CANDIDATES)[[0, 50, -1]]:
        Folder(job.out).delete(vote_file(0, 2))
        write(tmp_path, 2, np.sort(np.append(CANDIDATES[plan_folds(ROWS, 3, 0).fold_of_N != 2], stranger)), probs=False)
        with pytest.raises(IncompleteScoreError, match=r"votes of task 2: 1 ids are not among the \d+ allowed ones"):
            merge_stage(job, LABELS, request)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("name", ["stage-00/votes/01.parquet", "stage-00/votes/01.probs.npy"])
def test_a_flipped_bit_in_any_range_is_found(name: str, tmp_path: Path) -> None:
    request = stage(tmp_path, 3, probs=True)
    before = (tmp_path / name).read_bytes()
    for place in (200, len(before) // 2, len(before) - 700):
        (tmp_path / name).write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        with pytest.raises(StorageError, match="damaged"):
            merge_stage(job_of(tmp_path), LABELS, request)
    (tmp_path / name).write_bytes(before)
    merge_stage(job_of(tmp_path), LABELS, request)
