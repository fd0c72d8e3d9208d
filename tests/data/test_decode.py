"""From encoded images to pixels: every usual kind, upright and of one size; damage is told and never crashes."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.data.images.decode import open_image, pixels_of_ppm, to_pixels
from unseen_ray.data.images.encode import to_jpeg
from unseen_ray.data.images.loading import load_pixel_store, settle_bad
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.images.pixel_store import BadSample, LazyPixelStore, MemoryPixelStore, chunks_of, decode_range
from unseen_ray.data.sources.folder import FolderSource
from unseen_ray.data.sources.info import probe_size
from unseen_ray.data.sources.parquet import ParquetSource
from unseen_ray.errors import BadSampleError

BAD = {3: b"", 11: b"no image at all", 17: b"\x89PNG\r\n\x1a\n"}
COUNT = 24


def noise(size_px: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def smooth(size_px: int = 32) -> np.ndarray:
    """Three ramps, which survive JPEG: red to the right, green downwards, blue against red."""
    ramp = np.linspace(0, 255, size_px).astype(np.uint8)
    red = np.broadcast_to(ramp, (size_px, size_px))
    return np.stack([red, red.T, 255 - red], axis=2)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def source_of(tmp_path: Path, *, bad: dict[int, bytes] | None = None) -> ParquetSource:
    labels = np.arange(COUNT) % 3
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 10)]
    for row, data in (bad or {}).items():
        images[row] = data
    return ParquetSource(path=str(write_parquet(tmp_path / "a.parquet", labels, images)))


def test_a_png_of_the_right_size_comes_back_to_the_bit() -> None:
    pixels = noise()
    assert np.array_equal(to_pixels(encoded(pixels), 16), pixels)
    assert to_pixels(pixels, 16) is pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_every_lossless_kind_comes_back_to_the_bit(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(to_pixels(encoded(noise(), kind, **options), 16), noise())


def test_a_jpeg_comes_back_nearly() -> None:
    pixels = to_pixels(encoded(smooth(), "JPEG", quality=95), 32)
    assert np.abs(pixels.astype(int) - smooth()).max() < 16


@pytest.mark.parametrize("size_px", [1, 7, 16, 17, 40])
@pytest.mark.parametrize("shape", [(16, 16), (9, 30), (30, 9), (1, 1), (200, 20)])
def test_any_shape_becomes_the_size_asked_for(shape: tuple[int, int], size_px: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for raw in (pixels, encoded(pixels), encoded(pixels, "JPEG")):
        made = to_pixels(raw, size_px)
        assert made.shape == (size_px, size_px, 3) and made.dtype == np.uint8


def test_the_short_side_is_scaled_and_the_centre_kept() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (to_pixels(encoded(pixels), 10) == 200).all()
    assert (to_pixels(encoded(pixels.transpose(1, 0, 2)), 10) == 200).all()


@pytest.mark.parametrize(
    "shape", [(16, 17), (16, 18), (19, 16), (20, 16), (16, 61), (16, 16), (17, 18), (15, 16), (8, 16)]
)
def test_a_square_is_cut_out_as_pillow_would_fit_it(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    fitted = ImageOps.fit(image, (16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(to_pixels(encoded(image), 16), np.asarray(fitted))


def test_arrays_and_their_pngs_are_scaled_alike() -> None:
    for size_px in (8, 16, 24):
        assert np.array_equal(to_pixels(noise(), size_px), to_pixels(encoded(noise()), size_px))


def test_greyscale_becomes_three_equal_channels() -> None:
    grey = noise()[:, :, 0]
    assert np.array_equal(to_pixels(encoded(grey), 16), np.repeat(grey[:, :, None], 3, axis=2))
    one_bit = Image.fromarray(grey > 127)
    assert np.array_equal(to_pixels(encoded(one_bit), 16)[:, :, 1], np.where(grey > 127, 255, 0))


def test_a_palette_is_looked_up() -> None:
    indices = np.random.default_rng(0).integers(0, 4, (16, 16), dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    for data in (
        encoded(image),
        encoded(image, transparency=0),
        encoded(image, transparency=b"\0\x80"),
        encoded(image, "GIF"),
    ):
        assert np.array_equal(to_pixels(data, 16), colours[indices])


def test_alpha_is_dropped() -> None:
    alpha = np.random.default_rng(1).integers(1, 256, (16, 16, 1), dtype=np.uint8)
    assert np.array_equal(to_pixels(encoded(np.concatenate([noise(), alpha], axis=2)), 16), noise())
    grey_alpha = Image.fromarray(np.concatenate([noise()[:, :, :1], alpha], axis=2), "LA")
    assert np.array_equal(to_pixels(encoded(grey_alpha), 16)[:, :, 2], noise()[:, :, 0])


def test_cmyk_becomes_rgb() -> None:
    image = Image.fromarray(smooth()).convert("CMYK")
    pixels = to_pixels(encoded(image, "JPEG", quality=95), 32)
    assert np.abs(pixels.astype(int) - smooth()).mean() < 12


def test_16_bit_grey_keeps_its_gradient() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        pixels = to_pixels(encoded(Image.fromarray(ramp), kind), 16)
        assert np.abs(pixels[:, :, 0].astype(int) - (ramp >> 8)).max() <= 1, kind


@pytest.mark.parametrize("most", [200, 255, 256, 4095, 65535])
def test_16_bit_grey_is_scaled_by_its_type_and_not_by_its_maximum(most: int) -> None:
    ramp = np.linspace(0, most, 256).astype(np.uint16).reshape(16, 16)
    for data in (encoded(Image.fromarray(ramp)), encoded(Image.fromarray(ramp), "TIFF"), pgm(ramp)):
        assert np.array_equal(to_pixels(data, 16)[:, :, 0], ramp >> 8)


def pgm(levels: np.ndarray) -> bytes:
    height, width = levels.shape
    return b"P5\n%d %d\n65535\n" % (width, height) + levels.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("levels", "what"),
    [
        (np.linspace(0, 1, 256, dtype=np.float32), "32-bit floats"),
        (np.linspace(0, 255, 256, dtype=np.float32), "32-bit floats"),
        (np.arange(256, dtype=np.int32) << 12, "signed or 32-bit integers"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(levels: np.ndarray, what: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned images are copies, which have forgotten their format
    for options in ({}, {"exif": exif}):
        data = encoded(Image.fromarray(levels.reshape(16, 16)), "TIFF", **options)
        with pytest.raises(UndecodableError, match=f"{what}, whose values .* Convert the images to 8 or 16 bits"):
            to_pixels(data, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_was_turned_is_set_upright(orientation: int) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:] = 255, 128
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(undo[orientation](upright)), exif=exif)
    assert np.array_equal(to_pixels(data, 16), upright)
    assert open_image(data).size == (16, 16)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x00", b"no image", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"RIFF....WEBP"],
)
def test_what_is_no_image_is_undecodable(raw: bytes) -> None:
    with pytest.raises(UndecodableError):
        to_pixels(raw, 16)


def test_the_reason_is_told() -> None:
    with pytest.raises(UndecodableError, match=r"^it is empty$"):
        to_pixels(b"", 16)
    with pytest.raises(UndecodableError, match="cannot identify the image format"):
        to_pixels(b"no image at all", 16)
    with pytest.raises(UndecodableError, match=r"truncated|OSError"):
        to_pixels(encoded(noise(64))[:2000], 16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_an_image_cut_anywhere_is_undecodable_or_whole(kind: str) -> None:
    data = encoded(smooth(24), kind)
    refused = 0
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            assert to_pixels(data[:length], 24).shape == (24, 24, 3)
        except UndecodableError as error:
            refused += bool(str(error))
    assert refused > 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_bytes_overwritten_anywhere_never_crash_the_decoder(kind: str) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = np.frombuffer(
        encoded(smooth(12), kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {})), np.uint8
    )
    outcomes = set()
    for _ in range(300):
        hurt = data.copy()
        places = rng.integers(0, min(len(hurt), 200), 3)
        hurt[places] = rng.integers(0, 256, 3)
        try:
            outcomes.add(to_pixels(hurt.tobytes(), 12).shape)
        except UndecodableError:
            outcomes.add(())
    assert (12, 12, 3) in outcomes


def test_an_image_of_absurd_size_is_undecodable() -> None:
    header = bytearray(encoded(noise(4)))
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(UndecodableError):
        to_pixels(bytes(header), 16)


def test_decoding_keeps_the_order_of_the_ids(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    expected = class_pixels(np.arange(COUNT) % 3, 10)
    rng = np.random.default_rng(0)
    for ids in (np.arange(COUNT), rng.permutation(COUNT), np.array([7]), np.array([], np.int64), np.array([4, 4, 2])):
        pixels, bad = decode_range(source, ids, 10)
        assert not bad
        assert np.array_equal(pixels, expected[ids])


def test_bad_samples_are_told_by_id_key_and_reason(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(COUNT)
    pixels, bad = decode_range(source_of(tmp_path, bad=BAD), ids, 10)
    assert {sample.id: sample.key for sample in bad} == {row: f"a.parquet:{row}" for row in BAD}
    assert all(sample.reason for sample in bad)
    assert next(sample.reason for sample in bad if sample.id == 3) == "it is empty"
    expected = class_pixels(np.arange(COUNT) % 3, 10)
    expected[list(BAD)] = 0
    assert np.array_equal(pixels, expected[ids])


def test_both_pixel_stores_give_the_same_images_for_any_order_of_ids(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    held, _ = decode_range(source, np.arange(COUNT), 12)
    memory, lazy = MemoryPixelStore(held), LazyPixelStore(source, 12)
    assert memory.size_px == lazy.size_px == 12
    rng = np.random.default_rng(0)
    for ids in (
        np.arange(COUNT),
        rng.permutation(COUNT),
        rng.integers(0, COUNT, 40),
        np.array([5]),
        np.array([], np.int64),
    ):
        assert np.array_equal(memory.images(ids), lazy.images(ids))
        assert memory.images(ids).shape == (len(ids), 12, 12, 3)


def test_images_of_a_pixel_store_are_copies(tmp_path: Path) -> None:
    held, _ = decode_range(source_of(tmp_path), np.arange(COUNT), 12)
    held.flags.writeable = False
    images = MemoryPixelStore(held).images(np.arange(3))
    images[:] = 0
    assert held[:3].any()


def test_a_lazy_pixel_store_tells_a_bad_sample_by_key(tmp_path: Path) -> None:
    pixel_store = LazyPixelStore(source_of(tmp_path, bad=BAD), 10)
    assert pixel_store.images(np.array([0, 1, 2])).any()
    with pytest.raises(BadSampleError, match=r"sample a\.parquet:11 cannot be decoded"):
        pixel_store.images(np.array([12, 11]))


def test_loading_holds_small_sets_in_memory(tmp_path: Path) -> None:
    pixel_store, skipped = load_pixel_store(source_of(tmp_path), 10)
    assert isinstance(pixel_store, MemoryPixelStore) and skipped.size == 0 and skipped.dtype == np.int64
    assert np.array_equal(pixel_store.pixels_NHWC, class_pixels(np.arange(COUNT) % 3, 10))


def test_bad_samples_stop_the_loading_unless_they_are_skipped(tmp_path: Path) -> None:
    source = source_of(tmp_path, bad=BAD)
    message = (
        r"sample a\.parquet:3 cannot be decoded: it is empty\. So are a\.parquet:11, a\.parquet:17: 3 in all\. "
        r"Repair or remove them, or set `on_bad_sample: skip`"
    )
    with pytest.raises(BadSampleError, match=message) as caught:
        load_pixel_store(source, 10)
    assert (caught.value.keys[0], caught.value.total, caught.value.exit_code) == ("a.parquet:3", 3, 3)
    pixel_store, skipped = load_pixel_store(source, 10, on_bad_sample="skip")
    assert skipped.tolist() == sorted(BAD)
    good = np.setdiff1d(np.arange(COUNT), skipped)
    assert np.array_equal(pixel_store.images(good), class_pixels(np.arange(COUNT) % 3, 10)[good])


def test_sets_that_do_not_fit_in_memory_are_decoded_on_demand(tmp_path: Path) -> None:
    too_little = (COUNT * 10 * 10 * 3 - 1) / 2**30
    source = source_of(tmp_path, bad=BAD)
    pixel_store, skipped = load_pixel_store(source, 10, memory_gb=too_little)
    assert isinstance(pixel_store, LazyPixelStore) and skipped.size == 0
    pixel_store, skipped = load_pixel_store(source, 10, on_bad_sample="skip", memory_gb=too_little)
    assert isinstance(pixel_store, LazyPixelStore) and skipped.tolist() == sorted(BAD)


def test_bad_samples_are_settled_in_the_order_of_their_ids() -> None:
    bad = [BadSample(number, f"k:{number}", "why") for number in (5, 2, 9)]
    assert settle_bad(bad, "skip").tolist() == [2, 5, 9]
    assert settle_bad([], "error").size == 0
    with pytest.raises(BadSampleError, match="k:5 cannot be decoded: why"):
        settle_bad(bad, "error")


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25])
def test_chunks_cover_every_sample_once(count: int) -> None:
    covered = [number for start, stop in chunks_of(count, 10) for number in range(start, stop)]
    assert covered == list(range(count))
    assert all(stop - start <= 10 for start, stop in chunks_of(count, 10))


def test_a_plain_ppm_is_read_as_pillow_reads_it() -> None:
    for shape in ((16, 16), (9, 30), (1, 1), (40, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        for data in (encoded(pixels, "PPM"), b"P6\n%d %d\n255\n" % shape[::-1] + pixels.tobytes()):
            plain = pixels_of_ppm(data)
            assert plain is not None and np.array_equal(plain, pixels)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
            for size_px in (shape[0], 16, 7):
                assert np.array_equal(to_pixels(data, size_px), to_pixels(encoded(pixels), size_px))


def test_any_other_ppm_is_left_to_pillow() -> None:
    body = noise(4).tobytes()
    others = {
        "comment": b"P6\n# hello\n4 4\n255\n" + body,
        "spaces": b"P6 4 4 255 " + body,
        "grey": b"P5\n4 4\n255\n" + body[:16],
        "more behind it": b"P6\n4 4\n255\n" + body + b"x",
    }
    for name, data in others.items():
        assert pixels_of_ppm(data) is None, name
        assert np.array_equal(to_pixels(data, 4), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))), name
    for data in (b"P6\n4 4\n255\n" + body[:-1], b"P6\n4 4\n255\n", b"P6\n0 0\n255\n", b"P6\n999999 999999\n255\n"):
        assert pixels_of_ppm(data) is None
        with pytest.raises(UndecodableError):
            to_pixels(data, 4)


def photo(width: int, height: int) -> Image.Image:
    """A photograph's kind of content: smooth, all colours, no two corners alike."""
    corners = np.array([[[250, 30, 30], [30, 250, 30]], [[30, 30, 250], [240, 240, 20]]], np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def corners_of(pixels: np.ndarray) -> list[str]:
    """Which colour is where, clockwise from the top left."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    found = (pixels[place] for place in ((1, 1), (1, -2), (-2, -2), (-2, 1)))
    return [names.get(tuple((corner > 128).astype(int).tolist()), str(corner)) for corner in found]


UPRIGHT = ["red", "green", "yellow", "blue"]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_cmyk_has_the_colours_that_torchvision_sees() -> None:
    """ILSVRC has 22 of them, written by Adobe with all inks inverted, as Pillow writes them; some as YCCK."""
    data = encoded(photo(64, 64).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.info["adobe_transform"]) == ("CMYK", 0)
    assert corners_of(to_pixels(data, 64)) == UPRIGHT
    assert np.abs(to_pixels(data, 64).astype(int) - np.asarray(photo(64, 64))).mean() < 6
    assert corners_of(np.asarray(Image.open(io.BytesIO(to_jpeg(data, 32, 95))))) == UPRIGHT
    ycck = bytearray(data)
    ycck[data.index(b"Adobe") + 11] = 2
    for each in (data, bytes(ycck)):
        ours = to_pixels(each, 64)
        assert np.array_equal(ours, np.asarray(Image.open(io.BytesIO(each)).convert("RGB")))
        stream = torch.frombuffer(bytearray(each), dtype=torch.uint8)
        by_torchvision = decode_jpeg(stream, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
        assert np.abs(ours.astype(int) - by_torchvision).max() <= 2
    assert not np.array_equal(to_pixels(bytes(ycck), 64), to_pixels(data, 64))


def test_what_a_file_is_decides_and_not_its_name(tmp_path: Path) -> None:
    """n02105855_2933.JPEG of ILSVRC is a PNG."""
    (tmp_path / "n02105855").mkdir()
    (tmp_path / "n02105856").mkdir()
    (tmp_path / "n02105856" / "0.JPEG").write_bytes(encoded(photo(20, 20), "JPEG"))
    (tmp_path / "n02105855" / "n02105855_2933.JPEG").write_bytes(encoded(photo(20, 20)))
    (tmp_path / "n02105855" / "n02105855_2934.JPEG").write_bytes(encoded(photo(20, 20), "JPEG", quality=95))
    source = FolderSource(path=str(tmp_path))
    (png, jpeg), bad = decode_range(source, [0, 1], 20)
    assert not bad and np.array_equal(png, np.asarray(photo(20, 20)))
    assert np.abs(png.astype(int) - jpeg).mean() < 4


@pytest.mark.parametrize("size_px", [12, 40, 100])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_a_decoder_that_scales_go_together(orientation: int, size_px: int) -> None:
    """A JPEG that is decoded at 1/8 of its size is turned after that; the longer side may become the shorter one."""
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what Pillow calls the turn that undoes it
    turned = photo(320, 208)
    if orientation > 1:
        turned = turned.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(turned, "JPEG", quality=95, exif=exif)
    upright = encoded(photo(320, 208), "JPEG", quality=95)
    assert corners_of(to_pixels(data, size_px)) == corners_of(to_pixels(upright, size_px)) == UPRIGHT
    assert np.abs(to_pixels(data, size_px).astype(int) - to_pixels(upright, size_px)).mean() < 3
    whole = open_image(data)
    assert whole.size == (320, 208)
    again = ImageOps.exif_transpose(whole)
    assert again is not None and again.size == (320, 208)
    small = Image.open(io.BytesIO(to_jpeg(data, size_px, 95)))
    assert small.size == (round(320 * size_px / 208), size_px) and small.getexif().get(0x0112, 1) == 1
    assert corners_of(np.asarray(small)) == UPRIGHT


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01\0\0\0" + b"\xff" * 40,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f\0\x02\0\0\xff\xff\0\0\xff\xff"
        + b"\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
def test_damaged_exif_is_passed_over_without_a_word(exif: bytes) -> None:
    data = encoded(photo(64, 48), "JPEG", quality=95, exif=exif)
    assert np.array_equal(to_pixels(data, 24), to_pixels(encoded(photo(64, 48), "JPEG", quality=95), 24))
    assert to_jpeg(data, 64, 90) == data
    assert probe_size([data], None) == (48, (48, 64))


def test_warnings_are_what_they_were_after_many_threads_have_decoded() -> None:
    data = encoded(photo(64, 48), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: to_pixels(data, 8), range(400)))
    assert warnings.filters == before


def test_a_truncated_jpeg_is_told_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    whole = encoded(photo(300, 200), "JPEG")
    (tmp_path / "dog").mkdir()
    for name in ("cat/a.JPEG", "dog/c.JPEG"):
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "cat" / "b.JPEG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadSampleError, match=r"sample cat/b\.JPEG cannot be decoded: .*truncated"):
        LazyPixelStore(FolderSource(path=str(tmp_path)), 16).images(np.arange(2))


def test_progressive_and_greyscale_jpegs_are_what_their_plain_twins_are() -> None:
    plain = encoded(photo(300, 200), "JPEG", quality=95)
    assert np.array_equal(
        to_pixels(encoded(photo(300, 200), "JPEG", quality=95, progressive=True), 40), to_pixels(plain, 40)
    )
    grey = to_pixels(encoded(photo(300, 200).convert("L"), "JPEG", quality=95), 40)
    assert (grey == grey[:, :, :1]).all()
    expected = ImageOps.fit(photo(300, 200).convert("L"), (40, 40), Image.Resampling.BILINEAR)
    assert np.abs(grey[:, :, 0].astype(int) - np.asarray(expected)).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 2500), (64, 20_000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_extreme_shapes_keep_their_middle(kind: str, shape: tuple[int, int]) -> None:
    width, height = shape
    image = Image.new("RGB", shape, (10, 200, 90))
    data = encoded(image, kind)
    for size_px in (1, 16):
        assert np.abs(to_pixels(data, size_px).astype(int) - (10, 200, 90)).max() <= 3
    small = Image.open(io.BytesIO(to_jpeg(data, 16, 90)))
    short = min(width, height, 16)
    assert min(small.size) == short
    assert max(small.size) == round(max(shape) * short / min(shape))


def test_an_image_too_long_for_a_jpeg_is_told() -> None:
    with pytest.raises(UndecodableError, match="it is 65501 x 1 pixels, and a JPEG has at most 65500 a side"):
        to_jpeg(encoded(Image.new("RGB", (65_501, 1))), 16, 90)


def test_a_png_with_much_zipped_text_is_read() -> None:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * (2 << 20), zip=True)
    assert np.array_equal(to_pixels(encoded(noise(), pnginfo=text), 16), noise())
    with pytest.raises(UndecodableError):
        to_pixels(encoded(noise(), pnginfo=text)[:-40], 16)


def test_a_format_for_which_pillow_starts_a_program_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    postscript = encoded(smooth(24), "EPS")
    with pytest.raises(UndecodableError, match="cannot identify the image format as one of JPEG, PNG"):
        to_pixels(postscript, 16)
    assert not mark.exists()
