"""A source packed once: every row in its place, the very pixels of a run, nothing made twice, nothing of others touched."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from tests.data.sources.test_cifar import write_cifar10
from tests.plugs import Noise
from tests.s3 import s3_server
from unseen_ray.data.images.pixel_store import decode_range
from unseen_ray.data.prepare import shards
from unseen_ray.data.prepare import workers as workshop
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import BadSampleError, StorageError
from unseen_ray.storage.filesystem import Folder

ROOT = Path(__file__).parents[1]
COUNT = 60
TINY = 3 / 1000  # MB: a few rows of 24 px a file
FAST = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local", "log_to": "none"}


class SlowNoise(Noise):
    """Noise that takes its time."""

    def __getitem__(self, place: int) -> np.ndarray:
        time.sleep(0.02)
        return super().__getitem__(place)


def slow_noise(count: int = 400) -> SlowNoise:
    return SlowNoise(count, 4)


def dying(count: int = 40) -> Noise:
    """A source that takes its process with it, unless it is the one of the test."""
    if os.getpid() != int(os.environ["NOT_TO_DIE"]):
        os._exit(1)
    return Noise(count, 4)


def photos(folder: Path, sizes: tuple[tuple[int, int], ...] = ((40, 30), (30, 50), (24, 24), (90, 20))) -> Path:
    """JPEGs and PNGs of several sizes in class folders."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        width, height = sizes[number % len(sizes)]
        pixels = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height))
        path = folder / ("ant", "bee", "cat")[number % 3] / f"{number:03d}.{'png' if number % 5 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def pixels_of(source: Any, size_px: int) -> np.ndarray:
    opened = open_source(source_ref(source))
    pixels, bad = decode_range(opened, range(len(opened.info)), size_px)
    assert not bad
    return pixels


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def image_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[dict[str, Any]]:
    labels = np.arange(COUNT) % 3
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 24)]
    write_parquet(tmp_path / "two" / "a.parquet", labels[:40], images[:40])
    write_parquet(tmp_path / "two" / "b.parquet", labels[40:], images[40:])
    yield {
        "folder": str(photos(tmp_path / "photos")),
        "parquet": {"path": str(tmp_path / "two"), "limit": 50},
        "digits": {"use": "digits", "limit": 50},
        "cifar10": {"use": "cifar10", "root": str(write_cifar10(tmp_path / "cifar"))},
        "own": {"use": "tests.plugs:noise", "count": 50},
    }


@pytest.mark.parametrize("name", ["folder", "parquet", "digits", "cifar10", "own"])
def test_raw_pixels_are_those_of_a_run_and_rows_keep_their_places(
    name: str, sources: dict[str, Any], tmp_path: Path
) -> None:
    source, out = sources[name], tmp_path / "out"
    before = open_source(source_ref(source))
    prepared = ur.prepare(source, out, size=12, kind="raw", shard_mb=0.01, workers=1)
    assert len(prepared.receipts) > 1
    after = open_source(source_ref(str(out)))
    assert np.array_equal(after.info.labels_N, before.info.labels_N)
    assert (after.info.num_classes, after.info.class_names) == (before.info.num_classes, before.info.class_names)
    assert np.array_equal(pixels_of(str(out), 12), pixels_of(source, 12))
    places = [3, 0, 21, 7]
    assert after.keys(places) == before.keys(places) and after.keys([]) == []
    assert [row["key"] for row in rows_of(out)] == before.keys(range(len(before.info)))
    for row in rows_of(out)[:3]:
        assert (image_of(row["image"]["bytes"]).format, image_of(row["image"]["bytes"]).size) == ("PPM", (12, 12))


def test_a_run_on_raw_pixels_keeps_the_same_samples(tmp_path: Path) -> None:
    source = {"path": str(photos(tmp_path / "photos")), "size": 16}
    ur.prepare(source, tmp_path / "raw", size=16, kind="raw", shard_mb=0.02, workers=1)
    one = ur.prune(ur.PruneConfig(source=source, out=tmp_path / "one", **FAST))
    prepared = {"path": str(tmp_path / "raw"), "size": 16}
    other = ur.prune(ur.PruneConfig(source=prepared, out=tmp_path / "other", **FAST))
    assert np.array_equal(one.coreset.ids, other.coreset.ids)
    keys = [run.run.folder.read_table("coreset.parquet").column("key").to_pylist() for run in (one, other)]
    assert keys[0] == keys[1] and keys[0][0].endswith((".jpg", ".png"))
    for score in ("entropy", "margin", "loss"):
        assert one.scores.column(score).equals(other.scores.column(score))


def test_jpegs_are_upright_rgb_scaled_with_their_aspect_and_never_enlarged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = str(photos(tmp_path / "photos"))
    ur.prepare(source, out, size=24, workers=1)
    before = open_source(source_ref(source))
    for (_, raw), row in zip(before.read(range(COUNT)), rows_of(out), strict=True):
        assert isinstance(raw, bytes)
        old, new = image_of(raw), image_of(row["image"]["bytes"])
        assert (new.format, new.mode) == ("JPEG", "RGB")
        short = min(24, min(old.size))
        assert min(new.size) == short
        assert max(new.size) == round(max(old.size) * short / min(old.size))
        plain = old.format == "JPEG" and min(old.size) <= 24
        assert (row["image"]["bytes"] == raw) == plain
        small = np.asarray(old.resize(new.size, Image.Resampling.BILINEAR), int)
        assert np.abs(small - np.asarray(new, int)).mean() < 20


def jpeg(pixels: np.ndarray, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_jpeg_keeps_its_bytes_only_where_every_reader_sees_the_same(tmp_path: Path) -> None:
    pixels = class_pixels(np.zeros(1, int), 20)[0]
    turned, kept = Image.Exif(), Image.Exif()
    turned[0x0112], kept[0x0112] = 6, 1
    images = {
        "plain": jpeg(pixels),
        "upright by EXIF": jpeg(pixels, exif=kept),
        "turned": jpeg(pixels, exif=turned),
        "grey": jpeg(pixels, "L"),
        "cmyk": jpeg(pixels, "CMYK"),
        "progressive": jpeg(pixels, progressive=True),
        "png": png_bytes(pixels),
        "damaged EXIF": jpeg(pixels, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    }
    data = write_parquet(tmp_path / "data.parquet", np.zeros(len(images), int), list(images.values()))
    ur.prepare(str(data), tmp_path / "out", size=20, workers=1)
    rows = dict(zip(images, (row["image"]["bytes"] for row in rows_of(tmp_path / "out")), strict=True))
    assert {name for name in images if rows[name] == images[name]} == {"plain", "upright by EXIF", "damaged EXIF"}
    assert all("exif" not in image_of(rows[name]).info for name in ("turned", "cmyk", "png"))
    upright = np.rot90(np.asarray(image_of(images["plain"]), int), -1)
    assert np.abs(upright - np.asarray(image_of(rows["turned"]), int)).mean() < 8


def test_files_are_in_the_schema_that_other_readers_know_and_can_be_read_in_parts(tmp_path: Path) -> None:
    source = str(photos(tmp_path / "photos", sizes=((200, 200),)))
    ur.prepare(source, tmp_path / "raw", size=150, kind="raw", workers=1)
    (path,) = (tmp_path / "raw").glob("*.parquet")
    file = pq.ParquetFile(path)
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]}
    assert str(file.schema_arrow.field("image").type) == "struct<bytes: binary, path: string>"
    groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
    assert len(groups) == 1  # 4 MB
    assert {group.column(0).compression for group in groups} == {"UNCOMPRESSED"}
    ur.prepare({"use": "digits", "limit": 300}, tmp_path / "digits", size=8, kind="raw", workers=1)
    small = pq.ParquetFile(tmp_path / "digits" / "part-00000.parquet").metadata
    assert [small.row_group(place).num_rows for place in range(small.num_row_groups)] == [128, 128, 44]
    ur.prepare({"use": "tests.plugs:noise", "count": 40}, tmp_path / "large", size=256, kind="raw", workers=1)
    large = pq.ParquetFile(tmp_path / "large" / "part-00000.parquet").metadata
    assert [large.row_group(place).num_rows for place in range(large.num_row_groups)] == [22, 18]
    own = json.loads(pq.read_schema(tmp_path / "large" / "part-00000.parquet").metadata[b"huggingface"])
    assert own["info"]["features"]["label"] == {"_type": "Value", "dtype": "int64"}


def test_the_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    source = str(photos(tmp_path / "photos"))
    events: list[Any] = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        ur.prepare(source, out, size=24, shard_mb=TINY, workers=workers, on_event=events.append)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) > 5
    last = events[-1]
    assert (last.rows_done, last.rows_made, last.shards_done) == (COUNT, COUNT, last.shards)


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "unseen_ray", "prepare", *map(str, args)]


@pytest.mark.slow
def test_what_is_killed_goes_on_with_what_was_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = command("tests.test_prepare:slow_noise", "--out", out, "--size", 8, "--shard_mb", 0.004, "--workers", 2)
    line += ["--as", "raw"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(receipts := sorted((out / "_preparing").glob("part-*.json"))) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    process.communicate()
    assert len(children) >= 2 and not alive
    receipts = sorted((out / "_preparing").glob("part-*.json"))
    finished = {path.stem: (out / path.stem).stat() for path in receipts}
    assert len(finished) >= 4 and not (out / "prepared.json").exists()
    with pytest.raises(ur.DataError, match="is not fully prepared: samples are missing"):
        open_source(source_ref(str(out)))
    done = subprocess.run([*line, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    values = json.loads(done.stdout)
    assert values["shards_made"] == values["shards"] - len(finished) > 0
    for name, before in finished.items():
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    ur.prepare("tests.plugs:noise", tmp_path / "whole", size=8, kind="raw", workers=1)
    assert np.array_equal(pixels_of(str(out), 8), pixels_of(str(tmp_path / "whole"), 8)[:400])
    assert {path.suffix for path in out.iterdir()} == {".parquet", ".json"}


def test_only_what_is_damaged_or_missing_is_made_again(tmp_path: Path) -> None:
    source, out = str(photos(tmp_path / "photos")), tmp_path / "out"
    first = ur.prepare(source, out, size=24, shard_mb=TINY, workers=1)
    whole = contents(out)
    damaged, missing = out / "part-00001.parquet", out / "part-00003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    missing.unlink()
    with pytest.raises(ur.DataError, match=r"lacks 1 of its \d+ files, such as part-00003\.parquet"):
        open_source(source_ref(str(out)))
    again = ur.prepare(source, out, size=24, shard_mb=TINY, workers=1)
    assert [r.name for r in again.receipts if not r.reused] == [damaged.name, missing.name]
    assert contents(out) == whole
    assert all(r.reused for r in ur.prepare(source, out, size=24, shard_mb=99, workers=1).receipts)
    assert [r.rows for r in first.receipts] == [r.rows for r in again.receipts]


def test_a_sample_that_cannot_be_decoded_stops_it_or_keeps_its_row(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    hurt = root / "bee" / "001.jpg"
    hurt.write_bytes(hurt.read_bytes()[:300])
    out = tmp_path / "out"
    with pytest.raises(BadSampleError, match=r"sample bee/001\.jpg cannot be decoded: .*on_bad_sample: skip"):
        ur.prepare(str(root), out, size=24, shard_mb=TINY, workers=2)
    prepared = ur.prepare(str(root), out, size=24, shard_mb=TINY, workers=2, on_bad_sample="skip")
    (bad,) = prepared.bad
    assert bad.key == "bee/001.jpg" and "truncated" in bad.reason.lower()
    rows = rows_of(out)
    assert [number for number, row in enumerate(rows) if not row["image"]["bytes"]] == [bad.id]
    assert len(rows) == COUNT and rows[bad.id]["key"] == bad.key
    manifest = json.loads((out / "prepared.json").read_text())
    assert [sample["id"] for shard in manifest["shards"] for sample in shard["bad"]] == [bad.id]
    result = ur.prune(ur.PruneConfig(source=str(out), out=tmp_path / "run", on_bad_sample="skip", **FAST))
    assert result.manifest.source["skipped"] == [bad.key]
    with pytest.raises(BadSampleError, match=r"bee/001\.jpg"):
        ur.prepare(str(root), out, size=24, shard_mb=TINY, workers=1)


def refused(error: type[Exception], message: str, source: Any, out: Path, **options: Any) -> None:
    with pytest.raises(error, match=message):
        ur.prepare(source, out, **{"workers": 1, "size": 24, **options})


def test_a_folder_that_holds_anything_else_is_left_alone(tmp_path: Path) -> None:
    source, out = str(photos(tmp_path / "photos")), tmp_path / "out"
    other = str(photos(tmp_path / "others"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "part-00000.parquet").write_text("mine")
    refused(ur.ConfigError, r"holds part-00000\.parquet, which `prepare` did not make", source, tmp_path / "mine")
    refused(ur.ConfigError, "is a file. Name a folder", source, tmp_path / "mine" / "part-00000.parquet")
    refused(ur.ConfigError, "lies in the source .*photos and would change it", source, tmp_path / "photos" / "x")
    ur.prepare(source, out, size=24, workers=1)
    whole = contents(out)
    refused(
        ur.ConfigError, "holds this source as jpeg of 24 px, quality 90, not as jpeg of 25 px", source, out, size=25
    )
    refused(ur.ConfigError, "quality 90, not as jpeg of 24 px, quality 80", source, out, quality=80)
    refused(ur.ConfigError, "not as raw of 24 px", source, out, kind="raw")
    refused(ur.ConfigError, "holds another source, .*photos, not .*others", {"path": other, "limit": 9}, out)
    (tmp_path / "photos" / "ant" / "999.jpg").write_bytes(jpeg(class_pixels(np.zeros(1, int), 20)[0]))
    refused(ur.DataError, "photos has changed since .* was begun: it had 60 samples and now has 61", source, out)
    assert contents(out) == whole
    (out / "notes.txt").write_text("mine")
    refused(ur.ConfigError, r"holds notes\.txt, which", source, out)
    (out / "notes.txt").unlink()
    (out / "prepared.json").write_text("{}")
    refused(StorageError, r"prepared\.json is damaged: its schema_version is None", source, out)


def test_what_cannot_be_asked_for_is_said_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError) as caught:
        ur.prepare("digits", tmp_path / "x", size=0, kind="rwa", quality=101, shard_mb=0, workers=0, on_bad_sample="no")
    said = str(caught.value)
    for part in ("size=0", "as='rwa' is none of", "Did you mean 'raw'?", "quality=101", "shard_mb=0", "workers=0"):
        assert part in said
    assert "on_bad_sample='no' must be error or skip" in said
    refused(ur.ConfigError, "quality=80 has no effect on raw pixels", "digits", tmp_path / "x", kind="raw", quality=80)
    refused(ur.ConfigError, "'digitz' is not a source", "digitz", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_function_that_no_other_process_can_import_needs_one_worker(tmp_path: Path) -> None:
    def here() -> Noise:
        return Noise(40, 4)

    options = {"size": 8, "kind": "raw", "shard_mb": 0.001}
    refused(
        ur.ConfigError, "cannot be sent to other processes: .*workers: 1", here, tmp_path / "x", **options, workers=2
    )
    assert ur.prepare(here, tmp_path / "y", **options, workers=1).num_samples == 40


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_TO_DIE", str(os.getpid()))
    message = "a process that prepares images died. .* fewer workers .*run the same line again"
    options = {"size": 8, "kind": "raw", "shard_mb": 0.001, "workers": 2}
    refused(ur.UnseenError, message, "tests.test_prepare:dying", tmp_path / "x", **options)


def test_a_source_that_changes_under_way_is_noticed(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    source, other = parquet_file(count=40), parquet_file(count=41, name="other.parquet")
    work = shards.ShardJob(
        ref=source_ref(str(other)),
        fingerprint=open_source(source_ref(str(source))).info.fingerprint,
        form=shards.Form(kind="raw", size_px=8, quality=None),
        folder=Folder(str(tmp_path / "x")),
        skip=False,
    )
    shard = shards.Shard(name="part-00000.parquet", start=0, stop=40)
    with pytest.raises(ur.DataError, match="changed while it was prepared"):
        list(workshop.made_by(1, work, [(shard, None)]))


@pytest.mark.slow
def test_from_object_storage_to_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos")
    with s3_server(monkeypatch):
        for path in root.rglob("*.*"):
            Folder("s3://runs/photos").write(str(path.relative_to(root)), path.read_bytes())
        options = {"size": 16, "kind": "raw", "shard_mb": 0.02}
        ur.prepare("s3://runs/photos", "s3://runs/prepared", workers=2, **options)
        ur.prepare(str(root), tmp_path / "local", workers=1, **options)
        assert np.array_equal(pixels_of("s3://runs/prepared", 16), pixels_of(str(tmp_path / "local"), 16))
        assert not [name for name in Folder("s3://runs/prepared").files() if "_preparing" in name]
        again = ur.prepare("s3://runs/photos", "s3://runs/prepared", workers=1, **options)
        assert all(receipt.reused for receipt in again.receipts)
