"""Parquet sources: rows in order under portable keys, labels checked, bytes given back as they were stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.data.sources.parquet import ParquetSource
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import DataError

MakeParquet = Callable[..., Path]


def pngs(labels: Any, size_px: int = 6, seed: int = 0) -> list[bytes]:
    return [png_bytes(pixels) for pixels in class_pixels(np.asarray(labels), size_px, seed)]


def labelled(path: Path, labels: Any, *, dtype: Any = np.int64, **options: Any) -> Path:
    return write_parquet(path, np.asarray(labels, dtype), pngs(labels), **options)


def with_metadata(path: Path, metadata: dict[bytes, bytes]) -> Path:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def class_label(*names: str, column: str = "label") -> dict[bytes, bytes]:
    features = {"image": {"_type": "Image"}, column: {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def opened(path: Path | str, **options: Any) -> ParquetSource:
    return ParquetSource(path=str(path), **options)


def fingerprint(path: Path | str, **options: Any) -> str:
    return opened(path, **options).info.fingerprint


def test_rows_are_ids_in_order_and_keys_are_file_and_row(parquet_file: MakeParquet) -> None:
    source = opened(parquet_file(count=20, classes=3))
    assert len(source.info) == 20
    assert source.info.labels_N.tolist() == [number % 3 for number in range(20)]
    assert source.info.labels_N.dtype == np.int64
    assert source.keys([0, 17, 3]) == ["data.parquet:0", "data.parquet:17", "data.parquet:3"]
    assert source.keys([]) == []


@pytest.mark.parametrize("group", [1, 3, 7, 100])
def test_bytes_come_back_for_rising_and_for_random_ids(tmp_path: Path, group: int) -> None:
    labels = np.arange(23) % 4
    images = pngs(labels)
    path = write_parquet(tmp_path / "a.parquet", labels, images)
    pq.write_table(pq.read_table(path), path, row_group_size=group)
    source = opened(path)
    rng = np.random.default_rng(0)
    for ids in (range(23), rng.permutation(23), rng.integers(0, 23, 40), [22], []):
        assert [(number, raw) for number, raw in source.read(ids)] == [(number, images[number]) for number in ids]


def test_img_and_image_are_found_by_themselves(tmp_path: Path) -> None:
    for image in ("img", "image"):
        source = opened(labelled(tmp_path / f"{image}.parquet", [0, 1], image=image))
        assert [raw for _, raw in source.read([0, 1])] == pngs([0, 1])


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.parquet", [0, 1, 2], image="photo", coarse=pa.array([1, 0, 1]))
    source = opened(path, image="photo", label="coarse")
    assert source.info.labels_N.tolist() == [1, 0, 1]
    assert [raw for _, raw in source.read([2])] == pngs([0, 1, 2])[2:]


def test_a_file_a_glob_and_a_folder_hold_the_same_samples(tmp_path: Path) -> None:
    labelled(tmp_path / "data" / "train-00.parquet", [0, 1, 2])
    expected = opened(tmp_path / "data" / "train-00.parquet")
    root = tmp_path / "data"
    for path in (f"{root}", f"{root}/", f"{root}/*.parquet", f"{root}/train-[0-9]?.parquet", f"file://{root}"):
        source = open_source(source_ref(path))
        assert source.info.fingerprint == expected.info.fingerprint
        assert source.keys(range(3)) == expected.keys(range(3)) == [f"train-00.parquet:{row}" for row in range(3)]


def test_several_files_are_numbered_through_in_the_order_of_their_names(tmp_path: Path) -> None:
    labelled(tmp_path / "b.parquet", [3, 2])
    labelled(tmp_path / "a.parquet", [0, 1, 0])
    labelled(tmp_path / "c" / "a.parquet", [1])
    source = opened(tmp_path)
    assert source.info.labels_N.tolist() == [0, 1, 0, 3, 2, 1]
    assert source.keys(range(6)) == [
        "a.parquet:0",
        "a.parquet:1",
        "a.parquet:2",
        "b.parquet:0",
        "b.parquet:1",
        "c/a.parquet:0",
    ]
    expected = [*pngs([0, 1, 0]), *pngs([3, 2]), *pngs([1])]
    order = [5, 0, 3, 2, 4, 1]
    assert [raw for _, raw in source.read(order)] == [expected[number] for number in order]


def test_hidden_and_underscored_files_are_passed_over(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [0, 1])
    for name in (".a.parquet", "_metadata.parquet", "notes.txt"):
        (tmp_path / name).write_text("no Parquet")
    assert len(opened(tmp_path).info) == 2


def test_files_of_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [0, 1])
    labelled(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.parquet", [0, 1])
    assert opened(tmp_path).keys([0, 1]) == ["a.parquet:0", "a.parquet:1"]
    assert len(opened(tmp_path).info) == 2


def test_a_star_does_not_reach_into_folders_as_in_a_shell(tmp_path: Path) -> None:
    labelled(tmp_path / "train-0.parquet", [0, 1])
    labelled(tmp_path / "train-old" / "0.parquet", [0, 1])
    assert opened(f"{tmp_path}/train-*.parquet").info.labels_N.tolist() == [0, 1]


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 7, 100])
def test_limit_takes_the_first_rows_across_files(tmp_path: Path, limit: int) -> None:
    labelled(tmp_path / "a.parquet", [0, 1, 2, 3])
    labelled(tmp_path / "b.parquet", [4, 5, 6])
    source = opened(tmp_path, limit=limit)
    assert source.info.labels_N.tolist() == list(range(7))[:limit]
    assert len(list(source.read(range(len(source.info))))) == min(limit, 7)


def test_an_empty_file_among_others_adds_nothing(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [])
    labelled(tmp_path / "b.parquet", [0, 1])
    source = opened(tmp_path)
    assert source.info.labels_N.tolist() == [0, 1]
    assert source.info.size_px == 6
    assert source.keys([0, 1]) == ["b.parquet:0", "b.parquet:1"]
    assert [raw for _, raw in source.read([1, 0])] == pngs([0, 1])[::-1]


def test_class_label_metadata_gives_c_and_the_names(tmp_path: Path) -> None:
    path = with_metadata(labelled(tmp_path / "a.parquet", [0, 1, 0]), class_label("cat", "dog", "owl"))
    info = opened(path).info
    assert (info.num_classes, info.class_names) == (3, ("cat", "dog", "owl"))
    named = labelled(tmp_path / "b.parquet", [0, 1], fine=pa.array([2, 0]))
    with_metadata(named, class_label("a", "b", "c", "d", column="fine"))
    assert opened(named, label="fine").info.num_classes == 4
    assert opened(named).info.class_names == ()


@pytest.mark.parametrize("text", [b"cat|dog|owl", b'["cat", "dog", "owl"]', b"cat,dog,owl"])
@pytest.mark.parametrize("key", [b"class_names", b"class_wnids"])
def test_plain_class_names_in_the_metadata_give_c(tmp_path: Path, key: bytes, text: bytes) -> None:
    info = opened(with_metadata(labelled(tmp_path / "a.parquet", [0, 1]), {key: text})).info
    assert (info.num_classes, info.class_names) == (3, ("cat", "dog", "owl"))


def test_a_comma_within_a_name_is_kept_where_bars_divide(tmp_path: Path) -> None:
    path = with_metadata(labelled(tmp_path / "a.parquet", [0, 1]), {b"class_names": b"tench, Tinca tinca|goldfish"})
    assert opened(path).info.class_names == ("tench, Tinca tinca", "goldfish")


@pytest.mark.parametrize(
    "metadata", [{b"huggingface": b"{"}, {b"huggingface": b"[]"}, {b"huggingface": b'{"info": 3}'}, {}]
)
def test_metadata_that_says_nothing_of_classes_is_passed_over(tmp_path: Path, metadata: dict[bytes, bytes]) -> None:
    info = opened(with_metadata(labelled(tmp_path / "a.parquet", [0, 1, 2]), metadata)).info
    assert (info.num_classes, info.class_names) == (3, ())


def test_a_label_above_the_metadata_s_classes_is_refused_by_row(tmp_path: Path) -> None:
    path = with_metadata(labelled(tmp_path / "a.parquet", [0, 1, 5]), class_label("cat", "dog"))
    with pytest.raises(
        DataError, match=r"row 2 of .*a\.parquet has label 5, but its metadata names 2 classes \(0 to 1\)"
    ):
        _ = opened(path).info


def test_labels_with_holes_count_up_to_the_largest(tmp_path: Path) -> None:
    info = opened(labelled(tmp_path / "a.parquet", [0, 7, 3])).info
    assert info.num_classes == 8
    assert info.labels_N.tolist() == [0, 7, 3]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_labels_of_any_integer_type_become_int64(tmp_path: Path, dtype: Any) -> None:
    info = opened(labelled(tmp_path / "a.parquet", [0, 2, 1], dtype=dtype)).info
    assert info.labels_N.dtype == np.int64
    assert info.labels_N.tolist() == [0, 2, 1]


def test_files_may_differ_in_the_type_of_their_labels(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [0, 2], dtype=np.int64)
    labelled(tmp_path / "b.parquet", [1, 3], dtype=np.uint64)
    assert opened(tmp_path).info.labels_N.tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_plain_binary_image_column_will_do(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"image": pa.array(pngs([0, 1]), kind), "label": [0, 1]}), tmp_path / "a.parquet")
    assert [raw for _, raw in opened(tmp_path / "a.parquet").read([0, 1])] == pngs([0, 1])


def test_an_image_stored_as_a_path_is_read_beside_the_parquet(tmp_path: Path) -> None:
    images = pngs([0, 1])
    structs = [{"bytes": None, "path": "images/a.png"}, {"bytes": images[1], "path": "images/nosuch.png"}]
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "a.png").write_bytes(images[0])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(structs, kind), "label": [0, 1]}), tmp_path / "set" / "a.parquet")
    assert [raw for _, raw in opened(tmp_path / "set").read([0, 1])] == images
    (tmp_path / "set" / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.parquet:0 names the file images/a\.png, which cannot be read"):
        list(opened(tmp_path / "set").read([0]))


def test_a_null_image_is_no_bytes_for_the_decoder_to_refuse(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}), tmp_path / "a.parquet")
    assert [raw for _, raw in opened(tmp_path / "a.parquet").read([0, 1, 2])] == [b"", b"", b""]


def test_the_size_is_the_images_own_up_to_64_unless_it_is_given(parquet_file: MakeParquet) -> None:
    assert opened(parquet_file(count=4, size_px=9)).info.size_px == 9
    assert opened(parquet_file(count=4, size_px=9)).info.original_px == (9, 9)
    assert opened(parquet_file(count=4, size_px=80)).info.size_px == 64
    assert opened(parquet_file(count=4, size_px=80), size=80).info.size_px == 80


def test_the_fingerprint_is_stable_across_opens_and_copies(parquet_file: MakeParquet, tmp_path: Path) -> None:
    path = parquet_file(count=12)
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert fingerprint(path) == fingerprint(path) == fingerprint(copy)


def test_the_fingerprint_changes_with_labels_sizes_files_and_limit(tmp_path: Path) -> None:
    labels = np.arange(12) % 3
    prints = [fingerprint(labelled(tmp_path / "a" / "x.parquet", labels))]
    prints.append(fingerprint(labelled(tmp_path / "b" / "x.parquet", (labels + 1) % 3)))
    prints.append(fingerprint(write_parquet(tmp_path / "c" / "x.parquet", labels, pngs(labels, size_px=9))))
    prints.append(fingerprint(tmp_path / "a" / "x.parquet", limit=11))
    prints.append(fingerprint(labelled(tmp_path / "d" / "y.parquet", labels)))
    labelled(tmp_path / "a" / "z.parquet", [0])
    prints.append(fingerprint(tmp_path / "a"))
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0, -1, 1]), r"row 1 of .* has label -1; labels are 0 to C - 1"),
        (pa.array([0.0, 1.0, 1.0]), r"column 'label' of a\.parquet is double; labels must be integers"),
        (pa.array(["cat", None, "dog"]), r"row 1 of a\.parquet has no label"),
        (pa.array([True, False, True]), r"column 'label' of a\.parquet is bool"),
        (pa.array([[0], [1], [1]]), r"column 'label' of a\.parquet is list"),
        (pa.array([0, None, 1]), r"row 1 of a\.parquet has no label"),
        (pa.array([None, None, None]), r"column 'label' of a\.parquet is null"),
        (pa.array([0, 1, 2**40]), r"has label 1099511627776: that would make 1099511627777 classes"),
    ],
    ids=["negative", "float", "text", "bool", "list", "null", "all null", "huge"],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"image": pa.array(pngs([0, 1, 1])), "label": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        _ = opened(tmp_path / "a.parquet").info


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2]),
        pa.array([[1], [2]]),
        pa.array([{"path": 3}, {"path": 4}]),
        pa.array([{"bytes": 3, "path": "x"}, {"bytes": 4, "path": "y"}]),
        pa.array([{"bytes": "text", "path": "x"}, {"bytes": "text", "path": "y"}]),
    ],
    ids=lambda column: str(column.type),
)
def test_an_image_column_of_another_type_is_refused(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'image' of a\.parquet is .*must hold encoded images"):
        opened(tmp_path / "a.parquet")


def test_a_missing_column_is_told_with_what_is_there(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.parquet", [0, 1], image="photo")
    with pytest.raises(DataError, match=r"has no image column \(image or img\); it has photo, label"):
        opened(path)
    with pytest.raises(DataError, match=r"has no label column \(labels\).*Did you mean 'label'\?"):
        opened(path, image="photo", label="labels")
    labelled(tmp_path / "b.parquet", [0, 1])
    with pytest.raises(DataError, match=r"b\.parquet of source .* has no image column"):
        opened(tmp_path, image="photo")


def test_what_is_no_parquet_is_told_by_name(tmp_path: Path) -> None:
    whole = labelled(tmp_path / "whole.parquet", [0, 1]).read_bytes()
    damaged = {"text": b"no Parquet at all", "empty": b"", "cut": whole[: len(whole) // 2], "tail": whole[:-1]}
    for name, data in damaged.items():
        (tmp_path / f"{name}.parquet").write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}\.parquet of source .* is not a Parquet file"):
            opened(tmp_path / f"{name}.parquet")


def test_damage_within_a_file_is_told_by_name(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.parquet", np.arange(50) % 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(opened(path).read(range(50)))


def test_what_does_not_exist_is_told_by_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nosuch\.parquet does not exist"):
        opened(tmp_path / "nosuch.parquet")
    for pattern in ("*.parquet", "nosuch/*.parquet", "train-?.parquet"):
        with pytest.raises(DataError, match=r"matches no Parquet file|cannot be listed"):
            opened(f"{tmp_path}/{pattern}")
    with pytest.raises(DataError, match=r"matches no Parquet file"):
        opened(tmp_path)


def test_no_rows_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet holds no samples"):
        _ = opened(labelled(tmp_path / "a.parquet", [])).info


@pytest.mark.realdata
def test_real_cifar_is_read_whole(real_data: Path) -> None:
    source = opened(real_data / "cifar10-train.parquet")
    assert (len(source.info), source.info.num_classes, source.info.size_px) == (50_000, 10, 32)
    assert np.bincount(source.info.labels_N).tolist() == [5_000] * 10


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_labels_are_the_numbers_of_the_sorted_names_in_all_files(tmp_path: Path, kind: pa.DataType) -> None:
    for file, names in {"a": ["owl", "cat"], "b": ["dog", "owl", "cat"]}.items():
        table = pa.table({"image": pngs(range(len(names))), "label": pa.array(names).cast(kind)})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=1)
    info = opened(tmp_path).info
    assert info.class_names == ("cat", "dog", "owl") and info.labels_N.tolist() == [2, 0, 1, 2, 0]
    assert opened(tmp_path, limit=2).info.class_names == ("cat", "dog", "owl")


def test_text_labels_follow_the_names_in_the_metadata(tmp_path: Path) -> None:
    table = pa.table({"image": pngs([0, 1]), "label": ["dog", "cat"]})
    pq.write_table(table.replace_schema_metadata(class_label("owl", "dog", "cat")), tmp_path / "a.parquet")
    info = opened(tmp_path).info
    assert info.class_names == ("owl", "dog", "cat") and info.labels_N.tolist() == [1, 2]
    pq.write_table(table.replace_schema_metadata(class_label("owl", "dog")), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 1 of a\.parquet has label 'cat', which the metadata .* does not name"):
        _ = opened(tmp_path).info


def test_text_in_one_file_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [0, 1])
    pq.write_table(pa.table({"image": pngs([0, 1]), "label": ["dog", "cat"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"is text in b\.parquet and numbers in a\.parquet"):
        _ = opened(tmp_path).info


def test_files_that_name_the_classes_in_another_order_are_brought_to_one_order(tmp_path: Path) -> None:
    with_metadata(labelled(tmp_path / "a.parquet", [0, 1, 2]), class_label("cat", "dog", "owl"))
    with_metadata(labelled(tmp_path / "b.parquet", [0, 1, 2]), class_label("owl", "cat", "dog"))
    info = opened(tmp_path).info
    assert info.class_names == ("cat", "dog", "owl") and info.labels_N.tolist() == [0, 1, 2, 2, 0, 1]
    with_metadata(labelled(tmp_path / "b.parquet", [0, 3]), class_label("owl", "cat", "dog"))
    with pytest.raises(DataError, match="has label 3, but its metadata names 3 classes"):
        _ = opened(tmp_path).info


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "wolf"), r"a\.parquet and b\.parquet .* name different classes: 'dog' and 'wolf'"),
        (("cat", "dog", "owl"), r"name different classes: no other and 'owl'"),
        ((), r"a\.parquet of source .* names its classes and b\.parquet does not"),
        (("cat", "cat"), r"b\.parquet of source .* names a class twice"),
    ],
)
def test_files_of_other_classes_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with_metadata(labelled(tmp_path / "a.parquet", [0, 1]), class_label("cat", "dog"))
    with_metadata(labelled(tmp_path / "b.parquet", [0, 1]), class_label(*names) if names else {})
    with pytest.raises(DataError, match=message):
        _ = opened(tmp_path).info


@pytest.mark.parametrize(
    ("files", "splits", "glob"),
    [
        (["train-00000-of-00001", "test-00000-of-00001"], "test, train", "train*.parquet"),
        (["train", "test"], "test, train", "train*.parquet"),
        (["mnist_train", "mnist_test"], "test, train", "mnist_train*.parquet"),
        (["training-00", "testing-00"], "test, train", "training*.parquet"),
        (["TRAIN_0", "Valid_0"], "train, validation", "TRAIN*.parquet"),
        (["default/train/0000", "default/test/0000"], "test, train", "default/train/*.parquet"),
        (["split=train/part-0", "split=test/part-0"], "test, train", "split=train/*.parquet"),
        (["split=train/day=1/0", "split=unlabeled/day=1/0"], "train, unlabeled", "split=train/**/*.parquet"),
        (["data/train-0", "data/val-0", "data/test-0"], "test, train, validation", "data/train*.parquet"),
    ],
)
def test_splits_in_one_folder_are_refused_with_a_glob_that_works(
    tmp_path: Path, files: list[str], splits: str, glob: str
) -> None:
    for name in files:
        labelled(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(DataError, match=rf"holds the splits {splits}\. Name one of them") as refused:
        opened(tmp_path)
    assert f"source: {tmp_path}/{glob} (" in str(refused.value)
    assert len(opened(f"{tmp_path}/{glob}").info) == 2


def test_a_glob_may_join_splits_and_says_so(tmp_path: Path) -> None:
    for split in ("train", "val"):
        labelled(tmp_path / f"{split}-0.parquet", [0, 1])
    info = opened(f"{tmp_path}/*.parquet").info
    assert len(info) == 4 and info.note == "the splits train, validation are read together"


def test_configurations_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("fruit", "flowers"):
        labelled(tmp_path / name / "train-00000-of-00001.parquet", [0, 1])
    with pytest.raises(DataError, match=rf"holds the configurations flowers, fruit .* source: {tmp_path}/flowers, or"):
        opened(tmp_path)
    assert len(opened(tmp_path / "fruit").info) == 2
    assert len(opened(f"{tmp_path}/**/*.parquet").info) == 4


def test_shards_in_several_folders_are_read_together_and_named(tmp_path: Path) -> None:
    for name in ("day=1/0", "day=2/0", "day=2/1"):
        labelled(tmp_path / f"{name}.parquet", [0, 1])
    info = opened(tmp_path).info
    assert len(info) == 6 and info.note == "the files of 2 folders are read together (day=1, day=2)"
    assert open_source(source_ref(str(tmp_path))).info.fingerprint == info.fingerprint


def test_two_stars_match_any_folders_or_none(tmp_path: Path) -> None:
    for name in ("0", "a/0", "a/b/0", "a/b/1"):
        labelled(tmp_path / f"{name}.parquet", [0, 1])
    assert len(opened(f"{tmp_path}/a/**/*.parquet").info) == 6
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert opened(f"{tmp_path}/**/0.parquet").keys([0, 2, 4]) == ["0.parquet:0", "a/0.parquet:0", "a/b/0.parquet:0"]
    assert len(opened(f"{tmp_path}/**/*.parquet").info) == len(opened(f"{tmp_path}/**").info) == 8


def test_brackets_in_a_name_that_exists_are_no_pattern(tmp_path: Path) -> None:
    path = labelled(tmp_path / "br[1]" / "a[0].parquet", [0, 1])
    assert len(opened(path).info) == len(opened(tmp_path / "br[1]").info) == 2
    assert len(open_source(source_ref(str(tmp_path / "br[1]"))).info) == 2
    labelled(tmp_path / "1.parquet", [0, 1])
    assert opened(f"{tmp_path}/[12].parquet").keys([0]) == ["1.parquet:0"]


def test_names_that_are_not_utf8_do_no_harm_where_they_are_not_asked_for(tmp_path: Path) -> None:
    labelled(tmp_path / "a.parquet", [0, 1])
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.parquet")).write_bytes(b"")
    for path in (str(tmp_path), f"{tmp_path}/*.parquet", f"{tmp_path}/**/*.parquet"):
        assert opened(path).keys([0]) == ["a.parquet:0"]


def test_more_files_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    for number in range(150):
        labelled(tmp_path / f"train-{number:03d}.parquet", [0, 1])
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))\n"
        "from unseen_ray.data.sources.parquet import ParquetSource\n"
        "source = ParquetSource(path=sys.argv[1])\n"
        "print(len(source.info), len(list(source.read(range(300)))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["300", "300"], done.stderr


def test_images_may_be_named_by_text_or_struct_in_every_form_of_path(tmp_path: Path) -> None:
    images = pngs([0, 1, 2])
    for number, raw in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(raw)
    names = ["../0.png", f"{tmp_path}/1.png", f"file://{tmp_path}/2.png"]
    struct = pa.array(
        [{"bytes": None, "path": name} for name in names], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    for kind, column in {"text": pa.array(names), "struct": struct}.items():
        (tmp_path / kind).mkdir()
        pq.write_table(pa.table({"image": column, "label": [0, 1, 2]}), tmp_path / kind / "a.parquet")
        source = opened(tmp_path / kind, images=str(tmp_path))
        assert [raw for _, raw in source.read([0, 1, 2])] == images
        ((_, table),) = source.tables([0, 2])
        assert [row["bytes"] for row in table.column("image").to_pylist()] == [images[0], images[2]]


@pytest.mark.parametrize(
    "name",
    [
        "../private.png", "{home}/private.png", "file://{home}/private.png", "file:///{home}/./private.png", "sub/../../private.png",
        "file://{home}/%70rivate.png", "images/../../private.png", "{home}/set2/private.png", "s3://other/private.png", "/dev/zero",
        "x\0.png",
    ],
)  # fmt: skip
def test_a_row_names_no_file_outside_the_data_s_folder(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, tmp_path / "set2"):
        folder.mkdir(exist_ok=True)
        (folder / "private.png").write_bytes(pngs([0])[0])
    (tmp_path / "set").mkdir()
    table = pa.table({"image": [name.format(home=tmp_path)], "label": [0]})
    pq.write_table(table, tmp_path / "set" / "a.parquet")
    for path in ("set", "set/a.parquet", "set/*.parquet"):
        with pytest.raises(
            DataError, match=r"a\.parquet:0 names the file .*(it lies outside|its name holds a zero byte)"
        ):
            list(opened(tmp_path / path).read([0]))


def test_a_row_names_what_lies_below_the_data_s_folder_or_one_that_is_given(tmp_path: Path) -> None:
    image = pngs([0])[0]
    for name in ("set/tables", "set/images", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(image)
    (tmp_path / "elsewhere" / "set").symlink_to(tmp_path / "set")
    names = ["0.png", "../images/0.png", f"{tmp_path}/set/images/0.png", f"{tmp_path}/elsewhere/0.png"]
    pq.write_table(pa.table({"image": names, "label": [0] * 4}), tmp_path / "set" / "tables" / "a.parquet")
    assert len(list(opened(tmp_path / "set").read([0, 1, 2]))) == 3
    with pytest.raises(DataError, match=r"a\.parquet:3 names .* If you trust the table, set `images` of the source"):
        list(opened(tmp_path / "set").read([3]))
    assert len(list(opened(tmp_path / "set", images=str(tmp_path / "elsewhere")).read(range(4)))) == 4


def test_a_row_that_names_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    pq.write_table(pa.table({"image": ["pipe.png"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"names the file pipe\.png, which cannot be read: it is not a regular file"):
        list(opened(tmp_path / "a.parquet").read([0]))


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())])
def test_views_and_dictionaries_of_images_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"image": pa.array(pngs([0, 1])).cast(kind), "label": [0, 1]}), tmp_path / "a.parquet")
    assert [raw for _, raw in opened(tmp_path / "a.parquet").read([0, 1])] == pngs([0, 1])


def test_an_error_within_a_large_row_group_neither_ends_nor_shifts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unseen_ray.data.sources.tables.parquet_shard._MOST_BYTES", 1)
    labelled(tmp_path / "a.parquet", np.arange(100) % 2)
    failed: list[int] = []
    original = pq.ParquetFile.iter_batches

    def failing(self: Any, *args: Any, **more: Any) -> Any:
        for number, batch in enumerate(original(self, *args, **more)):
            if number == 2 and not failed:
                failed.append(number)
                raise OSError(5, "AWS Error NETWORK_CONNECTION")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    source = opened(tmp_path)
    rows = [0, 20, 49, 50, 60, 99]
    taken = [
        row["bytes"] if isinstance(row, dict) else row
        for _, t in source.tables(rows)
        for row in t.column("image").to_pylist()
    ]
    assert failed and taken == [pngs(np.arange(100) % 2)[row] for row in rows]
