"""Several workers that share a fit do what one does with the whole batch: real processes, over gloo."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unseen_ray.data.loading import load_plane
from unseen_ray.recipe import Recipe
from unseen_ray.sources import open_source, source_ref
from unseen_ray.training.feed import Feed, Share, hold_pixels, measure
from unseen_ray.training.fit import FitPlan, fit
from unseen_ray.training.hardware import numerics

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, min_steps=0, batch_size=64, precision="float32", augment="crop_flip", lr=0.05)


def weights_of(share: Share) -> dict[str, torch.Tensor]:
    """Of a net whose answers for a sample do not depend on the others in its batch."""
    source = open_source(source_ref("digits"))
    plane, _ = load_plane(source, 8)
    ids = np.arange(256)
    plan = FitPlan(ids_M=ids, labels_M=source.info.labels_N[ids], num_classes=10, recipe=RECIPE, seed=5, share=share)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    with numerics(1, False, CPU):
        for _ in fit(model, Feed(hold_pixels(plane, CPU), measure(plane, ids)), plan):
            pass
    return dict(model.state_dict())


def work(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    weights = weights_of(Share(rank, 2))
    save_file({name: value.contiguous() for name, value in weights.items()}, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_workers_make_the_steps_that_one_makes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    alone = weights_of(Share())
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in alone.items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


def test_a_set_smaller_than_its_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples cannot be divided among 4 workers"):
        RECIPE.plan(3, workers=4)
