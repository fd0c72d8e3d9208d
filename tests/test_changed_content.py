"""A source whose bytes change under the same names and sizes: refused, decoded anew, or warned of, and never served from before."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

import unseen_ray as ur
from tests.conftest import class_pixels
from unseen_ray.data.listing.content import sample_of_bytes
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.runs.manifest_entries import Receipt

FAST = {"epochs": 1, "min_steps": 0}


def write_tree(root: Path, seed: int) -> None:
    """40 images as BMP, whose size does not depend on what they show."""
    from PIL import Image

    labels = np.arange(40) % 2
    for number, (label, pixels) in enumerate(zip(labels, class_pixels(labels, 8, seed), strict=True)):
        (root / "ab"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "ab"[label] / f"{number}.bmp")


def write_table(path: Path, seed: int) -> None:
    labels = np.arange(40) % 2
    images = [b"P6\n8 8\n255\n" + pixels.tobytes() for pixels in class_pixels(labels, 8, seed)]
    table = pa.table({"image": images, "label": labels})
    path.mkdir(exist_ok=True)
    pq.write_table(table, path / "a.parquet", compression="none", use_dictionary=False, write_statistics=False)


WRITERS = {"folder": write_tree, "parquet": write_table}


def config(data: Path, out: Path, **fields: Any) -> ur.PruneConfig:
    return ur.PruneConfig(
        source=str(data), keep=0.5, folds=2, recipe=FAST, executor="local", holdout=0.2, out=out, **fields
    )


def keep_times(data: Path, times: dict[Path, int]) -> None:
    for path, time_ns in times.items():
        os.utime(path, ns=(time_ns, time_ns))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_change_while_a_run_reads_ends_it(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    WRITERS[kind](data, 0)
    lazy = {"pixel_memory_gb": 0, "pixel_folder": "none"}
    whole = ur.prune(config(data, tmp_path / "whole", **lazy))
    seen: list[Any] = []

    def change(event: Any) -> None:
        seen.append(event)
        if isinstance(event, Receipt) and event.index == 0:
            WRITERS[kind](data, 1)

    with pytest.raises(ur.DataError, match=r"changed while the run read it.* Restore the data"):
        ur.prune(config(data, tmp_path / "run", **lazy), on_event=change)
    assert any(isinstance(event, Receipt) for event in seen)
    WRITERS[kind](data, 0)
    with pytest.raises(ur.ConfigError, match="finished"):
        ur.load(tmp_path / "run")
    fresh = ur.prune(config(data, tmp_path / "run", **lazy), fresh=True)
    assert fresh.coreset.ids.tolist() == whole.coreset.ids.tolist()


@pytest.mark.parametrize("kind", WRITERS)
def test_other_bytes_of_the_same_size_are_noticed_wherever_a_run_meets_them(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    WRITERS[kind](data, 0)
    before = open_source(source_ref(str(data))).info
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    result = ur.prune(config(data, tmp_path / "run"))
    WRITERS[kind](data, 1)
    keep_times(data, times)
    after = open_source(source_ref(str(data))).info
    assert before.fingerprint == after.fingerprint and before.times == after.times and before.sample != after.sample
    with pytest.raises(ur.ConfigError, match="the data itself"):
        ur.prune(config(data, tmp_path / "run"))
    with pytest.raises(ur.DataError, match="has changed since the run"):
        ur.export(result, tmp_path / "kept")
    with pytest.raises(ur.DataError, match="has changed since the run"):
        ur.torch_subset(result)
    with pytest.raises(ur.ConfigError, match="labels, names or pixels differ"):
        ur.evaluate(result, seeds=1, against=())
    with pytest.raises(ur.ConfigError, match="before the content of its files changed"):
        ur.prune(config(data, tmp_path / "other", reuse=[str(tmp_path / "run")]))
    WRITERS[kind](data, 0)
    assert ur.prune(config(data, tmp_path / "run")).coreset.ids.tolist() == result.coreset.ids.tolist()


def test_one_image_of_many_that_a_sample_misses_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path / "data", 0)
    for number in range(40, 400):
        (tmp_path / "data" / "b" / f"{number}.bmp").write_bytes((tmp_path / "data" / "b" / "1.bmp").read_bytes())
    result = ur.prune(config(tmp_path / "data", tmp_path / "run"))
    assert "modified since" not in caplog.text
    keys = open_source(source_ref(str(tmp_path / "data"))).keys(range(400))
    probed = set(np.linspace(0, 399, 64).astype(int).tolist())
    unread = next(key for number, key in enumerate(keys) if number not in probed)
    path = tmp_path / "data" / unread
    path.write_bytes(path.read_bytes()[:-3] + b"\1\2\3")
    ur.export(result, tmp_path / "kept")
    assert "were modified since the run began" in caplog.text


def test_a_copy_with_other_times_is_the_same_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path / "data", 0)
    first = ur.prune(config(tmp_path / "data", tmp_path / "run"))
    for path in (tmp_path / "data").rglob("*.bmp"):
        os.utime(path, ns=(10**18, 10**18))
    assert ur.prune(config(tmp_path / "data", tmp_path / "run")).coreset.ids.tolist() == first.coreset.ids.tolist()
    assert "A sample of their bytes is the same" in caplog.text


def test_a_shared_pixel_folder_does_not_serve_pixels_of_before(tmp_path: Path) -> None:
    fields = {"pixel_folder": str(tmp_path / "pixels"), "pixel_memory_gb": 0}
    kept = []
    for seed, out in ((0, "a"), (1, "b"), (1, "c")):
        write_tree(tmp_path / "data", seed)
        extra = {} if out == "c" else fields
        kept.append(ur.prune(config(tmp_path / "data", tmp_path / out, **extra)).scores.column("entropy").to_pylist())
    assert kept[1] == kept[2] != kept[0]


def test_runs_of_before_say_nothing_of_content_and_are_taken_as_they_are(tmp_path: Path) -> None:
    write_tree(tmp_path / "data", 0)
    entry = ur.prune(config(tmp_path / "data", tmp_path / "run")).manifest.source
    info = open_source(source_ref(str(tmp_path / "data"))).info
    assert entry.is_same_data(info)
    assert entry.model_copy(update={"sample": "", "times": ""}).is_same_data(info)
    assert not entry.model_copy(update={"sample": "0" * 64}).is_same_data(info)


def test_an_evaluation_is_made_anew_where_the_test_set_shows_something_else(tmp_path: Path) -> None:
    write_tree(tmp_path / "data", 0)
    result = ur.prune(config(tmp_path / "data", tmp_path / "run"))
    trained: list[str] = []

    def evaluate() -> list[float]:
        trained.clear()
        arms = ur.evaluate(
            result,
            test=str(tmp_path / "test"),
            seeds=2,
            against=(),
            on_event=lambda event: trained.append(type(event).__name__),
        ).arms
        return arms[0].accuracies

    write_tree(tmp_path / "test", 0)
    first = evaluate()
    assert trained.count("EvalResult") == 2
    assert evaluate() == first and trained.count("EvalResult") == 0
    rng = np.random.default_rng(0)
    for path in (tmp_path / "test").rglob("*.bmp"):
        path.write_bytes(path.read_bytes()[:54] + rng.bytes(8 * 8 * 3))
    evaluate()
    assert trained.count("EvalResult") == 2


def test_another_column_of_images_is_other_data(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    left, right = (
        [b"P6\n8 8\n255\n" + pixels.tobytes() for pixels in class_pixels(labels, 8, seed)] for seed in range(2)
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"left": left, "right": right, "label": labels}), path)
    done = ur.prune(config(path, tmp_path / "run").changed(source={"path": str(path), "image": "left"}))
    other = config(path, tmp_path / "run").changed(source={"path": str(path), "image": "right"})
    with pytest.raises(ur.ConfigError, match="differs in the data itself"):
        ur.prune(other)
    with pytest.raises(ur.ConfigError, match="reuse"):
        ur.prune(other.changed(out=str(tmp_path / "again"), reuse=[done.path]))
    # The first one keeps the digest that runs of before hold.
    info = open_source(source_ref({"path": str(path), "image": "left"})).info
    assert info.sample == sample_of_bytes(LocalFileSystem(), [str(path)], [path.stat().st_size])


def test_another_image_of_the_samples_of_a_tar_is_other_data(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            for ending, data in {
                "left.ppm": b"P6 1 1 255 abc",
                "right.ppm": b"P6 1 1 255 def",
                "cls": b"%d" % number,
            }.items():
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    left, right = (
        open_source(source_ref({"path": str(path), "image": f"{side}.ppm"})).info for side in ("left", "right")
    )
    assert left.sample == sample_of_bytes(LocalFileSystem(), [str(path)], [path.stat().st_size])
    assert right.sample != left.sample


def test_a_run_is_not_resumed_with_images_of_another_size(tmp_path: Path) -> None:
    write_tree(data := tmp_path / "data", 0)
    ur.prune(config(data, tmp_path / "run"))
    with pytest.raises(ur.ConfigError, match="the size of the images: 8 px there, 16 px here"):
        ur.prune(config(data, tmp_path / "run").changed(source={"path": str(data), "size": 16}))


def test_a_function_that_was_edited_since_a_run_began_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "edited_score.py"
    code.write_text("def gap(log_probs_NC, labels_N):\n    return -log_probs_NC.max(axis=1)\n")
    write_tree(data := tmp_path / "data", 0)
    asked = config(data, tmp_path / "run", score="edited_score:gap", policy="top")

    def interrupt(event: Any) -> None:
        if isinstance(event, Receipt):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(asked, on_event=interrupt)
    code.write_text(code.read_text() + "\n\nOTHER = 1\n")
    ur.prune(asked)
    assert "edited" not in caplog.text
    code.write_text(code.read_text().replace("-log", "log"))
    for again in (asked, asked.changed(out=str(tmp_path / "other"), reuse=[str(tmp_path / "run")])):
        caplog.clear()
        ur.prune(again)
        assert f"edited_score:gap was edited since the run in {tmp_path / 'run'} began" in caplog.text
