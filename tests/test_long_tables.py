"""Tables above a number of rows are folders of parts, and are chosen from by passes: the same choice, read by all that read runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from unseen_ray.cli import main
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits
from unseen_ray.core.arrays import IntArray
from unseen_ray.errors import StorageError
from unseen_ray.runs.manifest import read_manifest, write_manifest
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.row_streams import in_step
from unseen_ray.storage.tables import StoredTable, TableWriter, read_table, write_table

LONG = Limits(rows_in_memory=90, rows_of_a_part=32)
CHOICES: list[dict[str, Any]] = [
    {},
    {"score": "margin", "policy": "class_balanced"},
    {"policy": {"use": "ccs", "cut": 0.1}},
    {"policy": "beta"},
    {"policy": {"use": "class_quota", "by": "recall", "inside": "random"}},
    {"keep": 0.95, "policy": "moderate"},  # more than there is without suspects
    {"guard": "none"},
    {"combine": "rank_mean"},
    {"combine": "rank_mean", "policy": "class_balanced", "guard": "unlikely_label"},
    {"guard": {"use": "label_margin", "cut": 0.2}},
]


def config_of(out: Path) -> ur.PruneConfig:
    return ur.PruneConfig(
        source={"use": "digits", "limit": 300},
        keep=0.6,
        schedule=[0.4, 0.6],
        holdout=0.2,
        recipe={"epochs": 2, "min_steps": 0},
        executor="local",
        guard="label_margin",
        out=str(out),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same run with tables in one file, and in parts."""
    root = tmp_path_factory.mktemp("runs")
    ur.prune(config_of(root / "whole"))
    ur.prune(config_of(root / "long"), limits=LONG)
    yield root / "whole", root / "long"


def files_of(run: Path) -> dict[str, str]:
    files: dict[str, str] = json.loads((run / "manifest.json").read_text())["files"]
    return files


def test_a_long_run_keeps_the_same_in_parts_that_the_manifest_names(runs: tuple[Path, Path]) -> None:
    whole, long = (ur.load(run) for run in runs)
    assert long.coreset.ids.tolist() == whole.coreset.ids.tolist()
    assert long.coreset.stages.tolist() == whole.coreset.stages.tolist()
    assert long.scores.equals(whole.scores)
    for name, rows in (("coreset.parquet", 144), ("stage-00/scores.parquet", 240), ("stage-01/scores.parquet", 144)):
        path = runs[1] / name
        named = [file for file in files_of(runs[1]) if file.startswith(name)]
        assert sorted(str(p.relative_to(runs[1])) for p in path.iterdir()) == named
        sizes = [pq.read_metadata(runs[1] / file).num_rows for file in named]
        if name == "stage-01/scores.parquet":  # what earlier stages kept leaves gaps in the ranges of ids
            assert len(sizes) == 8 and max(sizes) <= 32
        else:
            assert sizes[:-1] == [32] * (len(sizes) - 1)
        marked = "-marked" if name == "stage-00/scores.parquet" else ""  # with suspects
        assert named == [f"{name}/part-{number:05d}{marked}.parquet" for number in range(len(sizes))]
        assert pq.read_table(path).equals(pq.read_table(runs[0] / name))
        assert ds.dataset(path).count_rows() == rows
    assert not list(runs[1].glob("stage-*/coreset.parquet"))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_select_chooses_the_same_from_parts(choice: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path) -> None:
    asked = {"keep": 0.5, **choice}
    ur.select(runs[0], **asked, out=tmp_path / "whole")
    ur.select(runs[1], **asked, out=tmp_path / "long", limits=LONG)
    whole, long = ur.load(tmp_path / "whole"), ur.load(tmp_path / "long")
    assert pq.read_table(tmp_path / "long" / "coreset.parquet").equals(
        pq.read_table(tmp_path / "whole" / "coreset.parquet")
    )
    assert long.scores.equals(whole.scores)
    assert (tmp_path / "long" / "coreset.parquet").is_dir()
    again = ur.select(long, keep=0.2, out=tmp_path / "again", limits=LONG)  # of a choice, and short enough for one file
    assert (tmp_path / "again" / "coreset.parquet").is_file()
    assert again.coreset.ids.tolist() == ur.select(whole, keep=0.2, out=tmp_path / "again-whole").coreset.ids.tolist()


@pytest.mark.parametrize("ending", [".npy", ".txt", ".csv", ".parquet", ""])
def test_export_writes_the_same(ending: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run in runs:
        main(["export", str(run), "--to", str(tmp_path / f"{run.name}{ending}")])
    written = [tmp_path / f"{run.name}{ending}" for run in runs]
    if ending:
        assert written[0].read_bytes() == written[1].read_bytes()
    else:
        assert pq.read_table(written[0]).equals(pq.read_table(written[1]))


def test_reports_and_subsets_read_parts(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for run in runs:
        capsys.readouterr()
        main(["report", str(run), "--json"])
        told.append(json.loads(capsys.readouterr().out))
        assert len(ur.torch_subset(ur.load(run))) == 144
    assert told[0]["importance"] == told[1]["importance"] and told[0]["suspects"] == told[1]["suspects"]


def test_the_runs_own_parts_are_not_exported_over(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("coreset.parquet", "coreset.parquet/part-00001.parquet"):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(runs[1]), "--to", str(runs[1] / name)])
        assert ended.value.code == 2
        assert "is a file of the run itself. Name another one" in capsys.readouterr().err


def test_a_damaged_part_is_found_and_mended(runs: tuple[Path, Path], tmp_path: Path) -> None:
    part = runs[1] / "stage-00" / "scores.parquet" / "part-00003-marked.parquet"
    before = part.read_bytes()
    part.write_bytes(before[:50] + bytes([before[50] ^ 1]) + before[51:])
    for limits in (LONG, DEFAULT_LIMITS):
        with pytest.raises(StorageError, match=r"part-00003-marked\.parquet is damaged: it is not what was written"):
            ur.select(runs[1], keep=0.5, out=tmp_path / "damaged", limits=limits)
        assert not (tmp_path / "damaged").exists()
    ur.prune(config_of(runs[1]), limits=LONG)
    assert part.read_bytes() == before
    part.unlink()
    with pytest.raises(
        StorageError, match=r"part-00003-marked\.parquet is missing\. Run the same `unseen-ray prune` line"
    ):
        ur.select(ur.load(runs[1]), keep=0.5, out=tmp_path / "missing", limits=LONG)
    ur.prune(config_of(runs[1]), limits=LONG)
    assert part.read_bytes() == before


def test_parts_of_a_run_are_cleared_with_it(tmp_path: Path) -> None:
    ids = ur.prune(config_of(tmp_path / "run"), limits=LONG).coreset.ids.tolist()
    again = ur.prune(config_of(tmp_path / "run"), fresh=True, limits=LONG)
    assert again.coreset.ids.tolist() == ids and (tmp_path / "run" / "coreset.parquet").is_dir()


def test_a_long_table_is_never_sorted_as_a_whole(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads a table in one piece is not called by `select`."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the whole table was read")

    monkeypatch.setattr(Folder, "read_table", refuse)
    out = ur.select(ur.load(runs[1]), keep=0.5, out=tmp_path / "long", limits=LONG).path
    assert ds.dataset(f"{out}/coreset.parquet").count_rows() == 120


def test_a_policy_that_cannot_stream_still_chooses_in_memory(
    runs: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        ur.select(
            ur.load(run), keep=0.5, policy="tests.test_long_tables:middling", out=tmp_path / run.name, limits=limits
        ).coreset.ids
        for run, limits in zip(runs, (DEFAULT_LIMITS, LONG), strict=True)
    ]
    assert found[0].tolist() == found[1].tolist()
    assert "policy tests.test_long_tables:middling needs all candidates at once" in caplog.text
    assert "All 240 candidates are held in memory for it." in caplog.text


def middling(
    scores_M: np.ndarray, labels_M: IntArray, ids_M: IntArray, budget: int, *, kept_C: IntArray, seed: int
) -> np.ndarray:
    """A policy of a user's own."""
    return np.argsort(np.abs(scores_M - np.median(scores_M)), kind="stable")[:budget]


@pytest.mark.parametrize("rows", [0, 1, 90, 91, 96, 97, 250])
@pytest.mark.parametrize("piece", [1, 13, 400])
def test_what_is_written_by_pieces_is_read_back(rows: int, piece: int, tmp_path: Path) -> None:
    table = pa.table({"id": np.arange(rows), "x": np.arange(rows, dtype=np.float32)})
    folder = Folder(str(tmp_path / "run"))
    writer = TableWriter(folder, "scores.parquet", rows, part_rows=LONG.part_rows(rows))
    for start in range(0, rows, piece):
        writer.add(table.slice(start, piece))
    if not rows:
        writer.add(table)
    files = writer.close()
    assert len(files) == (1 if rows <= 90 else -(-rows // 32))
    assert read_table(folder, "scores.parquet", files).equals(table)
    long = StoredTable(folder, "scores.parquet", files).verified()
    assert long.num_rows == rows and long.schema.names == ["id", "x"]
    assert [row for batch in long.batches(["id"]) for row in batch.column("id").to_pylist()] == list(range(rows))


def test_parts_of_an_interrupted_start_do_not_stay(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_table("t.parquet", pa.table({"id": np.arange(5)}))  # by a version that knew no parts
    write_table(folder, "t.parquet", pa.table({"id": np.arange(300)}), part_rows=32)
    files = write_table(folder, "t.parquet", pa.table({"id": np.arange(100)}), part_rows=32)
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 100
    assert len(files) == 4


def test_tables_of_other_pieces_go_in_step() -> None:
    table = pa.table({"id": np.arange(20)})
    first, second = [table.slice(0, 7), table.slice(7, 0), table.slice(7, 13)], [table.slice(0, 2), table.slice(2, 18)]
    pairs = list(in_step(first, second))
    assert all(one.equals(other) for one, other in pairs)
    assert pa.concat_tables([one for one, _ in pairs]).equals(table)
    others = table.set_column(0, "id", pa.array(np.append(np.arange(19), 99)))
    for longer, shorter in ((first, second[:1]), (second[:1], first), (first, [others])):
        with pytest.raises(StorageError, match="keys and the scores of the run name different samples"):
            list(in_step(longer, shorter))


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, LONG], ids=["in memory", "by passes"])
@pytest.mark.parametrize("score", ["entropy", "margin"])
def test_keys_of_other_samples_are_found(limits: Limits, score: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    keys = pq.read_table(run / "keys.parquet")
    ids = keys.column("id").to_numpy() + 1
    folder, manifest = Folder(str(run)), read_manifest(Folder(str(run)))
    assert manifest is not None
    digest = folder.write_table("keys.parquet", keys.set_column(0, "id", pa.array(ids)))
    write_manifest(folder, manifest.changed(files={**manifest.files, "keys.parquet": digest}))
    with pytest.raises(
        StorageError, match=r"keys and the scores of the run name different samples|keys\.parquet is damaged or forged"
    ):
        ur.select(run, keep=0.5, score=score, out=tmp_path / "new", limits=limits)
