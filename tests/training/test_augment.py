"""Augmentation as tensors gives what the same change of each image alone gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from unseen_ray.config.recipe import Recipe
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.training.loop.augment import Draws, draw, resize_crops
from unseen_ray.training.loop.batches import BatchLoader, Normalisation, Pixels, WorkerShare, hold_pixels, measure

CPU = torch.device("cpu")
RAW = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SEED = 11


def images(count: int, size_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), np.uint8)


def epoch(pixels: Pixels, augment: str, *, batch: int, **fields: object) -> torch.Tensor:
    """All inputs of an epoch as (M, S, S, 3), the labels being the ids."""
    count = len(pixels.pixel_store.images(np.arange(24)))
    recipe = Recipe(augment=augment, **fields)  # type: ignore[arg-type]
    ids = np.arange(count)
    batches = BatchLoader(pixels, RAW).epoch(
        ids, ids, recipe, shape=(count // batch, batch), rng=np.random.default_rng(SEED), shard=WorkerShare()
    )
    inputs, labels = zip(*batches, strict=True)
    gathered = torch.cat(inputs).permute(0, 2, 3, 1)
    return gathered[torch.argsort(torch.cat(labels))]


def drawn(augment: str, size_px: int, count: int = 24, shift: float = 0.125) -> tuple[np.ndarray, Draws]:
    rng = np.random.default_rng(SEED)
    order = rng.permutation(count)
    return order, draw(Recipe(augment=augment, shift=shift), size_px, order, rng)  # type: ignore[arg-type]


def one_by_one(stack: np.ndarray, augment: str, pad: str = "reflect", shift: float = 0.125) -> torch.Tensor:
    """Shift, mirror and cut out image by image, with numpy's pad."""
    size = stack.shape[1]
    order, draws = drawn(augment, size, len(stack), shift)
    reach = int(size * shift)
    result = np.empty_like(stack)
    for place, number in enumerate(order):
        image = np.pad(stack[number], ((reach, reach), (reach, reach), (0, 0)), mode=pad)
        down, right = (0, 0) if draws.shift_M2 is None else draws.shift_M2[place].tolist()
        image = image[reach + down : reach + down + size, reach + right : reach + right + size]
        if draws.flip_M is not None and draws.flip_M[place]:
            image = image[:, ::-1]
        if draws.centre_M2 is not None:
            image = image.copy()
            top, left = (draws.centre_M2[place] - size // 4).tolist()
            image[max(top, 0) : max(top + size // 2, 0), max(left, 0) : max(left + size // 2, 0)] = 0
        result[number] = image
    return torch.from_numpy(result).float()


@pytest.mark.parametrize("size_px", [9, 16, 32])
@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop_flip", "crop_flip_cutout"])
def test_batches_equal_images_changed_one_by_one(augment: str, size_px: int) -> None:
    stack = images(24, size_px)
    given = epoch(hold_pixels(MemoryPixelStore(stack), CPU), augment, batch=8)
    assert torch.equal(given, one_by_one(stack, augment))


@pytest.mark.parametrize("shift", [0.0625, 0.5])
def test_shifts_reach_as_far_as_they_are_told(shift: float) -> None:
    stack = images(24, 32)
    given = epoch(hold_pixels(MemoryPixelStore(stack), CPU), "crop_flip", batch=8, shift=shift)
    assert torch.equal(given, one_by_one(stack, "crop_flip", shift=shift))
    _, draws = drawn("crop_flip", 32, 400, shift)
    assert draws.shift_M2 is not None and draws.shift_M2.abs().max() == 32 * shift


def test_zeros_lie_beyond_the_border_where_they_are_asked_for() -> None:
    stack = images(24, 32)
    for augment in ("crop", "crop_flip"):
        given = epoch(hold_pixels(MemoryPixelStore(stack), CPU), augment, batch=8, pad="zeros")
        assert torch.equal(given, one_by_one(stack, augment, "constant"))


@pytest.mark.parametrize("out_px", [20, 48, 64])
def test_resized_crops_equal_those_of_torchvision(out_px: int) -> None:
    stack = images(24, 48)
    order, draws = drawn("resized_crop_flip", 48)
    assert draws.box_M4 is not None
    given = epoch(hold_pixels(MemoryPixelStore(stack), CPU), "resized_crop_flip", batch=8, train_px=out_px)
    for place, number in enumerate(order):
        image = torch.from_numpy(stack[number]).permute(2, 0, 1).float()
        box = [int(value) for value in draws.box_M4[place]]
        wanted = functional.resized_crop(image, *box, size=[out_px, out_px], antialias=True)
        if draws.flip_M is not None and draws.flip_M[place]:
            wanted = wanted.flip(2)
        torch.testing.assert_close(given[number], wanted.permute(1, 2, 0), atol=0.02, rtol=0)


def test_gpus_resize_crops_in_tf32_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, used, multiply = torch.backends.cuda.matmul, [], torch.bmm

    def noted(*matrices: torch.Tensor) -> torch.Tensor:
        used.append(matmul.fp32_precision)
        return multiply(*matrices)

    monkeypatch.setattr(torch, "bmm", noted)
    _, draws = drawn("resized_crop_flip", 16)
    before = matmul.fp32_precision
    resize_crops(torch.from_numpy(images(24, 16)), draws, 12)
    assert (before, used[0], matmul.fp32_precision) == ("none", "tf32", "none")


@pytest.mark.parametrize("count", [1, 1100, 10_001])
def test_channel_statistics_are_exact(count: int) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 3)).astype(np.uint8)
    stack[..., 1] = 255  # the largest sums
    norm = measure(MemoryPixelStore(stack), np.arange(count))
    used = stack[np.linspace(0, count - 1, min(count, 10_000)).astype(np.int64)].reshape(-1, 3).astype(object)
    for channel in range(3):
        values = used[:, channel]
        mean, of_squares = sum(values) / len(values), sum(values**2) / len(values)
        assert norm.mean[channel] == mean
        assert norm.std[channel] == np.sqrt(max(of_squares - mean**2, 1.0))


def test_boxes_keep_to_the_image_and_to_their_law() -> None:
    _, draws = drawn("resized_crop_flip", 64, 20_000)
    assert draws.box_M4 is not None
    top, left, tall, wide = draws.box_M4.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert ((top + tall) <= 64).all()
    assert ((left + wide) <= 64).all()
    area, ratio = tall * wide / 64**2, wide / tall
    assert 0.07 < float(area.min()) < 0.09
    assert 0.70 < float(ratio.min()) < 0.78
    assert 1.28 < float(ratio.max()) < 1.42
    assert 0.45 < float(area.mean()) < 0.54


def test_a_whole_box_changes_nothing() -> None:
    stack = torch.from_numpy(images(3, 12))
    whole = Draws(box_M4=torch.tensor([[0.0, 0.0, 12.0, 12.0]] * 3))
    torch.testing.assert_close(resize_crops(stack, whole, 12), stack.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("augment", ["none", "crop_flip", "resized_crop_flip"])
def test_shares_of_a_batch_add_up_to_it(augment: str) -> None:
    pixels = hold_pixels(MemoryPixelStore(images(24, 16)), CPU)
    ids = np.arange(24)

    def batches(shard: WorkerShare) -> list[tuple[torch.Tensor, torch.Tensor]]:
        feed, rng = BatchLoader(pixels, RAW), np.random.default_rng(SEED)
        return list(feed.epoch(ids, ids, Recipe(augment=augment), shape=(4, 6), rng=rng, shard=shard))  # type: ignore[arg-type]

    whole = batches(WorkerShare())
    parts = [batches(WorkerShare(rank, 3)) for rank in range(3)]
    for step, (inputs, labels) in enumerate(whole):
        for rank in range(3):
            assert torch.equal(parts[rank][step][1], labels[rank::3])
            torch.testing.assert_close(parts[rank][step][0], inputs[rank::3])


def test_pixels_that_are_not_held_give_the_same_batches() -> None:
    pixel_store = MemoryPixelStore(images(24, 16))
    for augment in ("crop_flip_cutout", "resized_crop_flip"):
        held, asked = (
            epoch(hold_pixels(pixel_store, CPU), augment, batch=8),
            epoch(Pixels(pixel_store, CPU, None), augment, batch=8),
        )
        assert torch.equal(held, asked)


def test_pixels_in_memory_are_not_copied() -> None:
    stack = images(4, 8)
    stack.flags.writeable = False
    held = hold_pixels(MemoryPixelStore(stack), CPU).all_NHWC
    assert held is not None
    assert held.data_ptr() == stack.ctypes.data


@pytest.mark.parametrize(
    ("size_px", "kind"), [(8, "none"), (16, "crop_flip"), (64, "crop_flip"), (65, "resized_crop_flip")]
)
def test_auto_depends_on_the_size(size_px: int, kind: str) -> None:
    assert Recipe().augment_at(size_px) == kind
    assert Recipe(augment="flip").augment_at(size_px) == "flip"
