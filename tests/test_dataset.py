"""The pruned data set in the form of its source: every column, every byte, nothing outside the folder, nothing overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes
from tests.s3 import s3_server
from unseen_ray.data.sources.folder import FolderSource
from unseen_ray.data.sources.parquet import ParquetSource
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import RunInUseError, StorageError
from unseen_ray.reporting import dataset as packing
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import held

COUNT, CLASSES = 40, 4
FIELDS = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local", "log_to": "none"}


def prune(source: object, out: Path | str) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(source=source, out=out, **FIELDS))


def images() -> list[bytes]:
    return [png_bytes(pixels) for pixels in class_pixels(np.arange(COUNT) % CLASSES, 8)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files of two row groups, one in a folder below, with a column of the user's own and class names."""
    data = images()
    for name, start in (("a.parquet", 0), ("more/b.parquet", COUNT // 2)):
        rows = range(start, start + COUNT // 2)
        table = pa.table(
            {
                "image": [{"bytes": data[row], "path": f"{row}.png"} for row in rows],
                "label": [row % CLASSES for row in rows],
                "caption": [f"caption {row}" for row in rows],
            }
        ).replace_schema_metadata({b"class_names": b'["ant", "bee", "cat", "dog"]'})
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "data" / name, row_group_size=7)
    return tmp_path / "data"


def pad(folder: Path) -> None:
    """Add a column that makes the files too large for all of their bytes to be looked at."""
    rng = np.random.default_rng(0)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(
            table.append_column("pad", pa.array([rng.bytes(40_000) for _ in range(len(table))])), path, row_group_size=7
        )


def break_images(path: Path) -> None:
    """Zero the head of a page of images, in the third row group: the labels and the footer stay whole."""
    place = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)


def test_parquet_keeps_its_files_columns_and_metadata(tmp_path: Path, shards: Path) -> None:
    result = prune(str(shards), tmp_path / "run")
    assert ur.export(result, tmp_path / "pruned") == COUNT // 2
    whole = pa.concat_tables([pq.read_table(shards / "a.parquet"), pq.read_table(shards / "more" / "b.parquet")])
    kept = pa.concat_tables([pq.read_table(tmp_path / "pruned" / name) for name in ("a.parquet", "more/b.parquet")])
    assert kept == whole.take(pa.array(result.coreset.ids))
    assert kept.schema.metadata == whole.schema.metadata
    info = open_source(source_ref(str(tmp_path / "pruned"))).info
    assert (len(info), info.class_names) == (COUNT // 2, ("ant", "bee", "cat", "dog"))


def test_images_that_a_row_only_names_are_written_into_it(tmp_path: Path) -> None:
    data = images()
    (tmp_path / "data").mkdir()
    for row, image in enumerate(data):
        (tmp_path / "data" / f"{row}.png").write_bytes(image)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": f"{row}.png"} for row in range(COUNT)], kind)
    labels = [row % CLASSES for row in range(COUNT)]
    pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "data" / "names.parquet")
    result = prune(str(tmp_path / "data" / "names.parquet"), tmp_path / "run")
    ur.export(result, tmp_path / "pruned")
    kept = pq.read_table(tmp_path / "pruned" / "names.parquet").column("image").to_pylist()
    assert [row["bytes"] for row in kept] == [data[number] for number in result.coreset.ids]


def test_a_tree_of_images_keeps_its_files(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(per_class=10, classes=("cat", "dog"), size_px=10)
    result = prune(str(root), tmp_path / "run")
    ur.export(result, f"{tmp_path / 'pruned'}/")
    written = {str(path.relative_to(tmp_path / "pruned")) for path in (tmp_path / "pruned").rglob("*.*")}
    assert written == set(pq.read_table(tmp_path / "run" / "coreset.parquet").column("key").to_pylist())
    assert all((tmp_path / "pruned" / key).read_bytes() == (root / key).read_bytes() for key in written)


def test_a_source_of_arrays_becomes_parquet(tmp_path: Path) -> None:
    source = {"use": "digits", "limit": 200}
    result = prune(source, tmp_path / "run")
    ur.export(result, tmp_path / "pruned")
    before, after = open_source(source_ref(source)), open_source(source_ref(str(tmp_path / "pruned")))
    assert after.info.labels_N.tolist() == before.info.labels_N[result.coreset.ids].tolist()
    assert after.info.class_names == before.info.class_names
    again = prune(str(tmp_path / "pruned"), tmp_path / "again")
    assert len(again.coreset) == 50


def test_from_s3_to_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    with s3_server(monkeypatch):
        for name in ("a.parquet", "more/b.parquet"):
            Folder("s3://runs/packing/data").write(name, (shards / name).read_bytes())
        result = prune("s3://runs/packing/data", "s3://runs/packing/run")
        assert ur.export(result, "s3://runs/packing/pruned/") == COUNT // 2
        assert len(open_source(source_ref("s3://runs/packing/pruned")).info) == COUNT // 2
        with pytest.raises(ur.ConfigError, match=r"s3://runs/packing/pruned/ holds a\.parquet, more"):
            ur.export(result, "s3://runs/packing/pruned/")


def test_nothing_is_overwritten_and_no_source_changed(tmp_path: Path, shards: Path) -> None:
    result = prune(str(shards), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place, message in {
        "full": "holds file",
        "file": "is a file",
        "data/inner": "lies in the source",
        "data/a.parquet": "is part of the source",
        "data/new.parquet": "is part of the source",
        "run/coreset.parquet": "is a file of the run itself",
        "run/../run/manifest.json.parquet/../coreset.parquet": "is a file of the run itself",
    }.items():
        with pytest.raises(ur.ConfigError, match=message):
            ur.export(result, tmp_path / place)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, shards: Path) -> None:
    result = prune(str(shards), tmp_path / "run")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ur.ConfigError, match=r"file/pruned cannot be written: .*not a directory"):
        ur.export(result, tmp_path / "file" / "pruned")


def test_a_key_that_leads_out_of_the_folder_is_refused(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(per_class=5, classes=("cat", "dog"), size_px=10)
    source = FolderSource(path=str(root))
    source._files[3] = "cat/../../outside.png"  # as an object store's key may be
    with pytest.raises(ur.DataError, match="leads out of the folder"):
        packing._copy_files(source, np.arange(10), Folder(str(tmp_path / "pruned")))
    assert not (tmp_path / "pruned").exists()


def test_a_choice_made_again_is_exported_too(tmp_path: Path) -> None:
    result = prune({"use": "digits", "limit": 100}, tmp_path / "run")
    again = ur.select(result, keep=0.2, out=tmp_path / "again")
    assert ur.export(again, tmp_path / "pruned") == 20


def test_a_source_that_names_its_path_alone_is_found_again(tmp_path: Path, shards: Path) -> None:
    result = prune({"path": str(shards)}, tmp_path / "run")
    assert ur.export(ur.load(result.path), tmp_path / "keys.txt") == len(result.coreset)
    assert ur.export(ur.load(result.path), tmp_path / "pruned") == len(result.coreset)
    assert "Images are not shown" not in Path(ur.report(ur.load(result.path))).read_text()


def test_a_source_that_has_changed_is_refused(tmp_path: Path, shards: Path) -> None:
    result = prune(str(shards), tmp_path / "run")
    rows = pq.read_table(shards / "a.parquet")
    pq.write_table(
        rows.set_column(rows.schema.get_field_index("label"), "label", [[0] * rows.num_rows]), shards / "a.parquet"
    )
    with pytest.raises(ur.DataError, match="has changed since the run"):
        ur.export(result, tmp_path / "pruned")
    assert not list(tmp_path.glob("pruned*"))


def test_a_source_that_breaks_on_the_way_leaves_nothing(tmp_path: Path, shards: Path) -> None:
    pad(shards)
    result = prune(str(shards), tmp_path / "run")
    break_images(shards / "more" / "b.parquet")
    with pytest.raises(ur.DataError, match=r"b\.parquet of source .* is damaged"):
        ur.export(result, tmp_path / "pruned")
    assert not list(tmp_path.glob("pruned*"))


def test_a_failed_export_to_s3_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    pad(shards)
    result = prune(str(shards), tmp_path / "run")
    break_images(shards / "more" / "b.parquet")
    with s3_server(monkeypatch):
        with pytest.raises(ur.DataError, match="is damaged"):
            ur.export(result, "s3://runs/packing/broken/")
        assert Folder("s3://runs/packing/broken").names() == []


def test_a_copy_that_fails_ends_soon(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(per_class=200, classes=("cat", "dog"), size_px=10)
    result = prune(str(root), tmp_path / "run")
    source = packing.source_of(result.run)
    assert isinstance(source, FolderSource)
    written: list[str] = []

    class Full(Folder):
        def write(self, name: str, data: bytes) -> str:
            if len(written) >= 20:
                raise StorageError("no space left")
            written.append(name)
            return super().write(name, data)

    with pytest.raises(StorageError, match="no space left"):
        packing._copy_files(source, result.coreset.ids, Full(str(tmp_path / "pruned")))
    assert len(written) < 60  # of 200: what was begun by then


@pytest.mark.parametrize("link", [False, True], ids=["empty folder", "link to an empty folder"])
def test_an_empty_folder_is_filled(tmp_path: Path, shards: Path, link: bool) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    result = prune(str(shards), tmp_path / "run")
    ur.export(result, tmp_path / ("link" if link else "real"))
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["a.parquet", "more"]


def test_a_second_export_into_a_folder_is_refused(tmp_path: Path, shards: Path) -> None:
    result, to = prune(str(shards), tmp_path / "run"), tmp_path / "pruned"
    with held(Folder(str(to))) as first:
        with pytest.raises(RunInUseError, match=rf"{to} is held by process"):
            ur.export(result, to)
        first.folder.write(".01234567.tmp/half", b"of an export that is killed")
    ur.export(result, to)
    assert sorted(path.name for path in to.iterdir()) == ["a.parquet", "more"]


def test_a_class_that_keeps_nothing_keeps_its_number(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(per_class=10, classes=("ant", "bee", "cat"), size_px=10)
    fields = {**FIELDS, "policy": "tests.plugs:last_labels", "keep": 1 / 3}
    result = ur.prune(ur.PruneConfig(source=str(root), out=tmp_path / "run", **fields))
    ur.export(result, tmp_path / "pruned")
    info = open_source(source_ref({"use": "folder", "path": str(tmp_path / "pruned")})).info
    assert info.class_names == ("ant", "bee", "cat")
    assert set(info.labels_N.tolist()) == {2}


@pytest.mark.parametrize(
    ("source", "to", "covered"),
    [
        ("data", "data/pruned", True),
        ("data/train", "data/pruned", False),
        ("data/train-*.parquet", "data/pruned", False),
        ("data/*/part.parquet", "data/pruned", True),
        ("s3://bucket/data", "s3://bucket/data/pruned", True),
        ("s3://bucket/data", "s3://bucket/database", False),
        ("link", "data/pruned", True),
    ],
)
def test_what_a_source_may_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, to: str, covered: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert packing.covers(source, to) is covered


def test_rows_come_some_thousand_at_a_time(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "one.png").write_bytes(images()[0])
    rows = pa.array([{"bytes": None, "path": "one.png"}] * 5000, kind)
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 2500}), tmp_path / "data.parquet")
    source = ParquetSource(path=str(tmp_path / "data.parquet"))
    assert [table.num_rows for _, table in source.tables(range(5000))] == [2048, 2048, 904]
