"""Decoded pixels in files: the same images as in memory, each decoded once, damage found, little memory taken."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from tests.s3 import s3_server
from unseen_ray.data.images import loading, pixel_files
from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.data.images.pixel_files import FilePixelStore, PixelFiles, write_file
from unseen_ray.data.images.pixel_store import LazyPixelStore, MemoryPixelStore
from unseen_ray.data.images.prefetch import fetched_ahead
from unseen_ray.data.sources.registry import Source, open_source, source_ref
from unseen_ray.errors import BadSampleError, StorageError

COUNT, SIZE = 100, 10
BAD = {3: b"", 71: b"no image at all"}
FIELDS: dict[str, Any] = {
    "keep": 0.6,
    "schedule": [0.4, 0.6],
    "recipe": {"epochs": 2, "min_steps": 0},
    "executor": "local",
}


def source_of(folder: Path, bad: dict[int, bytes] | None = None) -> Source:
    labels = np.arange(COUNT) % 7
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 12)]
    for row, data in (bad or {}).items():
        images[row] = data
    return open_source(source_ref(str(write_parquet(folder / "a.parquet", labels, images))))


class Counting:
    """A source that counts how often each row is read."""

    def __init__(self, source: Source) -> None:
        self._source, self.reads = source, np.zeros(COUNT, int)
        self.info, self.keys = source.info, source.keys

    def read(self, ids: Sequence[int]) -> Iterator[Any]:
        np.add.at(self.reads, np.asarray(ids), 1)
        return self._source.read(ids)


def files_in(folder: Path) -> PixelFiles:
    return PixelFiles(folder=str(folder / "pixels"), num_samples=COUNT, size_px=SIZE)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Counting, PixelFiles]:
    source, files = Counting(source_of(tmp_path)), files_in(tmp_path)
    load_pixel_store(source, SIZE, files=files)
    return source, files


def test_images_are_those_of_memory_for_any_order_of_ids(kept: tuple[Counting, PixelFiles]) -> None:
    source, files = kept
    memory, _ = load_pixel_store(source, SIZE)
    pixel_store, rng = FilePixelStore(files), np.random.default_rng(0)
    assert pixel_store.size_px == SIZE
    orders = [
        np.arange(COUNT),
        rng.permutation(COUNT),
        rng.integers(0, COUNT, 250),
        np.array([99]),
        np.array([5, 5, 4]),
    ]
    for ids in (*orders, np.array([], np.int64)):
        assert np.array_equal(pixel_store.images(ids), memory.images(ids))
        assert pixel_store.images(ids).shape == (len(ids), SIZE, SIZE, 3)


def test_rows_are_spread_over_files_that_hold_them_once() -> None:
    small = PixelFiles(folder="x", num_samples=COUNT, size_px=SIZE)
    assert small.ranges()[0] == (0, 13) and small.ranges()[-1] == (91, 100) and len(small.ranges()) == 8
    large = PixelFiles(folder="x", num_samples=1_281_167, size_px=224)
    assert large.rows_each * large.image_bytes <= 64 << 20 < (large.rows_each + 1) * large.image_bytes
    assert PixelFiles(folder="x", num_samples=3, size_px=9000).rows_each == 1


def test_each_image_is_decoded_once_however_often_it_is_read(kept: tuple[Counting, PixelFiles]) -> None:
    source, files = kept
    assert (source.reads == 1).all()
    for _ in range(3):
        pixel_store, _ = load_pixel_store(source, SIZE, files=files)
        pixel_store.images(np.arange(COUNT))
    assert (source.reads == 1).all()


@pytest.mark.parametrize("damage", ["flip a byte", "cut short", "remove", "no JSON", "remove the JSON"])
def test_a_damaged_file_is_decoded_anew_and_no_other(kept: tuple[Counting, PixelFiles], damage: str) -> None:
    source, files = kept
    path = Path(files.folder) / files.name(2)
    data = bytearray(path.read_bytes())
    if damage == "flip a byte":
        data[100] ^= 1
        path.write_bytes(data)
    elif damage == "cut short":
        path.write_bytes(data[:-1])
    elif damage == "remove":
        path.unlink()
    elif damage == "no JSON":
        path.with_suffix(".json").write_text("[")
    else:
        path.with_suffix(".json").unlink()
    pixel_store, _ = load_pixel_store(source, SIZE, files=files)
    start, stop = files.ranges()[2]
    assert np.flatnonzero(source.reads == 2).tolist() == list(range(start, stop))
    assert np.array_equal(
        pixel_store.images(np.arange(COUNT)), load_pixel_store(source, SIZE)[0].images(np.arange(COUNT))
    )


def test_bad_samples_are_told_and_known_again(tmp_path: Path) -> None:
    source, files = Counting(source_of(tmp_path, BAD)), files_in(tmp_path)
    with pytest.raises(
        BadSampleError, match=r"sample a\.parquet:3 cannot be decoded: it is empty\. So are a\.parquet:71"
    ):
        load_pixel_store(source, SIZE, files=files)
    for _ in range(2):
        _, skipped = load_pixel_store(source, SIZE, on_bad_sample="skip", files=files)
        assert skipped.tolist() == sorted(BAD)
    assert (source.reads == 1).all()


@pytest.mark.parametrize("short", [True, False])
def test_files_that_go_away_are_told_of(kept: tuple[Counting, PixelFiles], short: bool) -> None:
    _, files = kept
    path = Path(files.folder) / files.name(0)
    path.write_bytes(path.read_bytes()[:50]) if short else path.unlink()
    reason = r"it has \d+ bytes, and \d+ were written" if short else "no such file"
    with pytest.raises(StorageError, match=rf"00000\.pixels cannot be read: .*{reason}.* Run the same\s+line again"):
        FilePixelStore(files).images(np.array([4]))


@pytest.mark.parametrize("opened", [True, False])
def test_a_file_that_something_overwrites_is_refused(kept: tuple[Counting, PixelFiles], opened: bool) -> None:
    source, files = kept
    path, pixel_store, ids = Path(files.folder) / files.name(0), FilePixelStore(files), np.array([4])
    expected = load_pixel_store(source, SIZE)[0].images(ids)
    if opened:
        assert np.array_equal(pixel_store.images(ids), expected)
    path.write_bytes(data := path.read_bytes())  # newer, but the same: no reason to stop
    assert np.array_equal(pixel_store.images(ids), expected)
    path.write_bytes(bytes(reversed(data)))
    with pytest.raises(StorageError, match="something changed it after its images were decoded"):
        (pixel_store if opened else FilePixelStore(files)).images(ids)
    load_pixel_store(source, SIZE, files=files)
    assert np.array_equal(FilePixelStore(files).images(ids), expected)


def test_few_files_are_open_at_a_time_though_threads_read_all(
    kept: tuple[Counting, PixelFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, files = kept
    monkeypatch.setattr(pixel_files, "_OPEN_FILES", 2)
    pixel_store, expected = FilePixelStore(files), load_pixel_store(source, SIZE)[0].images(np.arange(COUNT))
    orders = [np.random.default_rng(seed).permutation(COUNT) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for ids, images in zip(orders, pool.map(pixel_store.images, orders), strict=True):
            assert np.array_equal(images, expected[ids])
    own = os.path.realpath(files.folder)  # pixel files of other tests may not have been closed yet
    open_now = [link for link in Path("/proc/self/fd").iterdir() if str(link.resolve()).startswith(own)]
    assert len(open_now) <= 2


def test_files_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path)
    files = PixelFiles(folder="s3://runs/pixels", num_samples=COUNT, size_px=SIZE)
    ids = np.random.default_rng(0).permutation(COUNT)
    with s3_server(monkeypatch):
        pixel_store, _ = load_pixel_store(source, SIZE, files=files)
        assert np.array_equal(pixel_store.images(ids), load_pixel_store(source, SIZE)[0].images(ids))
        counting = Counting(source)
        assert write_file(files, counting, 0) == []
        assert not counting.reads.any()


def test_batches_are_fetched_ahead_within_bounds() -> None:
    fetched: list[int] = []
    hold = threading.Event()

    class Watched:
        size_px = 2

        def images(self, ids_B: np.ndarray, out: np.ndarray) -> np.ndarray:
            fetched.append(int(ids_B[0]))
            out[:] = ids_B[0]
            return out

    batches = [np.array([number] * 4) for number in range(100)]
    stream = fetched_ahead(Watched(), batches)
    assert next(stream)[0, 0, 0, 0] == 0
    hold.wait(0.2)
    assert len(fetched) == 9  # the one in use and eight that wait
    assert [int(images[0, 0, 0, 0]) for images in stream] == list(range(1, 100))
    assert sorted(fetched) == list(range(100))
    assert list(fetched_ahead(Watched(), [])) == []


def test_fetched_images_use_the_memory_of_those_before_the_last(kept: tuple[Counting, PixelFiles]) -> None:
    source, files = kept
    expected = load_pixel_store(source, SIZE)[0].images(np.arange(COUNT))
    rng, used = np.random.default_rng(0), set()
    batches = [rng.permutation(COUNT)[:size] for size in [20] * 30 + [7]]
    for store in (FilePixelStore(files), MemoryPixelStore(expected), LazyPixelStore(source, SIZE)):
        for ids, images in zip(batches, fetched_ahead(store, batches), strict=True):
            assert np.array_equal(images, expected[ids])
            used.add((type(store), images.__array_interface__["data"][0]))
    assert len(used) == 3 * 9


def test_many_threads_read_where_each_read_takes_long(
    kept: tuple[Counting, PixelFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reading, most, counted = os.preadv, 0, 0, threading.Lock()

    def slow(*given: Any) -> int:
        nonlocal reading, most
        with counted:
            reading += 1
            most = max(most, reading)
        time.sleep(0.005)
        with counted:
            reading -= 1
        return read(*given)

    monkeypatch.setattr(os, "preadv", slow)
    store, ids = FilePixelStore(kept[1]), np.random.default_rng(0).permutation(COUNT)
    store.images(ids)
    assert 8 <= most <= pixel_files._MOST_THREADS
    most = 0
    store._latencies.extend([0.00005] * pixel_files._REMEMBERED)  # as of a local disk
    store.images(ids)
    assert most == 1


def test_an_error_while_fetching_reaches_whoever_reads(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        list(fetched_ahead(FilePixelStore(files_in(tmp_path)), [np.array([1])]))


def test_a_run_beyond_memory_keeps_what_one_in_memory_keeps(tmp_path: Path) -> None:
    source = str(tmp_path / "a.parquet")
    source_of(tmp_path)
    inside = ur.prune(ur.PruneConfig(source=source, out=tmp_path / "inside", **FIELDS))
    beyond = ur.prune(ur.PruneConfig(source=source, out=tmp_path / "beyond", pixel_memory_gb=0, **FIELDS))
    assert beyond.coreset.ids.tolist() == inside.coreset.ids.tolist()
    assert beyond.scores == inside.scores
    assert not (tmp_path / "beyond" / "pixels").exists()  # its own, and finished
    named = tmp_path / "kept"
    for name in ("one", "two"):
        ur.prune(ur.PruneConfig(source=source, out=tmp_path / name, pixel_memory_gb=0, pixel_folder=named, **FIELDS))
        heads = list(named.rglob("*.json"))
        assert len(heads) == 8 and json.loads(heads[0].read_text())["bad"] == []
    lazy = ur.prune(
        ur.PruneConfig(source=source, out=tmp_path / "lazy", pixel_memory_gb=0, pixel_folder="none", **FIELDS)
    )
    assert lazy.coreset.ids.tolist() == inside.coreset.ids.tolist()


READS: Counter[tuple[str, int]] = Counter()


class Noted:
    """A user's source of striped images in two classes, whose reads are counted."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self.labels, self.keys = name, np.arange(count) % 2, [f"{name}{row}" for row in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> np.ndarray:
        READS[self._name, row] += 1
        return class_pixels(self.labels[row : row + 1], SIZE)[0]


def test_a_test_set_beyond_memory_is_decoded_once_for_all_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "fits_in_memory", lambda *sizes: False)  # as of one larger than any limit
    source, test = (
        {"use": "tests.data.test_pixel_files:Noted", "name": name, "count": count}
        for name, count in (("train", 60), ("test", 40))
    )
    config = ur.PruneConfig(source=source, **FIELDS, folds=2, pixel_memory_gb=0, out=str(tmp_path))
    result = ur.prune(config)
    READS.clear()
    assert ur.evaluate(result, test=test, seeds=3, against=["random"]).test_samples == 40
    # some are also read to tell one source from another
    assert sorted(READS["test", row] for row in range(40))[20] == 1
    assert not (tmp_path / "pixels").exists()


def test_too_small_a_disk_is_told_of_and_images_are_decoded_at_every_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from unseen_ray.execution import pixel_cache

    source_of(tmp_path)
    monkeypatch.setattr(pixel_cache, "_SPARE", 1 << 62)
    fields = {**FIELDS, "pixel_memory_gb": 0, "out": tmp_path / "run"}
    ur.prune(ur.PruneConfig(source=str(tmp_path / "a.parquet"), **fields))
    assert "images are decoded whenever they are read. Free space, or name another disk by pixel_folder" in caplog.text


def test_an_image_that_is_not_there_is_no_other_image() -> None:
    held = MemoryPixelStore(np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, axis=3))
    out = np.empty((2, 1, 1, 3), np.uint8)
    assert held.images(np.array([2, 0]), out)[:, 0, 0, 0].tolist() == [2, 0]
    for ids in ([1, 3], [-1, 0]):
        with pytest.raises(IndexError, match="of 3 images"):
            held.images(np.array(ids), out)
