"""Score `reducible`: the loss of a later stage's models less that of stage 0's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import unseen_ray as ur
from unseen_ray.config.limits import Limits
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import StoredTable, write_table

FIELDS: dict[str, Any] = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.7,
    "schedule": [0.3, 0.5, 0.7],
    "recipe": {"epochs": 3, "min_steps": 0},
    "score": "reducible",
    "executor": "local",
}
SMALL = Limits(rows_in_memory=100, rows_of_a_part=64, rows_merged_at_once=32)


def prune(out: Path, limits: Limits | None = None, **fields: Any) -> ur.PruneResult:
    config = ur.PruneConfig(**{"policy": "top", **FIELDS, **fields}, out=out)
    return ur.prune(config) if limits is None else ur.prune(config, limits=limits)


def columns_of(result: ur.PruneResult, stage: int, *names: str) -> dict[int, tuple[float, ...]]:
    """By id."""
    table = result.run.table(f"stage-{stage:02d}/scores.parquet")
    return dict(
        zip(
            table.column("id").to_pylist(), zip(*(table.column(n).to_pylist() for n in names), strict=True), strict=True
        )
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    return prune(tmp_path_factory.mktemp("run"))


def test_it_is_the_loss_less_that_of_stage_zero_and_decides(run: ur.PruneResult) -> None:
    first = columns_of(run, 0, "loss", "reducible", "std_loss", "std_reducible")
    assert all(loss == value and std == other for loss, value, std, other in first.values())
    kept = dict(zip(run.coreset.ids.tolist(), run.coreset.stages.tolist(), strict=True))
    for stage in (1, 2):
        rows = columns_of(run, stage, "loss", "reducible")
        for number, (loss, value) in rows.items():
            assert value == np.float32(np.float64(loss) - first[number][0])
        added = [value for number, (_, value) in rows.items() if kept.get(number) == stage]
        assert min(added) >= max(value for number, (_, value) in rows.items() if kept.get(number) != stage)
    losses = columns_of(run, 1, "loss")
    hardest = sorted(losses, key=lambda number: -losses[number][0])[:60]
    assert set(hardest) != {number for number, at in kept.items() if at == 1}


def test_ranges_give_the_same(run: ur.PruneResult, tmp_path: Path) -> None:
    long = prune(tmp_path, SMALL)
    assert len([name for name in long.manifest.files if name.startswith("stage-01/scores.parquet/")]) > 2
    assert long.coreset.ids.tolist() == run.coreset.ids.tolist()
    for stage in (0, 1, 2):
        names = ("loss", "reducible", "std_reducible")
        assert columns_of(long, stage, *names) == columns_of(run, stage, *names)


def test_stored_beside_another_score_it_changes_no_choice(run: ur.PruneResult, tmp_path: Path) -> None:
    plain = prune(tmp_path / "plain", score="entropy", also_score="none")
    beside = prune(tmp_path / "beside", score="entropy", also_score=["reducible"], reuse=plain.path)
    assert plain.coreset.ids.tolist() == beside.coreset.ids.tolist()
    assert columns_of(beside, 0, "reducible") == columns_of(run, 0, "reducible")
    by_loss = ur.select(run, keep=0.3, score="loss", out=str(tmp_path / "loss")).coreset.ids
    assert ur.select(run, keep=0.3, out=str(tmp_path / "select")).coreset.ids.tolist() == by_loss.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"schedule": None},
            r"score reducible compares the loss of a later stage .*, and there is one stage\. Give a schedule",
        ),
        ({"combine": "rank_mean"}, r"combine=rank_mean makes ranks of losses\. Set combine: mean or mean_prob"),
        ({"score": {"use": "reducible", "by": 2}}, r"score: reducible takes no option 'by'; it takes none"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune(tmp_path, **fields)


def test_probabilities_alone_have_no_stages(tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", np.full((300, 10), 0.1, np.float32))
    np.save(tmp_path / "labels.npy", np.arange(300) % 10)
    with pytest.raises(
        ConfigError, match=r"score reducible compares the models of two stages, and there are only prob"
    ):
        ur.score(tmp_path / "probs.npy", tmp_path / "labels.npy", out=tmp_path / "out", score="reducible")


@pytest.mark.parametrize("part_rows", [None, 7])
@pytest.mark.parametrize("is_held", [True, False])
def test_rows_are_found_by_id(tmp_path: Path, part_rows: int | None, is_held: bool) -> None:
    ids = np.arange(0, 90, 3)
    table = pa.table({"id": ids, "loss": ids / 2, "more": ids})
    folder = Folder(str(tmp_path))
    files = write_table(folder, "scores.parquet", table, part_rows=part_rows)
    stored = StoredTable(folder, "scores.parquet", files, table if is_held else None)
    for some in ([], [0], [87], [3, 42, 45], ids.tolist()):
        found = stored.rows_of(np.array(some, np.int64), ["loss"])
        assert found.column("id").to_pylist() == some
        assert found.column("loss").to_pylist() == [number / 2 for number in some]
        assert found.column_names == ["id", "loss"]
    with pytest.raises(StorageError, match=r"scores\.parquet lacks 1 of 2 samples: a file was replaced"):
        stored.rows_of(np.array([3, 4]), ["loss"])
