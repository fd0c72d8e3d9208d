"""Files of a run folder: whole or absent, and damage is told by its path."""

from __future__ import annotations

import io
import pickle
import re
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.storage.filesystem import Folder, filesystem_of, is_uri, sha256_of
from unseen_ray.storage.retry import SilentStorageError, is_of_storage
from unseen_ray.storage.tables import with_parquet


def folder(root: Path) -> Folder:
    return Folder(str(root))


def files_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def array_bytes(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_what_is_written_is_read_back_with_its_digest(tmp_path: Path) -> None:
    runs = folder(tmp_path / "runs" / "first")
    assert runs.write("stage-00/votes/00.bin", b"votes") == sha256_of(b"votes")
    assert runs.read("stage-00/votes/00.bin") == b"votes"
    assert runs.write("empty", b"") == sha256_of(b"")
    assert runs.read("empty") == b""


def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    here = folder(tmp_path)
    for content in (b"long first content", b"second", b""):
        here.write("a/b.json", content)
        assert here.read("a/b.json") == content
    assert files_under(tmp_path) == ["a/b.json"]


def test_a_write_that_fails_keeps_what_stood_there(tmp_path: Path) -> None:
    here = folder(tmp_path)
    here.write("taken/inside", b"stays")
    with pytest.raises(StorageError, match=r"taken cannot be written"):
        here.write("taken", b"new")
    assert files_under(tmp_path) == ["taken/inside"]
    assert here.read("taken/inside") == b"stays"


def test_a_file_in_the_way_of_a_folder_is_told_by_path(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(
        StorageError, match=r"out/manifest\.json cannot be written: .*\. Free space or repair the storage"
    ):
        folder(tmp_path / "out").write("manifest.json", b"{}")
    assert files_under(tmp_path) == ["out"]


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    assert folder(tmp_path).read("nosuch") is None
    assert folder(tmp_path / "nosuch").read("deep/nosuch") is None
    (tmp_path / "file").write_text("x")
    assert folder(tmp_path / "file").read("nosuch") is None


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(StorageError, match="inner cannot be read"):
        folder(tmp_path).read("inner")


def test_names_are_sorted_and_none_where_there_is_no_folder(tmp_path: Path) -> None:
    here = folder(tmp_path)
    for name in ("b", "a/inner", "c"):
        here.write(name, b"x")
    assert here.names() == ["a", "b", "c"]
    assert folder(tmp_path / "nosuch").names() == []
    with pytest.raises(ConfigError, match="cannot be read as a folder"):
        folder(tmp_path / "b").names()


@pytest.mark.parametrize(
    ("which", "few", "what"),
    [
        (resource.RLIMIT_FSIZE, 10, "Raise the limit of a file's size (`ulimit -f`), then run again"),
        (resource.RLIMIT_NOFILE, 3, "Raise the limit of open files (`ulimit -n`), then run again"),
    ],
)
def test_a_limit_of_the_process_is_told_as_one(tmp_path: Path, which: int, few: int, what: str) -> None:
    here, (soft, most) = folder(tmp_path), resource.getrlimit(which)
    here.write("a", b"x")
    resource.setrlimit(which, (few, most))
    try:
        with pytest.raises(StorageError, match=re.escape(what)):
            here.write("a", bytes(20))
    finally:
        resource.setrlimit(which, (soft, most))
    assert here.read("a") == b"x" and files_under(tmp_path) == ["a"]


def test_deleting_leaves_none_and_may_be_repeated(tmp_path: Path) -> None:
    here = folder(tmp_path)
    here.write("a", b"x")
    here.delete("a")
    here.delete("a")
    assert here.read("a") is None


def test_a_table_survives(tmp_path: Path) -> None:
    here = folder(tmp_path)
    table = pa.table({"id": pa.array([3, 5], pa.int64()), "key": ["a", "b"], "score": pa.array([0.5, 1], pa.float32())})
    table = table.replace_schema_metadata({"task": "digest"})
    digest = here.write_table("t.parquet", table)
    assert here.read_table("t.parquet").equals(table)
    assert here.read_table("t.parquet").schema.metadata == {b"task": b"digest"}
    assert digest == sha256_of((tmp_path / "t.parquet").read_bytes())


@pytest.mark.parametrize("damage", ["empty", "half", "tail", "middle", "text"])
def test_a_damaged_table_is_told_by_path(tmp_path: Path, damage: str) -> None:
    here = folder(tmp_path)
    here.write_table("t.parquet", pa.table({"id": np.arange(5000), "noise": np.random.default_rng(0).random(5000)}))
    whole = (tmp_path / "t.parquet").read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "half": whole[:middle],
        "tail": whole[:-1],
        "middle": whole[: middle - 500] + b"\xff" * 1000 + whole[middle + 500 :],
        "text": b"id,noise\n1,2\n",
    }[damage]
    (tmp_path / "t.parquet").write_bytes(damaged)
    with pytest.raises(StorageError, match=r"/t\.parquet is damaged: "):
        here.read_table("t.parquet")


def test_a_table_that_may_not_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    here = folder(tmp_path)
    here.write_table("t.parquet", pa.table({"id": np.arange(5)}))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(
            StorageError, match=r"/t\.parquet cannot be read: too many open files\. Raise the limit .*ulimit -n"
        ):
            with_parquet(here, "t.parquet", lambda file: file.num_row_groups, inline=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("error", "is_known"),
    [
        (OSError("Couldn't deserialize thrift: don't know what type"), False),
        (OSError("When reading information for key 'a': AWS Error ACCESS_DENIED during HeadObject"), True),
        (SilentStorageError("no answer within 120 s"), True),
    ],
)
def test_failures_of_storage_are_told_from_damage(error: OSError, is_known: bool) -> None:
    assert is_of_storage(error) is is_known


def test_missing_tables_and_arrays_are_told_by_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"/t\.parquet is missing"):
        folder(tmp_path).read_table("t.parquet")
    with pytest.raises(StorageError, match=r"/a\.npy is missing"):
        folder(tmp_path).read_array("a.npy")


def test_an_array_survives(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    digest = folder(tmp_path).write_array("a.npy", array)
    again = folder(tmp_path).read_array("a.npy")
    assert again.dtype == array.dtype and np.array_equal(again, array)
    assert digest == sha256_of((tmp_path / "a.npy").read_bytes())


class _Touch:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_content_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    objects = np.empty(1, object)
    objects[0] = _Touch(mark)
    for name, data in (("a.npy", array_bytes(objects, allow_pickle=True)), ("b.npy", pickle.dumps(_Touch(mark)))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StorageError, match=rf"/{name} is damaged: "):
            folder(tmp_path).read_array(name)
    assert not mark.exists()


def test_an_array_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    whole = array_bytes(np.arange(6, dtype=np.int64))
    for length in range(0, len(whole), 7):
        (tmp_path / "a.npy").write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"/a\.npy is damaged: "):
            folder(tmp_path).read_array("a.npy")


def test_an_archive_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(StorageError, match=r"/a\.npy is damaged: "):
        folder(tmp_path).read_array("a.npy")


@pytest.mark.parametrize("path", ["gopher://host/run", "foo://bar", "S4://bucket/run"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(path: str) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be opened: .* Allowed are local paths, s3://, gs://, abfs:// and hf:// "
    ):
        filesystem_of(path)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Folder(path).read("manifest.json")


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystem_of("runs/a")[1] == str(tmp_path / "runs" / "a")
    assert filesystem_of("~")[1] == str(Path.home())
    assert filesystem_of(str(tmp_path))[1] == str(tmp_path)
    Folder("runs").write("a", b"x")
    assert files_under(tmp_path) == ["runs/a"]


def test_a_file_uri_is_the_same_place(tmp_path: Path) -> None:
    by_uri = Folder(f"file://{tmp_path}/runs/")
    by_uri.write("a/b", b"x")
    assert folder(tmp_path / "runs").read("a/b") == b"x"
    assert by_uri.names() == ["a"]
    assert files_under(tmp_path) == ["runs/a/b"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://b/x", True),
        ("gs://b", True),
        ("file:///x", True),
        ("/a/b", False),
        ("a:b", False),
        ("C://x", False),
        ("a//b", False),
    ],
)
def test_is_uri(path: str, expected: bool) -> None:
    assert is_uri(path) is expected


def test_messages_name_the_file_under_the_root_as_given() -> None:
    assert Folder("runs/a/").path("stage-00/x") == "runs/a/stage-00/x"
    assert Folder("s3://b/run").path("x") == "s3://b/run/x"
    assert Folder("/").path("x") == "/x"
