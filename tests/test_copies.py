"""Copies in a real folder of images: the same pixels whatever the file, near copies on demand, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unseen_ray as ur
from unseen_ray.cli.app import cli
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images; a copy under another ending, one of other brightness, one with another label, and a damaged file."""
    root = tmp_path_factory.mktemp("copies")
    noise = np.random.default_rng(0).integers(0, 200, (6, 32, 32, 3), np.uint8)
    for number, pixels in enumerate(noise):
        (root / f"class{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"class{number % 2}" / f"image{number}.png")
    Image.fromarray(noise[0]).save(root / "class0" / "same.bmp")
    Image.fromarray(noise[3]).save(root / "class0" / "twin.png")
    Image.fromarray((noise[1] * 0.8 + 20).astype(np.uint8)).save(root / "class1" / "brighter.png")
    (root / "class1" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def keys_of(folder: Path) -> list[str]:
    source = open_source(source_ref(str(folder)))
    return source.keys(range(len(source.info)))


def test_the_same_pixels_are_found_whatever_the_file(folder: Path) -> None:
    found, keys = ur.find_copies(str(folder)), keys_of(folder)
    pairs = {tuple(sorted((keys[found.groups_R[row]], keys[row]))) for row in found.copy_ids}
    assert pairs == {("class0/image0.png", "class0/same.bmp"), ("class0/twin.png", "class1/image3.png")}
    assert [keys[row] for row in found.unreadable_ids] == ["class1/damaged.png"]
    assert [keys[row] for row in found.conflicting_ids] == ["class1/image3.png"]


def test_near_copies_are_found_on_demand(folder: Path) -> None:
    found, keys = ur.find_copies(str(folder), near=0.97), keys_of(folder)
    assert len(found.copy_ids) == 3
    assert found.groups_R[keys.index("class1/image1.png")] == found.groups_R[keys.index("class1/brighter.png")]


@pytest.mark.parametrize("near", [0, 1, 1.5, -0.2])
def test_a_similarity_out_of_range_is_refused(folder: Path, near: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and below 1"):
        ur.find_copies(str(folder), near=near)


def test_the_command_names_them_and_writes_what_group_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "copies.npy"
    cli.main(["copies", str(folder), "--to", str(to)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "2 of 10 samples are copies of earlier ones, in 2 groups, the largest of 2." in said
    assert "With another label than the first: 1 (check which is right)." in said
    assert "class0/twin.png\tclass1/image3.png" in said
    assert "1 sample cannot be decoded and counted as unique: class1/damaged.png." in said
    cli.main(["copies", "--source", str(folder), "--near", "0.97", "--json"], standalone_mode=False)
    values = json.loads(capsys.readouterr().out)
    assert (values["copies"], values["groups"], values["near"], values["to"]) == (3, 3, 0.97, None)
    assert ["class0/twin.png", "class1/image3.png"] in values["pairs"]
    planned, _, _ = ur.plan(ur.PruneConfig(source=str(folder), keep=0.5, folds=2, group={"use": str(to), "drop": True}))
    assert planned.num_samples == 8


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "source is missing"),
        (["digits", "--to", "copies.csv"], "ends in .npy"),
        (["digits", "--to", "s3://bucket/copies.npy"], "must be a local path"),
        (["digits", "--source", "digits"], "two sources"),
        (["digits", "--to", "/proc/copies.npy"], "cannot be written"),
        (["digits", "--to", "missing/copies.npy"], "there is no folder"),
    ],
)
def test_what_the_command_refuses(args: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cli.main(["copies", *args], standalone_mode=False)


def test_a_tint_alone_makes_no_copies(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-5, 6, (40, 32, 32, 3)) + np.array([200, 120, 170])
    for number, pixels in enumerate(noise.astype(np.uint8)):
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"class{number % 2}" / f"{number}.png")
    assert len(ur.find_copies(str(tmp_path), near=0.9).copy_ids) == 0


def test_images_that_are_merely_alike_are_no_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One outline with a little noise, as of scans: a similarity too low makes one group of all."""
    outline = np.zeros((32, 32, 3))
    outline[8:24, 8:24] = 120
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 40, (32, 32, 3))
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        Image.fromarray((outline + noise).astype(np.uint8)).save(tmp_path / f"class{number % 2}" / f"{number}.png")
    cli.main(["copies", str(tmp_path), "--near", "0.97"], standalone_mode=False)
    assert (
        "One group holds 12 samples, which only look alike. Give a higher --near than 0.97" in capsys.readouterr().out
    )
