"""The fast way for JPEGs: Pillow's pixels, to the bit, and Pillow's word on what is damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from simplejpeg import encode_jpeg

from unseen_ray.data.images.decode import open_image, to_pixels
from unseen_ray.data.images.jpeg import pixels_of_jpeg
from unseen_ray.data.images.opening import BROKEN, MOST_SCANS, UndecodableError

SIZES = (1, 8, 16, 31, 64, 200)
SHAPES = ((1, 1), (5, 3), (7, 7), (8, 8), (17, 16), (64, 65), (120, 90), (300, 37))


def photo(width: int = 120, height: int = 90) -> Image.Image:
    """Fine detail and all colours."""
    rng = np.random.default_rng(width * 1000 + height)
    blocks = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("kind", "JPEG"), **options)
    return buffer.getvalue()


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(image, exif=exif)


def ycck(image: Image.Image) -> bytes:
    data = bytearray(jpeg(image.convert("CMYK")))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def sampled(image: Image.Image, sampling: str) -> bytes:
    return encode_jpeg(np.ascontiguousarray(image), colorsubsampling=sampling)


BARE: dict[str, Callable[[Image.Image], bytes]] = {
    "4:2:0": jpeg,
    "4:2:2": lambda image: jpeg(image, subsampling="4:2:2"),
    "4:4:4": lambda image: jpeg(image, subsampling="4:4:4", quality=97),
    "4:4:0": lambda image: sampled(image, "440"),
    "4:1:1": lambda image: sampled(image, "411"),
    "coarse": lambda image: jpeg(image, quality=3),
    "grey": lambda image: jpeg(image.convert("L")),
    "own tables": lambda image: jpeg(image, optimize=True),
    "restarts": lambda image: jpeg(image, restart_marker_blocks=2),
    "comment": lambda image: jpeg(image, comment=b"\xff\xe1 Exif"),
    "colour profile": lambda image: jpeg(image, icc_profile=b"p" * 70_000),
    "two pictures": lambda image: jpeg(image) + jpeg(image),
}
OTHER: dict[str, Callable[[Image.Image], bytes]] = {
    "turned": turned,
    "progressive": lambda image: jpeg(image, progressive=True),
    "CMYK": lambda image: jpeg(image.convert("CMYK")),
    "YCCK": ycck,
    "RGB": lambda image: jpeg(image, keep_rgb=True),
    "several": lambda image: jpeg(image, kind="MPO", save_all=True, append_images=[image]),
    "PNG": lambda image: jpeg(image, kind="PNG"),
}


def of_pillow(data: bytes, size_px: int | None) -> np.ndarray | None:
    """What Pillow alone makes of it; None where it refuses."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if size_px is not None:
            image.draft("RGB", (size_px, size_px))
        image.load()
    except BROKEN:
        return None
    upright = ImageOps.exif_transpose(image)
    image = (image if upright is None else upright).convert("RGB")
    return np.asarray(
        image if size_px is None else ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR), np.uint8
    )


def of_ours(data: bytes, size_px: int | None) -> np.ndarray | None:
    try:
        return np.asarray(open_image(data), np.uint8) if size_px is None else to_pixels(data, size_px)
    except UndecodableError:
        return None


def same(data: bytes, size_px: int | None) -> bool:
    ours, theirs = of_ours(data, size_px), of_pillow(data, size_px)
    return ours is theirs is None or (ours is not None and theirs is not None and np.array_equal(ours, theirs))


@pytest.mark.parametrize("kind", [*BARE, *OTHER])
def test_pixels_are_those_of_pillow_to_the_bit(kind: str) -> None:
    for shape in SHAPES:
        data = {**BARE, **OTHER}[kind](photo(*shape))
        assert of_pillow(data, None) is not None
        for size_px in (*SIZES, None):
            assert same(data, size_px), (shape, size_px)


@pytest.mark.parametrize("kind", BARE)
def test_a_usual_jpeg_needs_no_pillow(kind: str) -> None:
    pixels = pixels_of_jpeg(BARE[kind](photo(120, 90)), 30)
    assert pixels is not None and pixels.shape == (45, 60, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", OTHER)
def test_anything_else_is_left_to_pillow(kind: str) -> None:
    assert pixels_of_jpeg(OTHER[kind](photo()), 30) is None


@pytest.mark.parametrize("kind", ["4:2:0", "grey", "restarts", "turned", "progressive", "CMYK"])
def test_a_jpeg_cut_anywhere_is_refused_as_pillow_refuses_it(kind: str) -> None:
    data = {**BARE, **OTHER}[kind](photo(40, 30))
    lengths = [*range(0, len(data), 17), len(data) - 3, len(data) - 2, len(data) - 1]
    assert all(same(data[:length], 16) for length in lengths)
    with pytest.raises(UndecodableError, match="truncated"):
        to_pixels(data[: len(data) * 3 // 4], 16)
    assert pixels_of_jpeg(data[:-10], 16) is None


def test_a_jpeg_damaged_anywhere_is_taken_or_refused_as_by_pillow() -> None:
    rng = np.random.default_rng(0)
    kinds = [BARE[kind](photo(40, 30)) for kind in ("4:2:0", "4:4:4", "grey", "restarts", "comment")]
    taken = []
    for number in range(3000):
        data = kinds[number % len(kinds)]
        hurt = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(hurt) if number % 2 else min(len(hurt), 640), 2)
        hurt[places] = rng.integers(0, 256, 2)
        assert same(hurt.tobytes(), 16), (number, places)
        taken.append(of_ours(hurt.tobytes(), 16) is not None)
    assert 300 < sum(taken) < 2900


def test_what_a_decoder_only_warns_of_is_decided_by_pillow() -> None:
    data = jpeg(photo())
    rubbish = data[:-2] + b"rubbish" + data[-2:]
    assert pixels_of_jpeg(rubbish, 16) is None
    assert np.array_equal(to_pixels(rubbish, 16), to_pixels(data, 16))


def test_a_colour_profile_that_pillow_stumbles_over_is_refused() -> None:
    data = jpeg(photo())
    short = b"\xff\xe2\x00\x0eICC_PROFILE\x00"
    assert of_pillow(data[:20] + short + data[20:], 16) is None
    assert of_ours(data[:20] + short + data[20:], 16) is None


def test_an_image_of_absurd_size_is_refused() -> None:
    data = bytearray(jpeg(photo()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc" * 2
    with pytest.raises(UndecodableError, match=r"^it has more than 178956970 pixels\. Scale it down$"):
        to_pixels(bytes(data), 16)


def with_scans(data: bytes, more: int) -> bytes:
    """A JPEG whose last scan is repeated."""
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * more + data[-2:]


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_very_many_scans_is_refused_and_one_of_many_is_read(progressive: bool) -> None:
    encoded = io.BytesIO()
    photo().save(encoded, "JPEG", progressive=progressive)
    data = encoded.getvalue()
    pixels, scans = to_pixels(data, 16), data.count(b"\xff\xda")
    if progressive:  # a refining scan may come again
        assert to_pixels(with_scans(data, MOST_SCANS - scans), 16).shape == pixels.shape
    with pytest.raises(UndecodableError, match=r"^it is a JPEG with more than 50 scans\. Encode it again$"):
        to_pixels(with_scans(data, MOST_SCANS), 16)


def test_what_looks_like_scans_in_a_preview_or_behind_the_image_is_not_counted() -> None:
    data = jpeg(photo())
    like = b"\xff\xda\x00\x02" * 1000
    comment = b"\xff\xfe" + (len(like) + 2).to_bytes(2, "big") + like
    for odd in (data[:2] + comment + data[2:], data + like):
        assert np.array_equal(to_pixels(odd, 16), to_pixels(data, 16))


@pytest.mark.realdata
@pytest.mark.parametrize("size_px", [32, 64, 128, 224, None])
def test_photographs_have_the_pixels_that_pillow_gives_them(real_data: Path, size_px: int | None) -> None:
    images = pq.read_table(real_data / "imagenet-sample128.parquet", columns=["image"]).column(0).to_pylist()
    assert len(images) == 128
    assert all(same(image["bytes"], size_px) for image in images)
    assert sum(pixels_of_jpeg(image["bytes"], size_px or 1 << 16) is not None for image in images) > 100
