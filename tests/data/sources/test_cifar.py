"""CIFAR as torchvision keeps it on disk, written here as the published files are: pickles of Python 2."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from unseen_ray.data.sources.cifar.batch import read_batch
from unseen_ray.data.sources.cifar.source import CifarSource
from unseen_ray.data.sources.registry import default_test, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError

ROWS = 6
NAMES = tuple(f"class {number}" for number in range(10))


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes byte strings as Python 2 wrote its `str`, and numpy's functions under their names of old."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str2(self, data: bytes) -> None:
        length = len(data)
        self.write(b"U" + bytes([length]) if length < 256 else b"T" + struct.pack("<i", length))
        self.write(data)
        self.memoize(data)

    dispatch[bytes] = save_str2

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[type] = save_global
    dispatch[type(lambda: None)] = save_global
    dispatch[type(len)] = save_global


def python2_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def pixels(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 3072), dtype=np.uint8)


def labels(seed: int, rows: int = ROWS, classes: int = 10) -> list[int]:
    return np.random.default_rng(seed).integers(0, classes, rows).tolist()


def batch(seed: int, rows: int = ROWS) -> dict[bytes, Any]:
    return {
        b"batch_label": b"training batch",
        b"labels": labels(seed, rows),
        b"data": pixels(seed, rows),
        b"filenames": [f"{row}.png".encode() for row in range(rows)],
    }


def write_cifar10(root: Path, *, pickled: Any = python2_pickle) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(pickled(batch(number)))
    (folder / "test_batch").write_bytes(pickled(batch(6)))
    meta = {b"num_cases_per_batch": ROWS, b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickled(meta))
    return root


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        coarse_and_fine = {
            b"filenames": [b"x.png"] * ROWS,
            b"batch_label": b"",
            b"fine_labels": labels(number, classes=100),
            b"coarse_labels": labels(number, classes=20),
            b"data": pixels(number),
        }
        (folder / split).write_bytes(python2_pickle(coarse_and_fine))
    meta = {b"fine_label_names": [b"fine %d" % n for n in range(100)], b"coarse_label_names": [b"coarse"] * 20}
    (folder / "meta").write_bytes(python2_pickle(meta))
    return root


def image_of(row: np.ndarray) -> np.ndarray:
    """(3072,) red, green and blue planes as (32, 32, 3)."""
    return np.stack([row[:1024].reshape(32, 32), row[1024:2048].reshape(32, 32), row[2048:].reshape(32, 32)], axis=2)


def opened(root: Path, name: str = "cifar10", **options: Any) -> CifarSource:
    return CifarSource(name, root=str(root), **options)


def damage(root: Path, content: Any, file: str = "data_batch_2") -> Path:
    data = content if isinstance(content, bytes) else python2_pickle(content)
    (root / "cifar-10-batches-py" / file).write_bytes(data)
    return root


def test_the_fixture_names_what_the_published_files_name() -> None:
    data = python2_pickle(batch(1))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data and b"cnumpy\nndarray\n" in data
    assert b"U\x04data" in data or b"U\x06labels" in data


def test_batches_are_numbered_through(tmp_path: Path) -> None:
    source = opened(write_cifar10(tmp_path))
    assert len(source.info) == 5 * ROWS
    assert source.info.labels_N.tolist() == [label for number in range(1, 6) for label in labels(number)]
    assert (source.info.num_classes, source.info.class_names) == (10, NAMES)
    assert (source.info.size_px, source.info.original_px) == (32, (32, 32))
    assert source.keys([0, 5, 6, 29]) == ["data_batch_1:0", "data_batch_1:5", "data_batch_2:0", "data_batch_5:5"]


def test_pixels_come_back_upright_for_any_order_of_ids(tmp_path: Path) -> None:
    source = opened(write_cifar10(tmp_path))
    stored = np.concatenate([pixels(number) for number in range(1, 6)])
    for ids in (np.arange(30), np.random.default_rng(0).permutation(30)):
        for (number, raw), expected in zip(source.read(ids), ids, strict=True):
            assert number == expected
            assert raw.shape == (32, 32, 3) and raw.dtype == np.uint8
            assert np.array_equal(raw, image_of(stored[number]))


def test_the_test_split_is_the_default_test(tmp_path: Path) -> None:
    ref = source_ref({"use": "cifar10", "root": str(write_cifar10(tmp_path)), "limit": 4})
    assert len(open_source(ref).info) == 4
    test = default_test(ref)
    assert test is not None
    source = open_source(test)
    assert source.info.labels_N.tolist() == labels(6)
    assert source.keys([3]) == ["test_batch:3"]


def test_torchvision_reads_the_same_files_alike(tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR10

    class Unchecked(CIFAR10):
        train_list: ClassVar = [[name, None] for name, _ in CIFAR10.train_list]
        test_list: ClassVar = [[name, None] for name, _ in CIFAR10.test_list]
        meta: ClassVar = {**CIFAR10.meta, "md5": None}

    root = write_cifar10(tmp_path)
    for split in ("train", "test"):
        theirs = Unchecked(str(root), train=split == "train")
        ours = opened(root, split=split)
        assert ours.info.labels_N.tolist() == theirs.targets
        assert list(ours.info.class_names) == theirs.classes
        assert np.array_equal(np.stack([raw for _, raw in ours.read(range(len(theirs)))]), theirs.data)


def test_cifar100_has_its_fine_classes(tmp_path: Path) -> None:
    source = opened(write_cifar100(tmp_path), "cifar100")
    assert source.info.labels_N.tolist() == labels(0, classes=100)
    assert source.info.num_classes == 100 and source.info.class_names[7] == "fine 7"
    assert opened(tmp_path, "cifar100", split="test").info.labels_N.tolist() == labels(1, classes=100)
    assert source.keys([2]) == ["train:2"]


def test_pickles_of_python_3_are_read_too(tmp_path: Path) -> None:
    old = opened(write_cifar10(tmp_path / "old"))
    new = opened(write_cifar10(tmp_path / "new", pickled=lambda value: pickle.dumps(value, protocol=2)))
    assert new.info.fingerprint == old.info.fingerprint
    assert new.info.class_names == old.info.class_names


@pytest.mark.parametrize("limit", [1, 6, 7, 30, 99])
def test_limit_takes_the_first_rows(tmp_path: Path, limit: int) -> None:
    source = opened(write_cifar10(tmp_path), limit=limit)
    assert len(source.info) == min(limit, 30) == len(list(source.read(range(min(limit, 30)))))
    assert source.info.num_classes == 10


def test_the_fingerprint_is_stable_and_changes_with_the_data(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path)
    prints = [opened(root).info.fingerprint]
    assert prints == [opened(root).info.fingerprint]
    prints.append(opened(root, limit=29).info.fingerprint)
    prints.append(opened(root, split="test").info.fingerprint)
    prints.append(opened(damage(root, batch(2) | {b"data": pixels(2) ^ 1})).info.fingerprint)
    prints.append(
        opened(damage(root, batch(2) | {b"labels": [*labels(2)[:-1], (labels(2)[-1] + 1) % 10]})).info.fingerprint
    )
    assert len(set(prints)) == len(prints)


class _Touch:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("within", ["alone", "batch", "labels"])
def test_a_pickle_that_calls_anything_is_refused_and_not_executed(tmp_path: Path, within: str, protocol: int) -> None:
    import os
    import subprocess

    mark = tmp_path / "executed"
    root = write_cifar10(tmp_path)
    for call in (
        _Touch(os.system, f"touch {mark}"),
        _Touch(subprocess.call, ["touch", str(mark)]),
        _Touch(eval, f"open({str(mark)!r}, 'w')"),
        _Touch(open, str(mark), "w"),
        _Touch(np.load, str(mark)),
        _Touch(np.save, str(mark), [1]),
    ):
        content = {"alone": call, "batch": batch(2) | {b"data": call}, "labels": batch(2) | {b"labels": [call] * ROWS}}
        damage(root, pickle.dumps(content[within], protocol=protocol))
        with pytest.raises(
            DataError, match=r"data_batch_2 is damaged or not a CIFAR file: it (imports|uses the opcode) "
        ):
            opened(root)
        assert not mark.exists()
        assert not mark.with_suffix(".npy").exists()


def test_a_dotted_name_does_not_reach_what_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    text = f"touch {mark}".encode()
    for module, name in (
        (b"numpy", b"ndarray.__init__.__globals__"),
        (b"numpy", b"os.system"),
        (b"numpy", b"dtype.newbyteorder"),
    ):
        data = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"
        data += b"X" + struct.pack("<I", len(text)) + text + b"\x85R."
        with pytest.raises(DataError, match=r"it imports numpy\."):
            opened(damage(write_cifar10(tmp_path / name.decode()), data))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        python2_pickle(batch(2))[:-40],
        [1, 2],
        {b"data": pixels(2)},
        {b"labels": labels(2)},
        batch(2) | {b"data": pixels(2)[:, :3000]},
        batch(2) | {b"data": pixels(2)[:, :1536]},
        batch(2) | {b"data": pixels(2)[:4]},
        batch(2) | {b"data": pixels(2).astype(np.float64)},
        batch(2) | {b"data": [[1, 2], [3]]},
        batch(2) | {b"data": b"text"},
        batch(2) | {b"labels": labels(2)[:4]},
        batch(2) | {b"labels": [b"cat"] * ROWS},
        batch(2) | {b"labels": [0.5] * ROWS},
        batch(2) | {b"labels": [-1] * ROWS},
        batch(2) | {b"labels": [10] * ROWS},
        batch(2) | {b"labels": 3},
    ],
    ids=[
        "empty", "text", "cut", "list", "no labels", "no data", "narrow", "half as wide", "too few images",
        "float pixels",
        "ragged", "bytes", "too few labels", "names", "float labels", "negative", "above C", "a number",
    ],
)  # fmt: skip
def test_a_damaged_batch_is_told_by_file(tmp_path: Path, content: Any) -> None:
    root = damage(write_cifar10(tmp_path), content)
    with pytest.raises(DataError, match=r"data_batch_2|cifar10 train"):
        _ = opened(root).info


def test_damaged_names_are_told_by_file(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    for meta in ({}, {b"label_names": 3}, {b"label_names": [3]}):
        with pytest.raises(DataError, match=r"batches\.meta"):
            opened(damage(tmp_path, meta, "batches.meta"))


def test_a_missing_file_is_told_with_where_to_point_root(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data_batch_1 is missing\. Set `root` to the folder that holds cifar-10-batches-py"
    ):
        opened(tmp_path)
    with pytest.raises(ConfigError, match=r"split='val' is none of train, test"):
        open_source(source_ref({"use": "cifar10", "root": str(tmp_path), "split": "val"}))


def array_pickle(kind: str, shape: tuple[Any, ...], values: bytes) -> bytes:
    """A batch whose data is an array of any kind, shape and bytes, as a pickle can state it."""
    data = pickle.dumps({b"labels": labels(2), b"data": pixels(2)}, protocol=3)
    data = data.replace(b"X\x02\x00\x00\x00u1", b"X" + struct.pack("<I", len(kind)) + kind.encode())
    old = pickle.dumps((ROWS, 3072), protocol=3)[2:-1].split(b"q")[0]
    assert data.count(old) == 1
    return data.replace(old, pickle.dumps(shape, protocol=3)[2:-1].split(b"q")[0]).replace(pixels(2).tobytes(), values)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("O8", (ROWS, 3072)), ("V8", (ROWS, 384)), ("u1", (2**62, 4)), ("u1", (-1, 3072)), ("u1", (ROWS, 2.0)), ("u2", (ROWS, 1536))],
)  # fmt: skip
def test_an_array_with_pointers_or_a_false_shape_is_refused(tmp_path: Path, kind: str, shape: tuple[Any, ...]) -> None:
    root = damage(write_cifar10(tmp_path), array_pickle("u1", (ROWS, 3072), pixels(2).tobytes()))
    assert len(opened(root).info) == 5 * ROWS
    with pytest.raises(DataError, match=r"data_batch_2 is damaged"):
        opened(damage(root, array_pickle(kind, shape, pixels(2).tobytes())))


def test_bytes_changed_anywhere_are_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(python2_pickle(batch(2, 1) | {b"data": pixels(2, 1)}), np.uint8)
    outcomes = set()
    for _ in range(4000):
        hurt = whole.copy()
        places = rng.choice(np.r_[0:300, len(hurt) - 60 : len(hurt)], 2)
        hurt[places] = rng.integers(0, 256, 2)
        try:
            outcomes.add(type(read_batch(hurt.tobytes())))
        except ValueError:
            outcomes.add(None)
    assert outcomes == {dict, None}
