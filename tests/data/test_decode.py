"""From encoded images to pixels: every usual kind, upright and of one size; damage is told and never crashes."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.data.decode import UndecodableError, open_image, to_pixels
from unseen_ray.data.loading import load_plane, settle_bad
from unseen_ray.data.plane import BadSample, LazyPlane, MemoryPlane, chunks_of, decode_range
from unseen_ray.errors import BadSampleError
from unseen_ray.sources.parquet import ParquetSource

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
    for data in (encoded(image), encoded(image, transparency=0), encoded(image, "GIF")):
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
    with pytest.raises(UndecodableError, match="no image that Pillow knows"):
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


def test_both_planes_give_the_same_images_for_any_order_of_ids(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    held, _ = decode_range(source, np.arange(COUNT), 12)
    memory, lazy = MemoryPlane(held), LazyPlane(source, 12)
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


def test_images_of_a_plane_are_copies(tmp_path: Path) -> None:
    held, _ = decode_range(source_of(tmp_path), np.arange(COUNT), 12)
    held.flags.writeable = False
    images = MemoryPlane(held).images(np.arange(3))
    images[:] = 0
    assert held[:3].any()


def test_a_lazy_plane_tells_a_bad_sample_by_key(tmp_path: Path) -> None:
    plane = LazyPlane(source_of(tmp_path, bad=BAD), 10)
    assert plane.images(np.array([0, 1, 2])).any()
    with pytest.raises(BadSampleError, match=r"sample a\.parquet:11 cannot be decoded"):
        plane.images(np.array([12, 11]))


def test_loading_holds_small_sets_in_memory(tmp_path: Path) -> None:
    plane, skipped = load_plane(source_of(tmp_path), 10)
    assert isinstance(plane, MemoryPlane) and skipped.size == 0 and skipped.dtype == np.int64
    assert np.array_equal(plane.pixels_NHWC, class_pixels(np.arange(COUNT) % 3, 10))


def test_bad_samples_stop_the_loading_unless_they_are_skipped(tmp_path: Path) -> None:
    source = source_of(tmp_path, bad=BAD)
    message = (
        r"sample a\.parquet:3 cannot be decoded: it is empty\. So are a\.parquet:11, a\.parquet:17: 3 in all\. "
        r"Mend or remove them, or set `on_bad_sample: skip`"
    )
    with pytest.raises(BadSampleError, match=message) as caught:
        load_plane(source, 10)
    assert (caught.value.keys[0], caught.value.total, caught.value.exit_code) == ("a.parquet:3", 3, 3)
    plane, skipped = load_plane(source, 10, on_bad_sample="skip")
    assert skipped.tolist() == sorted(BAD)
    good = np.setdiff1d(np.arange(COUNT), skipped)
    assert np.array_equal(plane.images(good), class_pixels(np.arange(COUNT) % 3, 10)[good])


def test_sets_that_do_not_fit_in_memory_are_decoded_on_demand(tmp_path: Path) -> None:
    too_little = (COUNT * 10 * 10 * 3 - 1) / 2**30
    source = source_of(tmp_path, bad=BAD)
    plane, skipped = load_plane(source, 10, memory_gb=too_little)
    assert isinstance(plane, LazyPlane) and skipped.size == 0
    plane, skipped = load_plane(source, 10, on_bad_sample="skip", memory_gb=too_little)
    assert isinstance(plane, LazyPlane) and skipped.tolist() == sorted(BAD)


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
