"""Tables above a number of rows are folders of parts, and are chosen from by passes: the same choice, read by all that read runs."""

from __future__ import annotations

import json
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
from unseen_ray.core.arrays import IntArray
from unseen_ray.errors import StorageError
from unseen_ray.pruning import selection_by_passes as streamed
from unseen_ray.pruning.reselect_long import in_step
from unseen_ray.storage import tables as parts
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import LongTable, TableWriter, read_table, write_table

LINE = [
    "prune",
    "--source",
    "digits",
    "--source.limit",
    "300",
    "--keep",
    "0.6",
    "--schedule",
    "[0.4,0.6]",
    "--holdout",
    "0.2",
]
LINE += ["--recipe.epochs", "2", "--recipe.min_steps", "0", "--executor", "local", "--guard", "label_margin"]
CHOICES: list[list[str]] = [
    [],
    ["--score", "margin", "--policy", "class_balanced"],
    ["--policy", "{use: ccs, cut: 0.1}"],
    ["--policy", "beta"],
    ["--keep", "0.95", "--policy", "moderate"],  # more than there is without suspects
    ["--guard", "none"],
    ["--combine", "rank_mean"],
]


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_ROWS", 90)
    monkeypatch.setattr(parts, "PART_ROWS", 32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same run with tables in one file, and in parts."""
    root = tmp_path_factory.mktemp("runs")
    main([*LINE, "--out", str(root / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST_ROWS", 90)
        patch.setattr(parts, "PART_ROWS", 32)
        main([*LINE, "--out", str(root / "long")])
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
        assert named == [f"{name}/part-{number:05d}.parquet" for number in range(len(sizes))]
        assert pq.read_table(path).equals(pq.read_table(runs[0] / name))
        assert ds.dataset(path).count_rows() == rows
    assert not list(runs[1].glob("stage-*/coreset.parquet"))


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_select_chooses_the_same_from_parts(
    choice: list[str], runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "long"):
        run = runs[name == "long"]
        with pytest.MonkeyPatch.context() as patch:
            if name == "whole":
                patch.setattr(parts, "MOST_ROWS", 10**9)
            main(["select", str(run), "--keep", "0.5", *choice, "--out", str(tmp_path / name)])
    whole, long = ur.load(tmp_path / "whole"), ur.load(tmp_path / "long")
    assert pq.read_table(tmp_path / "long" / "coreset.parquet").equals(
        pq.read_table(tmp_path / "whole" / "coreset.parquet")
    )
    assert long.scores.equals(whole.scores)
    assert (tmp_path / "long" / "coreset.parquet").is_dir()
    again = ur.select(long, keep=0.2, out=tmp_path / "again")  # of a choice, and short enough for one file
    assert (tmp_path / "again" / "coreset.parquet").is_file()
    assert again.coreset.ids.tolist() == ur.select(whole, keep=0.2, out=tmp_path / "again-whole").coreset.ids.tolist()


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("ending", [".npy", ".txt", ".csv", ".parquet", ""])
def test_export_writes_the_same(ending: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run in runs:
        main(["export", str(run), "--to", str(tmp_path / f"{run.name}{ending}")])
    written = [tmp_path / f"{run.name}{ending}" for run in runs]
    if ending:
        assert written[0].read_bytes() == written[1].read_bytes()
    else:
        assert pq.read_table(written[0]).equals(pq.read_table(written[1]))


@pytest.mark.usefixtures("short_files")
def test_reports_and_subsets_read_parts(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for run in runs:
        capsys.readouterr()
        main(["report", str(run), "--json"])
        told.append(json.loads(capsys.readouterr().out))
        assert len(ur.torch_subset(ur.load(run))) == 144
    assert told[0]["importance"] == told[1]["importance"] and told[0]["suspects"] == told[1]["suspects"]


@pytest.mark.usefixtures("short_files")
def test_the_runs_own_parts_are_not_exported_over(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("coreset.parquet", "coreset.parquet/part-00001.parquet"):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(runs[1]), "--to", str(runs[1] / name)])
        assert ended.value.code == 2
        assert "is a file of the run itself. Name another one" in capsys.readouterr().err


@pytest.mark.usefixtures("short_files")
def test_a_damaged_part_is_found_and_mended(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    part = runs[1] / "stage-00" / "scores.parquet" / "part-00003.parquet"
    before = part.read_bytes()
    part.write_bytes(before[:50] + bytes([before[50] ^ 1]) + before[51:])
    for out in ("damaged", "damaged-too"):
        with pytest.raises(SystemExit):
            main(["select", str(runs[1]), "--keep", "0.5", "--out", str(runs[1].parent / out)])
        assert "part-00003.parquet is damaged: it is not what was written" in capsys.readouterr().err
        assert not (runs[1].parent / out).exists()
    main([*LINE, "--out", str(runs[1])])
    assert part.read_bytes() == before
    part.unlink()
    with pytest.raises(StorageError, match=r"part-00003\.parquet is missing\. The run.s `unseen-ray prune` line"):
        ur.select(ur.load(runs[1]), keep=0.5, out=runs[1].parent / "missing")
    main([*LINE, "--out", str(runs[1])])
    assert part.read_bytes() == before


@pytest.mark.usefixtures("short_files")
def test_parts_of_a_run_are_cleared_with_it(tmp_path: Path) -> None:
    main([*LINE, "--out", str(tmp_path / "run")])
    ids = ur.load(tmp_path / "run").coreset.ids.tolist()
    main([*LINE, "--out", str(tmp_path / "run"), "--fresh"])
    assert ur.load(tmp_path / "run").coreset.ids.tolist() == ids


def test_a_long_table_is_never_sorted_as_a_whole(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_files: None
) -> None:
    """What reads a table in one piece is not called by `select`."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the whole table was read")

    monkeypatch.setattr(Folder, "read_table", refuse)
    out = ur.select(ur.load(runs[1]), keep=0.5, out=tmp_path / "long").path
    assert ds.dataset(f"{out}/coreset.parquet").count_rows() == 120


def test_a_policy_that_cannot_stream_still_chooses_in_memory(
    runs: tuple[Path, Path], tmp_path: Path, short_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = ur.load(runs[1]).config
    assert streamed.is_streamed(config, 91) and not streamed.is_streamed(config, 90)
    found = [
        ur.select(ur.load(run), keep=0.5, policy="tests.test_long_tables:middling", out=tmp_path / run.name).coreset.ids
        for run in runs
    ]
    assert found[0].tolist() == found[1].tolist()
    assert "policy tests.test_long_tables:middling needs all candidates at once" in caplog.text
    assert "All 240 candidates are held in memory for it." in caplog.text


def middling(
    scores_M: np.ndarray, labels_M: IntArray, ids_M: IntArray, budget: int, *, kept_C: IntArray, seed: int
) -> np.ndarray:
    """A policy of a user's own."""
    return np.argsort(np.abs(scores_M - np.median(scores_M)), kind="stable")[:budget]


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("rows", [0, 1, 90, 91, 96, 97, 250])
@pytest.mark.parametrize("piece", [1, 13, 400])
def test_what_is_written_by_pieces_is_read_back(rows: int, piece: int, tmp_path: Path) -> None:
    table = pa.table({"id": np.arange(rows), "x": np.arange(rows, dtype=np.float32)})
    folder = Folder(str(tmp_path / "run"))
    writer = TableWriter(folder, "scores.parquet", rows)
    for start in range(0, rows, piece):
        writer.add(table.slice(start, piece))
    if not rows:
        writer.add(table)
    files = writer.close()
    assert len(files) == (1 if rows <= 90 else -(-rows // 32))
    assert read_table(folder, "scores.parquet", files).equals(table)
    long = LongTable(folder, "scores.parquet", files).verified()
    assert long.num_rows == rows and long.schema.names == ["id", "x"]
    assert [row for batch in long.batches(["id"]) for row in batch.column("id").to_pylist()] == list(range(rows))


@pytest.mark.usefixtures("short_files")
def test_parts_of_an_interrupted_start_do_not_stay(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_table("t.parquet", pa.table({"id": np.arange(5)}))  # by a version that knew no parts
    write_table(folder, "t.parquet", pa.table({"id": np.arange(300)}))
    files = write_table(folder, "t.parquet", pa.table({"id": np.arange(100)}))
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 100
    assert len(files) == 4


def test_tables_of_other_pieces_go_in_step() -> None:
    table = pa.table({"id": np.arange(20)})
    first, second = [table.slice(0, 7), table.slice(7, 0), table.slice(7, 13)], [table.slice(0, 2), table.slice(2, 18)]
    pairs = list(in_step(first, second))
    assert all(one.equals(other) for one, other in pairs)
    assert pa.concat_tables([one for one, _ in pairs]).equals(table)
    with pytest.raises(StorageError, match="the keys end before the scores"):
        list(in_step(first, second[:1]))
