"""The real data sets, where they are at hand: CIFAR-10, Tiny-ImageNet, full-size ImageNet images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.data.images.pixel_store import decode_range
from unseen_ray.data.sources.registry import open_source, source_ref

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize(
    ("name", "rows", "classes", "size_px", "first_class"),
    [
        ("cifar10-train", 50_000, 10, 32, None),
        ("tinyimagenet50-train", 25_000, 50, 64, "boa constrictor"),
        ("finegrained20-val", 1_000, 20, 64, "Chihuahua"),
        ("imagenet-sample128", 128, 1000, 64, "n01440764"),
    ],
)
def test_a_source_is_what_it_is_said_to_be(
    real_data: Path, name: str, rows: int, classes: int, size_px: int, first_class: str | None
) -> None:
    info = open_source(source_ref(str(real_data / f"{name}.parquet"))).info
    assert (len(info), info.num_classes, info.size_px) == (rows, classes, size_px)
    assert (info.class_names[0] if info.class_names else None) == first_class


def test_every_imagenet_jpeg_decodes_at_full_size(real_data: Path) -> None:
    source = open_source(source_ref({"path": str(real_data / "imagenet-sample128.parquet"), "size": 224}))
    pixels, bad = decode_range(source, range(128), source.info.size_px)
    assert not bad
    assert pixels.shape == (128, 224, 224, 3)
    assert pixels.std(axis=(1, 2, 3)).min() > 5


@pytest.mark.parametrize("size_px", [64, 224])
def test_imagenet_prepared_as_plain_pixels_is_what_it_was(real_data: Path, tmp_path: Path, size_px: int) -> None:
    source = str(real_data / "imagenet-sample128.parquet")
    ur.prepare(source, tmp_path / "raw", kind="raw", size=size_px, shard_mb=2, workers=1)
    before, after = (open_source(source_ref(place)) for place in (source, str(tmp_path / "raw")))
    assert after.info.class_names == before.info.class_names
    assert after.keys([0, 127]) == before.keys([0, 127])
    one, other = (decode_range(each, range(128), size_px)[0] for each in (before, after))
    assert np.array_equal(one, other)


def test_real_images_are_pruned_alike_twice(real_data: Path, tmp_path: Path) -> None:
    source = {"path": str(real_data / "tinyimagenet50-train.parquet"), "limit": 400}
    fields = {"source": source, "keep": 0.7, "folds": 2, "recipe": {"epochs": 2, "min_steps": 0}, "executor": "local"}
    one, other = (ur.prune(ur.PruneConfig(**fields, out=tmp_path / name)) for name in ("one", "other"))
    assert len(one.coreset) == 280
    assert np.array_equal(one.coreset.ids, other.coreset.ids)
    assert (
        one.run.folder.read_table("coreset.parquet")
        .column("key")[0]
        .as_py()
        .startswith("tinyimagenet50-train.parquet:")
    )
