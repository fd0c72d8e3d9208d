"""The same on a GPU: batches, learning, checkpoints, CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.fitting import recipe, train
from unseen_ray.config.recipe import Recipe
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.training.loop.batches import BatchLoader, Normalisation, Pixels, WorkerShare, hold_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize("augment", ["none", "crop_flip", "crop_flip_cutout", "resized_crop_flip"])
def test_batches_are_those_of_the_cpu(augment: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    pixel_store, ids, norm = (
        MemoryPixelStore(images),
        np.arange(24),
        Normalisation((100.0, 110.0, 120.0), (50.0, 60.0, 70.0)),
    )

    def epoch(pixels: Pixels) -> torch.Tensor:
        feed, rng = BatchLoader(pixels, norm), np.random.default_rng(1)
        batches = feed.epoch(ids, ids, Recipe(augment=augment), shape=(3, 8), rng=rng, shard=WorkerShare())  # type: ignore[arg-type]
        return torch.cat([inputs for inputs, _ in batches]).cpu()

    held = hold_pixels(pixel_store, GPU)
    assert held.all_NHWC is not None
    assert held.all_NHWC.dtype == torch.uint8
    for pixels in (held, Pixels(pixel_store, GPU, None)):
        torch.testing.assert_close(epoch(pixels), epoch(hold_pixels(pixel_store, CPU)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_every_precision_learns(precision: str) -> None:
    _, stats = train(None, recipe(12, batch_size=32, augment="none", precision=precision), device=GPU)
    _, on_cpu = train(None, recipe(12, batch_size=32, augment="none"))
    assert stats[-1].loss < 0.8 * stats[0].loss
    assert abs(stats[-1].accuracy - on_cpu[-1].accuracy) < 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_deterministic_fit_goes_on_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    settings = recipe(6, precision=precision, deterministic=True)
    undisturbed, _ = train(None, settings, device=GPU)
    train(tmp_path, settings, device=GPU, stop_after=3)
    resumed, stats = train(tmp_path, settings, device=GPU)
    assert stats[0].seconds == stats[0].earlier_s > 0, "the first of them is the checkpoint's"
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_a_model_compiled_into_cuda_graphs_learns() -> None:
    _, stats = train(None, recipe(12, batch_size=32, augment="none", precision="bf16", compile=True), device=GPU)
    assert stats[-1].loss < 0.8 * stats[0].loss
