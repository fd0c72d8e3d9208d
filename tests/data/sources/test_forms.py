"""The same images as class folders, Parquet, a saved data set, tars and lists: the same samples, and the same choice; and back again."""

from __future__ import annotations

import functools
import io
import json
import pickle
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes
from tests.s3 import s3_server
from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.sources.registry import Source, open_source, source_ref
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import Folder

COUNT, NAMES = 60, ("ant", "bee", "cat")
LABELS = np.repeat(np.arange(3), COUNT // 3)
IMAGES = [png_bytes(pixels) for pixels in class_pixels(LABELS, 8)]
KEYS = [f"{NAMES[label]}/{number:03d}.png" for number, label in enumerate(LABELS)]
FAST = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}
Pruned = Callable[[str], tuple[Any, ur.PruneResult]]


def tar_of(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for ending, data in files.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def as_folder(root: Path) -> str:
    for key, raw in zip(KEYS, IMAGES, strict=True):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(raw)
    return str(root)


def as_parquet(root: Path) -> str:
    root.mkdir()
    table = pa.table(
        {"image": [{"bytes": raw, "path": key} for raw, key in zip(IMAGES, KEYS, strict=True)], "label": LABELS}
    )
    for number in range(2):
        part = table.slice(number * 30, 30).replace_schema_metadata({b"class_names": json.dumps(NAMES).encode()})
        pq.write_table(part, root / f"train-{number}.parquet", row_group_size=7)
    return str(root)


def as_saved(root: Path) -> str:
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    rows = {"image": [{"bytes": raw, "path": None} for raw in IMAGES], "label": LABELS.tolist()}
    Dataset.from_dict(rows, features=features).save_to_disk(str(root), num_shards=2)
    return str(root)


def as_tars(root: Path) -> Any:
    for shard in range(3):
        rows = range(shard * 20, shard * 20 + 20)
        files = {
            f"{row:06d}": {"png": IMAGES[row], "cls": str(LABELS[row]).encode(), "json": b'{"a": 1}'} for row in rows
        }
        tar_of(root / f"train-{shard:06d}.tar", files)
    (root / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return {"use": "webdataset", "path": f"{root}/train-{{000000..000002}}.tar", "classes": f"{root}/names.txt"}


def as_csv(root: Path) -> str:
    as_folder(root)
    lines = [f"{key},{key.split('/')[0]}" for key in KEYS]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    return str(root / "list.csv")


def as_jsonl(root: Path) -> str:
    as_folder(root)
    lines = [json.dumps({"file_name": key, "label": key.split("/")[0]}) for key in KEYS]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return str(root / "metadata.jsonl")


FORMS: dict[str, Callable[[Path], Any]] = {
    "folder": as_folder,
    "parquet": as_parquet,
    "saved": as_saved,
    "tars": as_tars,
    "csv": as_csv,
    "jsonl": as_jsonl,
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """The samples in a form, and what is kept of them; each made once."""
    root = tmp_path_factory.mktemp("pruned")

    @functools.cache
    def of(form: str) -> tuple[Any, ur.PruneResult]:
        source = {"use": "digits", "limit": COUNT} if form == "digits" else FORMS[form](root / form)
        return source, ur.prune(ur.PruneConfig(source=source, out=root / f"run-{form}", **FAST))

    return of


def opened(value: Any) -> Source:
    return open_source(source_ref(value))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_samples_in_the_same_order(tmp_path: Path, form: str) -> None:
    source = opened(FORMS[form](tmp_path / "data"))
    info = source.info
    assert info.class_names == NAMES and info.num_classes == 3 and info.labels_N.tolist() == LABELS.tolist()
    assert info.size_px == 8 and info.sample and info.times
    for order in (np.arange(COUNT), np.random.default_rng(0).permutation(COUNT)):
        read = list(source.read(order.tolist()))
        assert [number for number, _ in read] == order.tolist()
        for number, raw in read:
            assert np.array_equal(to_pixels(raw, 8), to_pixels(IMAGES[number], 8))
    assert len(set(source.keys(range(COUNT)))) == COUNT
    assert [raw for _, raw in pickle.loads(pickle.dumps(source)).read([59, 0])] == [IMAGES[59], IMAGES[0]]


def test_every_form_keeps_the_same_samples(pruned: Pruned) -> None:
    kept = {form: pruned(form)[1].coreset.ids.tolist() for form in FORMS}
    assert len(kept["folder"]) == COUNT // 2
    assert all(ids == kept["folder"] for ids in kept.values())


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's own
@pytest.mark.parametrize("form", ["folder", "parquet", "saved", "tars", "csv"])
def test_what_is_kept_goes_out_as_tars_that_webdataset_reads(tmp_path: Path, pruned: Pruned, form: str) -> None:
    import webdataset as wds

    source, result = pruned(form)
    ids = result.coreset.ids.tolist()
    assert ur.export(result, f"{tmp_path}/kept/", form="webdataset") == len(ids)
    index = json.loads((tmp_path / "kept" / "index.json").read_text())
    urls = [str(tmp_path / "kept" / shard["url"]) for shard in index["shardlist"]]
    rows = [row for url in urls for row in wds.WebDataset(url, shardshuffle=False, empty_check=False)]
    assert [row["png"] for row in rows] == [IMAGES[number] for number in ids]
    assert [int(row["cls"]) for row in rows] == LABELS[ids].tolist()
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == len(ids)
    assert (tmp_path / "kept" / "keys.txt").read_text().splitlines() == opened(source).keys(ids)
    if form == "tars":
        assert all(row["json"] == b'{"a": 1}' for row in rows)
        assert [row["__key__"] for row in rows] == [f"{number:06d}" for number in ids]
    again = opened(f"{tmp_path}/kept")
    assert again.info.labels_N.tolist() == LABELS[ids].tolist()


@pytest.mark.parametrize("form", ["digits", "folder", "parquet", "saved", "csv"])
def test_what_is_kept_is_read_by_datasets_as_images_and_classes(tmp_path: Path, pruned: Pruned, form: str) -> None:
    from datasets import load_dataset

    source, result = pruned(form)
    ur.export(result, f"{tmp_path}/kept/")
    loaded = load_dataset(f"{tmp_path}/kept", split="train", cache_dir=str(tmp_path / "cache"))
    info, ids = opened(source).info, result.coreset.ids.tolist()
    assert len(loaded) == len(ids)
    if form in ("digits", "folder", "saved"):
        names = loaded.features["label"].names
        assert names == list(info.class_names) or form == "folder"  # `datasets` has no class for an empty folder
        found = [(names[row["label"]], np.asarray(row["image"].convert("RGB")).tobytes()) for row in loaded]
        expected = [
            (info.class_names[info.labels_N[at]], to_pixels(raw, info.size_px).tobytes())
            for at, raw in opened(source).read(ids)
        ]
        assert sorted(found) == sorted(expected)


def test_what_is_kept_is_read_by_torchvision(tmp_path: Path, pruned: Pruned) -> None:
    from torchvision.datasets import ImageFolder

    _, result = pruned("folder")
    ur.export(result, f"{tmp_path}/kept/")
    loaded, ids = ImageFolder(f"{tmp_path}/kept", allow_empty=True), result.coreset.ids.tolist()
    assert loaded.targets == LABELS[ids].tolist()
    for place, number in enumerate(ids):
        assert np.array_equal(np.asarray(loaded[place][0]), to_pixels(IMAGES[number], 8))


def test_a_saved_data_set_of_splits_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"image": IMAGES[:6], "label": [0, 1, 2] * 2})
    DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=rf"holds the splits train, test\. Set source: {tmp_path}/saved/train"):
        opened(str(tmp_path / "saved"))
    assert len(opened(str(tmp_path / "saved" / "train")).info) == 6


def samples(count: int = 6, **more: bytes) -> dict[str, dict[str, bytes]]:
    return {f"{row:03d}": {"png": IMAGES[row], "cls": str(row % 3).encode(), **more} for row in range(count)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**samples(), "x": {"png": IMAGES[0]}}, r"sample x of a\.tar .* has no label \(\.cls\); it has png"),
        ({**samples(), "x": {"cls": b"0", "json": b"{}"}}, r"sample x of a\.tar .* has no image; it has cls, json"),
        (
            {**samples(), "x": {"png": IMAGES[0], "cls": b"\xff"}},
            r"the label cls of sample x of a\.tar .* cannot be read",
        ),
        ({**samples(), "x": {"png": IMAGES[0], "cls": b"cat"}}, r"labels .* are numbers and text, such as cat"),
        ({**samples(), "x": {"png": IMAGES[0], "cls": b"-1"}}, r"row 6 of .* has label -1"),
        ({**samples(), "x": {"png": IMAGES[0], "cls": b""}}, r"is ''; labels are whole numbers, or names of classes"),
        (
            {**samples(), "x": {"png": IMAGES[0], "cls": b"9223372036854775808"}},
            r"is '9223372036854775808'; labels are whole",
        ),
    ],
)
def test_samples_that_cannot_be_used_are_refused_by_key(
    tmp_path: Path, files: dict[str, dict[str, bytes]], message: str
) -> None:
    tar_of(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=message):
        opened(str(tmp_path / "a.tar"))


def test_tars_that_are_damaged_compressed_or_missing_are_refused(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", samples()).read_bytes()
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"a\.tar of source .* cannot be read as an uncompressed tar"):
        opened(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.tar|b\.tar of source .* does not exist"):
        opened(f"{tmp_path}/{{a,b}}.tar")
    with pytest.raises(DataError, match=r"does not exist\. Complete the files"):
        opened(f"{tmp_path}/train-{{00..02}}.tar")
    source = opened(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"a\.tar of source .* is truncated: 00\d is incomplete"):
        list(source.read(range(6)))


def test_labels_nested_without_end_are_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"x": {"png": IMAGES[0], "json": b"[" * 100_000}})
    with pytest.raises(DataError, match=r"the label json:a of sample x of a\.tar .* cannot be read"):
        opened({"use": "webdataset", "path": str(tmp_path / "a.tar"), "label": "json:a"})


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(2**40)
    (tmp_path / "x.cls").write_bytes(b"0")
    subprocess.run(["tar", "-S", "-cf", "a.tar", "x.png", "x.cls"], cwd=tmp_path, check=True)
    with pytest.raises(DataError, match=r"x\.png is a sparse file, whose size need not be true"):
        opened(str(tmp_path / "a.tar"))


def test_tars_of_two_splits_in_one_folder_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tar_of(tmp_path / f"{split}-000000.tar", samples())
    with pytest.raises(DataError, match=rf"holds the splits train, validation.* source: {tmp_path}/train\*\.tar"):
        opened(str(tmp_path))
    assert len(opened(f"{tmp_path}/train*.tar").info) == 6


def test_labels_come_from_json_text_or_a_list_of_classes(tmp_path: Path) -> None:
    files = {
        f"{row}": {"jpg": IMAGES[row], "json": json.dumps({"meta": {"class": NAMES[row % 3]}}).encode(), "txt": b"2"}
        for row in range(6)
    }
    path = str(tar_of(tmp_path / "a.tar", files))
    info = opened({"use": "webdataset", "path": path, "label": "json:meta.class"}).info
    assert info.class_names == NAMES and info.labels_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert opened({"use": "webdataset", "path": path, "label": "txt", "limit": 4}).info.labels_N.tolist() == [
        2,
        2,
        2,
        2,
    ]
    (tmp_path / "names.txt").write_text("cat\nbee\n")
    with pytest.raises(DataError, match=r"has the label 'ant', which .*names\.txt does not name"):
        opened({"use": "webdataset", "path": path, "label": "json:meta.class", "classes": str(tmp_path / "names.txt")})
    with pytest.raises(DataError, match=r"the label json:meta\.none of sample 0 .* cannot be read: KeyError"):
        opened({"use": "webdataset", "path": path, "label": "json:meta.none"})


def test_keys_are_webdataset_s_and_get_the_tar_only_where_they_must(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {f"dir/{key}": files for key, files in samples().items()})
    assert opened(str(tmp_path / "a.tar")).keys([0, 5]) == ["dir/000", "dir/005"]
    tar_of(tmp_path / "b.tar", {f"dir/{key}": files for key, files in samples().items()})
    source = opened(str(tmp_path))
    assert source.keys([0, 6]) == ["a.tar/dir/000", "b.tar/dir/000"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with s3_server(monkeypatch):
        yield


def test_tars_and_saved_data_sets_are_read_from_an_object_store(tmp_path: Path, bucket: None) -> None:
    as_tars(tmp_path / "tars")
    as_saved(tmp_path / "saved")
    for kind in ("tars", "saved"):
        for path in (tmp_path / kind).iterdir():
            Folder(f"s3://runs/{kind}").write(path.name, path.read_bytes())
    for source in (
        {
            "use": "webdataset",
            "path": "s3://runs/tars/train-{000000..000002}.tar",
            "classes": "s3://runs/tars/names.txt",
        },
        "s3://runs/saved",
    ):
        found = opened(source)
        assert found.info.labels_N.tolist() == LABELS.tolist() and found.info.class_names == NAMES
        assert [raw for _, raw in found.read([0, 25, 59])] == [IMAGES[0], IMAGES[25], IMAGES[59]]
    assert len(opened("s3://runs/tars").info) == COUNT


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_other_pixels_of_named_files_are_noticed(tmp_path: Path, form: str) -> None:
    source = FORMS[form](tmp_path / "data")
    before = opened(source).info
    for key in KEYS[:2]:
        raw = (tmp_path / "data" / key).read_bytes()
        (tmp_path / "data" / key).write_bytes(raw[:-4] + b"\0\0\0\0")
    after = opened(source).info
    assert after.fingerprint == before.fingerprint and after.sample != before.sample


def test_an_empty_label_in_a_list_is_no_class(tmp_path: Path) -> None:
    as_folder(tmp_path / "data")
    (tmp_path / "data" / "list.csv").write_text(f"path,label\n{KEYS[0]},ant\n{KEYS[1]},\n{KEYS[2]},bee\n")
    with pytest.raises(DataError, match=r"row 1 of list\.csv has no label"):
        _ = opened(str(tmp_path / "data" / "list.csv")).info


def test_tars_with_long_or_odd_names_are_read_as_plain_ones_are(tmp_path: Path) -> None:
    long = "d" * 120 + "/" + "k" * 120
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
            for key in ("._x", "a/b", "é", *([long] if kind != tarfile.USTAR_FORMAT else ["d" * 120 + "/k"])):
                for ending, data in (("png", IMAGES[0]), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        source = opened(str(tmp_path / "a.tar"))
        assert source.keys([0, 1]) == ["a/b", "é"] and len(source.info) == 3
        assert [raw for _, raw in source.read([0, 2])] == [IMAGES[0]] * 2


def test_the_options_of_tars_are_checked(tmp_path: Path) -> None:
    path = str(tar_of(tmp_path / "a.tar", samples()))
    with pytest.raises(ur.ConfigError, match="names no value of the JSON file"):
        opened({"use": "webdataset", "path": path, "label": "json"})
    with pytest.raises(ur.ConfigError, match=r"source\.classes=2"):
        opened({"use": "webdataset", "path": path, "classes": 2})
    assert (
        source_ref({"use": "webdataset", "path": path, "classes": "n.txt"})
        .absolute()
        .options["classes"]
        .startswith("/")
    )


@pytest.mark.parametrize("damage", ["checksum", "in a header", "in an image", "no end", "sign", "folder"])
def test_a_damaged_tar_is_refused_and_never_shorter(tmp_path: Path, damage: str) -> None:
    path = tar_of(tmp_path / "a.tar", samples())
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive]
    data = bytearray(path.read_bytes())
    if damage == "checksum":
        data[starts[4] + 3] ^= 1
    elif damage == "sign":
        data[starts[4] + 124 : starts[4] + 136] = b"-0000001000\0"
        total = sum(data[starts[4] : starts[4] + 512]) - sum(data[starts[4] + 148 : starts[4] + 156]) + 256
        data[starts[4] + 148 : starts[4] + 156] = b"%06o\0 " % total
    elif damage == "folder":  # its size means nothing, and the samples after it are there
        info = tarfile.TarInfo("d/")
        info.type, info.size = tarfile.DIRTYPE, 4096
        data[:0] = info.tobuf(tarfile.USTAR_FORMAT)
    else:
        cut = {"in a header": starts[6] + 200, "in an image": starts[6] + 512 + 20, "no end": starts[6]}[damage]
        del data[cut:]
    path.write_bytes(data)
    if damage == "folder":
        assert opened(str(path)).keys(range(6)) == [f"{row:03d}" for row in range(6)]
        return
    with pytest.raises(DataError, match=r"a\.tar of source .* cannot be read as an uncompressed tar"):
        opened(str(path))
