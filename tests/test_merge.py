"""A stage that is merged range by range is the one that is merged at once, to the bit; gaps and damage are found either way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.arrays import IdArray
from unseen_ray.core.combine_votes import log_of_probs
from unseen_ray.core.folds import plan_folds
from unseen_ray.core.outofcore import ranks
from unseen_ray.core.samples.id_sets import ArrayIds
from unseen_ray.core.scores import entropy, label_margin
from unseen_ray.core.tasks import VotePart
from unseen_ray.data.sources.registry import source_ref
from unseen_ray.errors import IncompleteScoreError, StorageError
from unseen_ray.pruning import merge as merging
from unseen_ray.pruning.merge import Merged, Merger, MergeRequest, merge_request, with_no_other_parts
from unseen_ray.runs import votes
from unseen_ray.runs.layout import vote_file
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Job
from unseen_ray.runs.vote_ranges import check_votes, open_votes
from unseen_ray.runs.votes import read_votes, write_part, write_votes
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import read_table

CLASSES, ROWS = 3, 500
SMALL = Limits(rows_in_memory=100, rows_of_a_part=64, rows_merged_at_once=30)
RNG = np.random.default_rng(3)
CANDIDATES = np.sort(RNG.permutation(3 * ROWS)[:ROWS])
LABELS = RNG.integers(0, CLASSES, 3 * ROWS)

OF_ALL: list[dict[str, Any]] = [
    {"combine": "rank_mean"},
    {"combine": "mean_prob"},
    {"save_probs": True},
    {"save_probs": True, "combine": "rank_mean", "guard": "prune_by_noise_rate"},
    {"guard": "confident_learning"},
    {"guard": {"use": "confident_learning", "plain": True}},
    {"guard": "prune_by_noise_rate"},
    {"guard": "label_margin"},
    {"guard": {"use": "label_margin", "cut": 0.3}, "combine": "rank_mean"},
    {"guard": "unlikely_label"},
    {"guard": {"use": "unlikely_label", "many": 0.9}},
    {"guard": "tests.test_merge:likely"},
]


def likely(p_label_M: np.ndarray, probs_MC: np.ndarray) -> np.ndarray:
    """A guard of a user's own."""
    return (p_label_M > 0.8) | (probs_MC[:, 0] > 0.9)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes, "ROW_GROUP", 40)


def job_of(out: Path, limits: Limits = SMALL, **fields: Any) -> Job:
    config = ur.PruneConfig(source="digits", keep=0.5, out=str(out), also_score="none", **fields)
    return Job(
        resolved=ResolvedRun(config),
        source=source_ref("digits"),
        test=None,
        fingerprint="f",
        num_classes=CLASSES,
        size_px=8,
        skipped_ids=np.setdiff1d(np.arange(3 * ROWS), CANDIDATES),
        out=str(out),
        limits=limits,
    )


def write(out: Path, index: int, ids: IdArray, *, probs: bool, rows: int = ROWS) -> None:
    """The votes of a model, in parts of `rows`."""
    rng = np.random.default_rng(index)
    p = rng.dirichlet(np.ones(CLASSES), len(ids)).astype(np.float32)
    part = VotePart(
        index=index,
        ids_M=ids,
        pred_M=p.argmax(axis=1),
        p_top_M=(rng.integers(3, 9, len(ids)) / 8).astype(np.float32),
        p_label_M=p[np.arange(len(ids)), LABELS[ids]],
        scores={
            "entropy": entropy(log_of_probs(p), LABELS[ids]),
            "label_margin": label_margin(log_of_probs(p), LABELS[ids]).round(1),
        },
        probs_MC=p if probs else None,
    )
    receipt = Receipt(
        index=index, task="t", files={}, trained=1, scored=len(ids), image_passes=1, accuracy=0.5, train_accuracy=0.5,
        seconds=1.0, worker_seconds=1.0, gpu_seconds=0.0, node="n", device="cpu",
    )  # fmt: skip
    folder, earlier, first = Folder(str(out)), dict[str, str](), 0
    for number, first in enumerate(range(rows, len(ids), rows)):
        earlier |= write_part(folder, 0, "key", number, rows_of(part, first - rows, first))
    write_votes(folder, 0, "key", rows_of(part, first, len(ids)), receipt, earlier)


def rows_of(part: VotePart, start: int, stop: int) -> VotePart:
    columns = {name: getattr(part, name)[start:stop] for name in ("ids_M", "pred_M", "p_top_M", "p_label_M")}
    scores = {name: values[start:stop] for name, values in part.scores.items()}
    return replace(
        part, **columns, scores=scores, probs_MC=None if part.probs_MC is None else part.probs_MC[start:stop]
    )


def stage(out: Path, folds: int, *, probs: bool = False, rows: int = ROWS) -> None:
    plan = plan_folds(ROWS, folds, 0)
    for index in range(folds):
        write(out, index, CANDIDATES[plan.fold_of_N != index], probs=probs, rows=rows)


def asked(job: Job, folds: int = 3, *, stage: int = 0, kept: int = 0) -> MergeRequest:
    population, ids = job.population(LABELS), ArrayIds(CANDIDATES[:kept])
    return merge_request(
        job,
        population,
        stage=stage,
        kept=ids,
        num_kept=kept,
        num_parts=folds,
        votes_each=folds - 1,
    )


def merged(job: Job, folds: int = 3) -> Merged:
    return Merger(job, LABELS).merge(asked(job, folds))


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("combine", ["mean", "mean_prob"])
def test_ranges_give_the_same_table(folds: int, combine: str, tmp_path: Path) -> None:
    stage(tmp_path, folds, probs=combine == "mean_prob")
    job = job_of(tmp_path, combine=combine)
    by_range = merged(job, folds)
    assert by_range.table is None
    names = [name.replace("-marked", "") for name in by_range.files]
    assert names == [f"stage-00/scores.parquet/part-{number:05d}.parquet" for number in range(8)]
    table = read_table(Folder(job.out), "stage-00/scores.parquet", by_range.files)
    Folder(job.out).delete_folder("stage-00/scores.parquet")
    at_once = merged(job_of(tmp_path, DEFAULT_LIMITS, combine=combine), folds)
    assert list(at_once.files) == ["stage-00/scores.parquet"]
    assert at_once.table is not None and at_once.table.num_rows == ROWS
    assert table.equals(at_once.table)
    for told in ("rows", "right", "suspects"):
        assert getattr(by_range.summary, told) == getattr(at_once.summary, told)
    assert by_range.summary.labels_C.tolist() == at_once.summary.labels_C.tolist()


@pytest.mark.usefixtures("small_groups")
def test_ranges_are_merged_in_any_order_and_by_anybody(tmp_path: Path) -> None:
    stage(tmp_path, 3)
    job = job_of(tmp_path)
    request, table = asked(job), merged(job).files
    left = Folder(job.out).path("stage-00/scores.parquet/part-00099.parquet")
    Path(left).write_bytes(b"left by a merge of other ranges")
    again = [Merger(job, LABELS).merge_range(request, number) for number in (5, 0, 7, 3, 1, 2, 6, 4)]
    joined = Merger(job, LABELS).join(request, again)
    assert with_no_other_parts(Folder(job.out), 0, joined).files == table
    assert not Path(left).exists()


@pytest.mark.usefixtures("small_groups")
def test_no_more_than_a_range_of_votes_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(tmp_path, 3)
    read: list[int] = []
    add = merging.VoteCombiner.add
    monkeypatch.setattr(
        merging.VoteCombiner, "add", lambda book, part: (read.append(len(part.ids_M)), add(book, part))[1]
    )
    merged(job_of(tmp_path))
    assert len(read) == 3 * (7 * 3 + 2)
    assert max(read) <= 30 and sum(read) == 2 * ROWS


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("fields", OF_ALL, ids=str)
def test_what_compares_all_candidates_is_the_same_by_ranges(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_CHUNK", 40)
    monkeypatch.setattr(ranks.add_mean_ranks, "__kwdefaults__", {"most_sorted": 50, "most_counted": 2})
    stage(tmp_path, 3, probs=True)
    long, short = job_of(tmp_path, **fields), job_of(tmp_path, DEFAULT_LIMITS, **fields)
    found = merged(long)
    table = read_table(Folder(long.out), "stage-00/scores.parquet", found.files)
    probs = stored_probs(tmp_path)
    Folder(long.out).delete_folder("stage-00/scores.parquet")
    at_once = merged(short)
    assert at_once.table is not None and table.equals(at_once.table)
    assert found.summary.suspects == at_once.summary.suspects
    np.testing.assert_array_equal(probs, stored_probs(tmp_path))
    assert ("stage-00/probs.npy" in found.files) == ("stage-00/probs.npy" in at_once.files)


def stored_probs(run: Path) -> np.ndarray:
    path = run / "stage-00" / "probs.npy"
    return np.load(path) if path.exists() else np.empty(0)


@pytest.mark.usefixtures("small_groups")
def test_a_stage_of_few_candidates_is_one_range(tmp_path: Path) -> None:
    request = asked(job_of(tmp_path))
    assert (request.range_rows, request.num_ranges) == (64, 8)
    assert asked(job_of(tmp_path), stage=1, kept=ROWS - 100).num_ranges == 1
    assert asked(job_of(tmp_path), stage=1, kept=ROWS - 101).num_ranges == 8


@pytest.mark.usefixtures("small_groups")
def test_a_range_is_that_of_the_whole(tmp_path: Path) -> None:
    for folder, rows in ((Folder(str(tmp_path / str(rows))), rows) for rows in (ROWS, 70)):
        stage(Path(folder.root), 3, probs=True, rows=rows)
        check_votes(folder, 0, 1)
        whole, file = read_votes(folder, 0, 1), open_votes(folder, 0, 1)
        assert len(file.file(file.names[0]).lows) == -(-min(len(whole.ids_M), rows) // 40)
        assert len(file.names) == -(-len(whole.ids_M) // rows)
        some = [(100, 101), (300, 1100), (299, None), (2000, None), (700, 700), (0, int(whole.ids_M[0]))]
        ends = [(int(whole.ids_M[70]), int(whole.ids_M[140])), (int(whole.ids_M[69]), int(whole.ids_M[140]) + 1)]
        for low, high in ((None, None), (None, 0), *some, *ends):
            inside = (whole.ids_M >= (0 if low is None else low)) & (whole.ids_M < (10**9 if high is None else high))
            part = file.part(low, high)
            assert part.ids_M.tolist() == whole.ids_M[inside].tolist()
            np.testing.assert_array_equal(part.scores["entropy"], whole.scores["entropy"][inside])
            assert whole.probs_MC is not None and part.probs_MC is not None
            np.testing.assert_array_equal(part.probs_MC, whole.probs_MC[inside])


@pytest.mark.usefixtures("small_groups")
def test_a_range_opens_only_the_parts_that_it_overlaps(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    stage(tmp_path, 3, rows=10)
    ids, (before, *_, last) = read_votes(folder, 0, 1).ids_M, open_votes(folder, 0, 1).names
    folder.delete(before)
    some = open_votes(folder, 0, 1)
    assert some.part(int(ids[200]), int(ids[220])).ids_M.tolist() == ids[200:220].tolist()
    assert some.part(int(ids[-2]), None).ids_M.tolist() == ids[-2:].tolist()
    with pytest.raises(StorageError, match=r"part-00000\.parquet is missing"):
        some.part(None, int(ids[20]))
    with pytest.raises(StorageError, match=r"part-00000\.parquet is missing"):
        check_votes(folder, 0, 1)
    folder.delete(last)
    with pytest.raises(IncompleteScoreError, match="candidates have fewer or more votes"):
        merged(job_of(tmp_path))


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("combine", ["mean", "rank_mean", "mean_prob"])
def test_parts_give_the_table_that_one_file_gives(combine: str, tmp_path: Path) -> None:
    tables = []
    for rows in (ROWS, 70):
        stage(tmp_path / str(rows), 3, probs=combine == "mean_prob", rows=rows)
        job = job_of(tmp_path / str(rows), combine=combine)
        tables.append(read_table(Folder(job.out), "stage-00/scores.parquet", merged(job).files))
    assert tables[0].equals(tables[1])


@pytest.mark.usefixtures("small_groups")
def test_gaps_strangers_and_damage_are_found(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    stage(tmp_path, 3)
    Folder(job.out).delete(vote_file(0, 2))
    with pytest.raises(StorageError, match=r"02.parquet is missing\. Is `out` on storage"):
        merged(job)
    write(tmp_path, 2, CANDIDATES[plan_folds(ROWS, 3, 0).fold_of_N != 2][:-1], probs=False)
    with pytest.raises(
        IncompleteScoreError, match=r"1 of 22 candidates have .*; the first is id \d+ with 1 instead of 2"
    ):
        merged(job)
    for stranger in np.setdiff1d(np.arange(3 * ROWS), CANDIDATES)[[0, 50, -1]]:
        Folder(job.out).delete(vote_file(0, 2))
        write(tmp_path, 2, np.sort(np.append(CANDIDATES[plan_folds(ROWS, 3, 0).fold_of_N != 2], stranger)), probs=False)
        with pytest.raises(IncompleteScoreError, match=r"votes of task 2: 1 ids are not among the \d+ allowed ones"):
            merged(job)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("part", ["", "/part-00001"])
@pytest.mark.parametrize("name", ["stage-00/votes/01.parquet", "stage-00/votes/01.probs.npy"])
def test_a_flipped_bit_in_any_range_is_found(name: str, part: str, tmp_path: Path) -> None:
    stage(tmp_path, 3, probs=True, rows=70 if part else ROWS)
    name += part and part + Path(name).suffix
    before = (tmp_path / name).read_bytes()
    for place in (200, len(before) // 2, len(before) - 700):
        (tmp_path / name).write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        with pytest.raises(StorageError, match="damaged"):
            merged(job_of(tmp_path))
    (tmp_path / name).write_bytes(before)
    merged(job_of(tmp_path))
