"""A new choice whose scores are combined or guarded anew holds no table where the run is long, and chooses what it chooses in memory."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import unseen_ray as ur
from unseen_ray.config.limits import Limits
from unseen_ray.core.policies.base import best_first
from unseen_ray.core.stats import mean_ranks
from unseen_ray.errors import IncompleteScoreError, StorageError
from unseen_ray.pruning.by_parts.scratch import ReadColumn, Scratch, changed
from unseen_ray.runs.votes import read_votes
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import StoredTable

ROWS, CLASSES = 300, 4
LONG = Limits(rows_in_memory=90, rows_of_a_part=64, rows_merged_at_once=70)
CHANGES: list[dict[str, Any]] = [
    {"combine": "rank_mean"},
    {"combine": "mean"},
    {"combine": "mean_prob"},
    *({"guard": guard} for guard in ("none", "unlikely_label", "label_margin", "confident_learning", "prune_by_noise_rate")),
    {"combine": "rank_mean", "guard": "label_margin"},
    {"combine": "mean_prob", "guard": {"use": "label_margin", "cut": 0.3}, "score": "margin", "policy": "class_balanced"},
    {"combine": "rank_mean", "guard": "prune_by_noise_rate", "policy": {"use": "ccs", "cut": 0.1}},
    {"combine": "rank_mean", "policy": "moderate", "score": "disagreement"},
    {"combine": "rank_mean", "policy": {"use": "window", "start": 0.2}},
    {"combine": "rank_mean", "policy": {"use": "beta"}},
    {"guard": "unlikely_label", "policy": "auto"},
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scores of three models, each of two thirds of the samples, by each rule."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    given = []
    for model in range(3):
        probs = rng.dirichlet(np.ones(CLASSES), ROWS).round(2) + 0.01
        probs[np.arange(ROWS), labels] += 1
        probs[::5] = probs[0]
        probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
        probs[np.arange(ROWS) % 3 == model] = np.nan
        given.append(probs)
    np.save(root / "labels.npy", labels)
    for rule in ("mean", "rank_mean", "mean_prob"):
        more = {"also_score": ["disagreement", "margin", "label_margin"], "guard": "label_margin"}
        ur.score(given, root / "labels.npy", out=root / rule, combine=rule, **more)
    return {rule: root / rule for rule in ("mean", "rank_mean", "mean_prob")}


@pytest.mark.parametrize("rule", ["mean", "rank_mean", "mean_prob"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_parts_give_what_memory_gives(change: dict[str, Any], rule: str, runs: dict[str, Path], tmp_path: Path) -> None:
    asked = {"keep": 0.4, "policy": "top", **change}
    found = ur.select(runs[rule], out=tmp_path / "long", limits=LONG, **asked)
    wanted = ur.select(runs[rule], out=tmp_path / "whole", **asked)
    assert found.scores.equals(wanted.scores)
    assert found.coreset.to_arrow().equals(wanted.coreset.to_arrow())
    assert {path.name for path in tmp_path.iterdir()} == {"long", "whole"}


def test_ranks_are_those_of_numpy(runs: dict[str, Path], tmp_path: Path) -> None:
    found = ur.select(
        runs["mean"], keep=0.4, guard="none", combine="rank_mean", policy="top", out=tmp_path / "x", limits=LONG
    )
    total, votes = np.zeros(ROWS), np.zeros(ROWS)
    for model in range(3):
        part = read_votes(Folder(str(runs["mean"])), 0, model)
        total[part.ids_M] += mean_ranks(part.scores["entropy"])
        votes[part.ids_M] += 1
    wanted = (total / votes).astype(np.float32)
    np.testing.assert_array_equal(found.scores.column("entropy").to_numpy(), wanted)
    ids = np.arange(ROWS)
    assert found.coreset.ids.tolist() == np.sort(best_first(wanted, ids, 0)[:120]).tolist()


def test_nothing_reads_the_table_at_once(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredTable, "table", lambda _: pytest.fail("the whole table was read"))
    monkeypatch.setattr(Folder, "read_table", lambda *_: pytest.fail("a whole file was read"))
    for number, change in enumerate(CHANGES):
        ur.select(runs["mean"], **{"keep": 0.4, "policy": "top", **change}, out=tmp_path / str(number), limits=LONG)


@pytest.mark.parametrize("combine", ["rank_mean", "mean"])
def test_votes_that_are_missing_or_damaged_are_found(combine: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["mean_prob"], tmp_path / "run"))
    votes = run / "stage-00" / "votes" / "01.parquet"
    before = votes.read_bytes()
    shutil.copy(run / "stage-00" / "votes" / "02.parquet", votes)
    asked = {"keep": 0.4, "policy": "top", "combine": combine, "out": tmp_path / "new", "limits": LONG}
    with pytest.raises((IncompleteScoreError, StorageError), match=r"fewer or more votes|01\.parquet is damaged"):
        ur.select(run, **asked)
    votes.write_bytes(before[:300] + bytes([before[300] ^ 1]) + before[301:])
    with pytest.raises(StorageError, match=r"01\.parquet"):
        ur.select(run, **asked)
    assert not (tmp_path / "new").exists()


def test_scratch_columns_are_read_as_written_and_have_no_name(tmp_path: Path) -> None:
    column = Scratch(str(tmp_path / "new" / "run"), 9).column(1000, np.float32)
    assert not column[:].any() and len(column) == 1000 and not list(tmp_path.iterdir())
    column[10:20] = np.arange(10)
    assert column[9:12].tolist() == [0, 0, 1]
    assert isinstance(Scratch("s3://bucket/x", 9).column(9, bool), np.ndarray)
    assert Scratch("s3://bucket/x", 9).column(10, bool)[5:].tolist() == [False] * 5
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"a column of 1000 rows cannot be kept in .*: .*Make room for 0\.0 GB"):
            Scratch(str(tmp_path), 9).column(1000, np.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_column_is_read_by_slices_again_and_again(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    files = {
        "t.parquet": folder.write_table("t.parquet", pa.table({"id": np.arange(50), "x": np.arange(50)}), row_group=7)
    }
    stored = StoredTable(folder, "t.parquet", files)
    column = ReadColumn(stored, "x")
    for size in (1, 3, 7, 20, 50, 60):
        for start in range(0, 50, size):
            assert column[start : start + size].tolist() == list(range(start, min(start + size, 50)))
    twice = changed(changed(stored, {"y": np.arange(50) % 2}, ["id", "x", "y"]), {"x": np.ones(50)}, ["y", "x"])
    assert twice.schema.names == ["y", "x"]
    assert twice.table().to_pydict() == {"y": [0, 1] * 25, "x": [1.0] * 50}
