"""Probabilities in files of several kinds are read in blocks of rows, and what is chosen by them does not depend on where blocks end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from unseen_ray.config.limits import Limits
from unseen_ray.core import guard
from unseen_ray.core.arrays import RowBlocks
from unseen_ray.data import matrices
from unseen_ray.errors import StorageError

COUNT, CLASSES = 90, 4
LABELS = np.random.default_rng(9).integers(0, CLASSES, COUNT)


def distributions(seed: int = 0, count: int = COUNT, classes: int = CLASSES) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(count, classes))
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def as_lists(probs: np.ndarray, kind: pa.DataType) -> pa.Table:
    """A column of lists; a row of NaN is null."""
    rows = [None if np.isnan(row).all() else row.tolist() for row in probs]
    return pa.table({"probs": pa.array(rows, kind)})


def write_forms(folder: Path, probs: np.ndarray) -> dict[str, str]:
    """The same array in every form; the paths."""
    folder.mkdir()
    np.save(folder / "plain.npy", probs)
    np.save(folder / "fortran.npy", np.asfortranarray(probs))
    pq.write_table(as_lists(probs, pa.list_(pa.float32())), folder / "lists.parquet", row_group_size=7)
    pq.write_table(as_lists(probs, pa.list_(pa.float32(), CLASSES)), folder / "fixed.parquet", row_group_size=40)
    columns = {f"class {c}": pa.array(probs[:, c], from_pandas=True) for c in range(CLASSES)}
    pq.write_table(pa.table(columns), folder / "columns.parquet", row_group_size=11)
    for name, write in (
        ("npy parts", lambda path, rows: np.save(f"{path}.npy", rows)),
        ("parquet parts", lambda path, rows: pq.write_table(as_lists(rows, pa.list_(pa.float32())), f"{path}.parquet")),
    ):
        (folder / name).mkdir()
        for number, rows in enumerate(np.array_split(probs, 3)):
            write(folder / name / f"part-{number}", rows)
    return {path.stem if path.is_file() else path.name: str(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("block", [1, 100, 2**25])
def test_all_forms_give_the_same_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    probs = distributions()
    probs[[0, 13, 89]] = np.nan
    monkeypatch.setattr(matrices, "_BLOCK", block)
    forms = write_forms(tmp_path / "forms", probs)
    assert len(forms) == 7
    for form, path in forms.items():
        matrix = matrices.matrix_of(path, form)
        assert matrix.shape == probs.shape
        for _ in range(2):
            assert np.array_equal(matrix.whole(), probs, equal_nan=True), form
        if block < 2**25:
            assert sum(1 for _ in matrix) > 3, form


def test_scores_do_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [distributions(seed) for seed in range(3)]
    for number, probs in enumerate(given):
        probs[np.arange(COUNT) % 3 == number] = np.nan
    forms = write_forms(tmp_path / "first", given[0])
    np.save(tmp_path / "labels.npy", LABELS)
    tables = []
    for number, block in enumerate((2**25, 200, 48)):
        monkeypatch.setattr(matrices, "_BLOCK", block)
        first = list(forms.values())[number]
        for rule in ("mean", "rank_mean", "mean_prob"):
            out = tmp_path / f"{block}-{rule}"
            fields = {"combine": rule, "guard": "prune_by_noise_rate", "also_score": ["disagreement", "margin"]}
            ur.score([first, *given[1:]], str(tmp_path / "labels.npy"), out=out, **fields)
            for more in ({}, {"guard": "confident_learning"}, {"combine": "mean_prob"}, {"combine": "rank_mean"}):
                name = "-".join(map(str, more.values()))
                chosen = ur.select(out, keep=0.5, policy="top", out=tmp_path / f"{block}-{rule}-{name}", **more)
                tables.append((f"{rule} {more}", chosen.scores, chosen.coreset.ids.tolist()))
    for name in {name for name, *_ in tables}:
        same = [(table, ids) for other, table, ids in tables if other == name]
        assert len(same) == 3 and all(table.equals(same[0][0]) and ids == same[0][1] for table, ids in same), name


def test_probabilities_need_not_be_stored(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", LABELS)
    kept = {}
    for stored in (True, False):
        out = tmp_path / f"stored-{stored}"
        ur.score(distributions(), str(tmp_path / "labels.npy"), out=out, guard="confident_learning", save_probs=stored)
        assert (out / "stage-00" / "probs.npy").exists() == stored
        assert not list(out.rglob("votes/*.npy")), "one copy is enough"
        kept[stored] = ur.select(out, keep=0.4, out=tmp_path / f"kept-{stored}").coreset.ids.tolist()
    assert kept[True] == kept[False]
    stored = np.load(tmp_path / "stored-True" / "stage-00" / "probs.npy")
    np.testing.assert_allclose(stored, distributions(), rtol=1e-6)
    with pytest.raises(ur.ConfigError, match=r"combine=mean_prob needs the mean probabilities, which .* does not hold"):
        ur.select(tmp_path / "stored-False", keep=0.4, combine="mean_prob", out=tmp_path / "no")
    path = tmp_path / "stored-True" / "stage-00" / "probs.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match=r"probs\.npy is damaged"):
        ur.select(tmp_path / "stored-True", keep=0.4, combine="mean_prob", out=tmp_path / "no")


@pytest.mark.parametrize("classes", [3, 40])
def test_guards_suspect_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    rng = np.random.default_rng(classes)
    probs = np.round(distributions(1, 2000, classes), 2)  # with ties
    labels = np.where(rng.random(2000) < 0.6, probs.argmax(axis=1), rng.integers(0, classes, 2000))
    fields = {"labels_M": labels, "ids_M": np.arange(2000), "seed": 4}
    whole = guard.prune_by_noise_rate(probs_MC=probs, **fields)
    joint = guard.confident_learning(probs_MC=probs, labels_M=labels)
    assert whole.sum() > 50 and joint.sum() > 50
    monkeypatch.setattr(guard, "_PAIRS", 100)
    for rows in (1, 77, 1999):
        blocks = RowBlocks(probs.shape, lambda rows=rows: (probs[at : at + rows] for at in range(0, 2000, rows)))
        assert np.array_equal(guard.prune_by_noise_rate(probs_MC=blocks, **fields), whole)
        assert np.array_equal(guard.confident_learning(probs_MC=blocks, labels_M=labels), joint)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ur.DataError, match=message):
        matrices.matrix_of(str(path), str(path)).whole()


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none.npy", r"none\.npy does not exist\. Give a \.npy or a \.parquet file, or a folder")
    refuse(tmp_path / "none.parquet", r"none\.parquet does not exist")
    (tmp_path / "text.parquet").write_bytes(b"not Parquet")
    refuse(tmp_path / "text.parquet", "is not a Parquet file of numbers")
    np.save(tmp_path / "cut.npy", distributions())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-4])
    refuse(tmp_path / "cut.npy", "does not hold the .* values of float32 that its header states")
    pq.write_table(pa.table({"probs": [[0.5, 0.5], [1.0]]}), tmp_path / "ragged.parquet")
    refuse(tmp_path / "ragged.parquet", "has a row of 1 probabilities, but its first has 2")
    pq.write_table(pa.table({"id": [1, 2], "probs": [[0.5, 0.5], [1.0, 0.0]]}), tmp_path / "more.parquet")
    refuse(tmp_path / "more.parquet", "has the columns id, probs. Give probabilities alone: .* without id")
    pq.write_table(pa.table({"label": [0, 1], "a": [0.5, 1.0], "b": [0.5, 0.0]}), tmp_path / "labelled.parquet")
    refuse(tmp_path / "labelled.parquet", "has the columns label, a, b. Give probabilities alone: .* without label")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "words.parquet")
    refuse(tmp_path / "words.parquet", r"words\.parquet has the columns a, b\. Give probabilities alone")
    pq.write_table(pa.table({"probs": [[1, 0]]}), tmp_path / "whole.parquet")
    refuse(tmp_path / "whole.parquet", r"holds int64 of shape \(1, 2\)")


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    refuse(folder, "is a folder that holds nothing. Give a folder of .npy files alone")
    np.save(folder / "b.npy", distributions())
    np.save(folder / "a.npy", distributions(1, classes=5))
    refuse(folder, r"b\.npy has 4 columns, but a\.npy has 5\. Give all parts the same classes")
    (folder / "notes.txt").write_text("what is this")
    refuse(folder, r"is a folder that holds notes\.txt")
    (folder / "notes.txt").unlink()
    pq.write_table(pa.table({"probs": [[0.5, 0.5]]}), folder / "c.parquet")
    refuse(folder, r"is a folder that holds \.npy and \.parquet")


def test_parts_whose_numbers_are_not_in_the_order_of_their_names_are_refused(tmp_path: Path) -> None:
    probs = distributions()
    for name, width in (("bare", 1), ("padded", 2)):
        (tmp_path / name).mkdir()
        for number, rows in enumerate(np.array_split(probs, 11)):
            np.save(tmp_path / name / f"part-{number:0{width}}-of-11.npy", rows)
    refuse(tmp_path / "bare", r"part-10-of-11\.npy comes before part-2-of-11\.npy by name, but after it by number")
    assert np.array_equal(matrices.matrix_of(str(tmp_path / "padded"), "").whole(), probs)


@pytest.mark.parametrize("rule", ["mean", "rank_mean", "mean_prob"])
def test_a_merge_in_pieces_is_the_same(tmp_path: Path, rule: str) -> None:
    fields = {"source": {"use": "digits", "limit": 300}, "keep": 0.5, "folds": 3, "policy": "top", "executor": "local"}
    fields |= {"fit": "tests.plugs:centroids", "combine": rule, "guard": "prune_by_noise_rate", "save_probs": True}
    found = []
    for name, numbers in (("whole", 2**25), ("pieces", 37 * 10 * 2)):
        config = ur.PruneConfig(**fields, also_score=["disagreement", "loss"], out=tmp_path / name)
        result = ur.prune(config, limits=Limits(probs_merged_at_once=numbers))
        probs = (tmp_path / name / "stage-00" / "probs.npy").read_bytes()
        found.append((result.scores, result.coreset.ids.tolist(), probs))
    assert found[0][0].equals(found[1][0])
    assert found[0][1:] == found[1][1:]
    assert "suspect" in found[0][0].column_names


def test_a_part_may_have_no_rows_or_none_that_was_scored(tmp_path: Path) -> None:
    probs = distributions()
    probs[30:60] = np.nan
    for name, save in (
        ("npy", lambda path, rows: np.save(f"{path}.npy", rows)),
        ("parquet", lambda path, rows: pq.write_table(as_lists(rows, pa.list_(pa.float32())), f"{path}.parquet")),
    ):
        (tmp_path / name).mkdir()
        for number, rows in enumerate((probs[:0], probs[:30], probs[30:60], probs[60:])):
            save(tmp_path / name / f"part-{number}", rows)
        assert np.array_equal(matrices.matrix_of(str(tmp_path / name), name).whole(), probs, equal_nan=True)
    pq.write_table(as_lists(probs[30:60], pa.list_(pa.float32())), tmp_path / "null.parquet")
    refuse(tmp_path / "null.parquet", r"null\.parquet holds float32 of shape \(30, 0\)")
