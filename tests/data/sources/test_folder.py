"""Class-per-folder sources: classes by name, images by path, nothing else counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import class_pixels, png_bytes
from unseen_ray.data.listing.image_files import IMAGE_ENDINGS
from unseen_ray.data.sources.folder import FolderSource
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import DataError

MakeFolder = Callable[..., Path]


def image(seed: int = 0, size_px: int = 8) -> bytes:
    return png_bytes(class_pixels(np.zeros(1, int), size_px, seed)[0])


def put(root: Path, *names: str, size_px: int = 8) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(number, size_px))
    return root


def opened(path: Path | str, **options: Any) -> FolderSource:
    return FolderSource(path=str(path), **options)


def test_classes_are_folders_by_name_and_ids_are_paths_in_order(image_folder: MakeFolder) -> None:
    source = opened(image_folder(per_class=3, classes=("dog", "cat", "owl")))
    assert source.info.class_names == ("cat", "dog", "owl") and source.info.num_classes == 3
    assert source.info.labels_N.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert source.info.labels_N.dtype == np.int64
    assert source.keys(range(9))[:4] == ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png"]


def test_labels_agree_with_torchvision(image_folder: MakeFolder) -> None:
    from torchvision.datasets import ImageFolder

    root = image_folder(per_class=3, classes=("b", "B", "a b", "a", "Ä", "10", "9"))
    theirs = ImageFolder(str(root))
    ours = opened(root)
    assert list(ours.info.class_names) == theirs.classes
    by_path = {str(Path(path).relative_to(root)): label for path, label in theirs.samples}
    keys = ours.keys(range(len(ours.info)))
    assert dict(zip(keys, ours.info.labels_N.tolist(), strict=True)) == by_path


def test_bytes_come_back_for_rising_and_for_random_ids(image_folder: MakeFolder) -> None:
    root = image_folder(per_class=4)
    source = opened(root)
    for ids in (np.arange(8), np.random.default_rng(0).permutation(8), np.array([3, 3, 0])):
        read = list(source.read(ids))
        assert [number for number, _ in read] == ids.tolist()
        assert [raw for _, raw in read] == [(root / key).read_bytes() for key in source.keys(ids)]


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "cat/tabby/1.png", "cat/0.png", "dog/a/b/c/2.png")
    source = opened(tmp_path)
    assert source.keys(range(3)) == ["cat/0.png", "cat/tabby/1.png", "dog/a/b/c/2.png"]
    assert source.info.labels_N.tolist() == [0, 0, 1]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "cat/.1.png", "cat/.cache/2.png", ".git/3.png", "dog/4.png")
    source = opened(tmp_path)
    assert source.keys(range(len(source.info))) == ["cat/0.png", "dog/4.png"]
    assert source.info.class_names == ("cat", "dog")


def test_endings_count_in_upper_case_too(tmp_path: Path) -> None:
    names = sorted(f"cat/{place:02d}{ending.upper()}" for place, ending in enumerate(IMAGE_ENDINGS))
    put(tmp_path, *names, "dog/a.Png")
    assert len(names) > 5
    assert opened(tmp_path).keys(range(len(names) + 1)) == [*names, "dog/a.Png"]


def test_a_class_without_images_keeps_its_number(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "c/1.png")
    (tmp_path / "b").mkdir()
    info = opened(tmp_path).info
    assert info.num_classes == 3 and info.labels_N.tolist() == [0, 2]


def test_no_images_in_class_folders_are_told_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images in class folders\. Expected .*/<class>/<image>"):
        opened(tmp_path)
    put(tmp_path, "0.png", "1.png")
    with pytest.raises(DataError, match=r"2 images lie directly in it, without a class"):
        opened(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"holds no images in class folders"):
        opened(tmp_path)


def test_what_does_not_exist_is_told_by_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source .*/nosuch cannot be listed"):
        opened(tmp_path / "nosuch")


def test_an_image_that_vanished_is_told_by_path(image_folder: MakeFolder) -> None:
    root = image_folder()
    source = opened(root)
    (root / "cat" / "001.png").unlink()
    with pytest.raises(DataError, match=r"cat/001\.png cannot be read"):
        list(source.read([1]))


@pytest.mark.parametrize("limit", [1, 5, 7, 100])
def test_limit_takes_the_first_paths_and_keeps_the_classes(image_folder: MakeFolder, limit: int) -> None:
    root = image_folder(per_class=5)
    info = opened(root, limit=limit).info
    assert info.labels_N.tolist() == ([0] * 5 + [1] * 5)[:limit]
    assert info.num_classes == 2


def test_a_path_a_slash_and_a_uri_are_the_same_source(image_folder: MakeFolder) -> None:
    root = image_folder()
    sources = [open_source(source_ref(path)) for path in (str(root), f"{root}/", f"file://{root}", f"file://{root}/")]
    assert len({source.info.fingerprint for source in sources}) == 1
    assert len({tuple(source.keys(range(10))) for source in sources}) == 1
    assert len({raw for source in sources for _, raw in source.read([7])}) == 1


def test_the_fingerprint_is_stable_and_changes_with_names_sizes_and_limit(tmp_path: Path) -> None:
    names = ("cat/0.png", "cat/1.png", "dog/2.png")
    root = put(tmp_path / "a", *names)
    prints = [opened(root).info.fingerprint]
    assert prints == [opened(root).info.fingerprint] == [opened(put(tmp_path / "b", *names)).info.fingerprint]
    prints.append(opened(root, limit=2).info.fingerprint)
    prints.append(opened(put(tmp_path / "c", "cat/0.png", "dog/1.png", "dog/2.png")).info.fingerprint)
    prints.append(opened(put(tmp_path / "d", *names, size_px=20)).info.fingerprint)
    prints.append(opened(put(root, "dog/3.png")).info.fingerprint)
    assert len(set(prints)) == len(prints)


def test_the_size_is_the_median_short_side_up_to_64(tmp_path: Path) -> None:
    put(tmp_path / "small", "cat/0.png", "dog/1.png", size_px=12)
    assert opened(tmp_path / "small").info.size_px == 12
    assert opened(tmp_path / "small").info.original_px == (12, 12)
    assert opened(put(tmp_path / "large", "cat/0.png", "dog/1.png", size_px=90)).info.size_px == 64
    assert opened(tmp_path / "large", size=70).info.size_px == 70
    put(tmp_path / "small", "owl/0.png", size_px=20)
    assert opened(tmp_path / "small").info.original_px is None


def test_unreadable_images_do_not_keep_a_folder_from_being_counted(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "dog/2.png")
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    info = opened(tmp_path).info
    assert len(info) == 3 and info.size_px == 8


def test_imagenet_is_a_folder_with_splits_of_its_own(tmp_path: Path) -> None:
    put(tmp_path, "train/n01/0.JPEG", "train/n02/1.JPEG", "val/n01/2.JPEG", "val/n02/3.JPEG")
    train = open_source(source_ref({"use": "imagenet", "root": str(tmp_path)}))
    val = open_source(source_ref({"use": "imagenet", "root": f"{tmp_path}/", "split": "val"}))
    assert train.keys([0, 1]) == ["n01/0.JPEG", "n02/1.JPEG"] and train.info.size_px == 224
    assert val.keys([0]) == ["n01/2.JPEG"]


def test_a_link_to_a_parent_is_not_followed_again_and_again(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "dog/1.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "self").symlink_to(tmp_path / "dog")
    source = opened(tmp_path)
    assert source.keys(range(len(source.info))) == ["cat/0.png", "dog/1.png"]
    assert source.info.passed_over == "2 links to a folder listed already (cat/up, dog/self)"


def test_classes_may_be_links_to_folders_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "tabby/0.png", "dog/1.png")
    (tmp_path / "tree").mkdir()
    for name, place in (("cat", "tabby"), ("dog", "dog"), ("puppy", "dog")):
        (tmp_path / "tree" / name).symlink_to(tmp_path / "elsewhere" / place)
    source = opened(tmp_path / "tree")
    assert source.keys(range(len(source.info))) == ["cat/0.png", "dog/1.png"]
    assert "1 link to a folder listed already (puppy)" in source.info.passed_over


def test_a_link_never_takes_the_place_of_the_folder_that_it_points_to(tmp_path: Path) -> None:
    put(tmp_path, "b/0.png", "c/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "c")
    assert opened(tmp_path).info.class_names == ("b", "c")


def test_a_link_beside_never_takes_the_place_of_a_folder_further_down(tmp_path: Path) -> None:
    put(tmp_path, "cat/extra/0.png", "dog/1.png")
    (tmp_path / "aaa").symlink_to(tmp_path / "cat" / "extra")
    (tmp_path / "dog" / "itself").symlink_to(tmp_path / "dog" / "itself")
    source = opened(tmp_path)
    assert source.info.class_names == ("cat", "dog") and source.keys([0]) == ["cat/extra/0.png"]
    assert source.info.passed_over == "1 link to a folder listed already (aaa); 1 link to nowhere (dog/itself)"


def test_what_a_link_reaches_from_above_or_beside_is_taken_once(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train", "a/1.png", "b/2.png")
    (tmp_path / "d" / "train" / "up").symlink_to(tmp_path / "d")
    source = opened(tmp_path / "d" / "train")
    assert source.keys(range(len(source.info))) == ["a/1.png", "b/2.png"]
    put(tmp_path / "pets", "cats/3.png", "dogs/4.png")
    (tmp_path / "root").mkdir()
    for name, place in (("cats", "pets/cats"), ("pets", "pets")):
        (tmp_path / "root" / name).symlink_to(tmp_path / place)
    source = opened(tmp_path / "root")
    assert source.keys(range(len(source.info))) == ["cats/3.png", "pets/dogs/4.png"]


def test_a_tar_left_beside_class_folders_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "dog/1.png")
    (tmp_path / "val.tar").write_bytes(b"")
    assert source_ref(str(tmp_path)).use == "folder"


def test_names_that_are_not_utf8_and_links_to_nowhere_are_passed_over_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "dog/1.png")
    (Path(os.fsdecode(bytes(tmp_path) + b"/cat/\xff.png"))).write_bytes(image())
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    source = opened(tmp_path)
    assert source.keys(range(len(source.info))) == ["cat/0.png", "dog/1.png"]
    assert source.info.passed_over == "1 link to nowhere (dog/gone.png); 1 name not in UTF-8"


def test_every_format_that_pillow_writes_is_read_by_content(tmp_path: Path) -> None:
    from PIL import Image

    formats = {"JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"}
    put(tmp_path, "dog/1.png")
    (tmp_path / "cat").mkdir()
    for kind in formats:
        Image.new("RGB", (8, 8)).save(tmp_path / "cat" / kind, kind)
    assert [Path(key).name for key in opened(tmp_path).keys(range(len(formats)))] == sorted(formats)
