"""Several workers that share a fit do what one does with the whole batch: real processes, over gloo."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unseen_ray.config.recipe import Recipe
from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.hardware import numerics
from unseen_ray.training.loop import resume as standing
from unseen_ray.training.loop.batches import BatchLoader, WorkerShare, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.fit import FitPlan, fit

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, min_steps=0, batch_size=64, precision="float32", augment="crop_flip", lr=0.05)


def net() -> nn.Module:
    """Its answers for a sample do not depend on the others in its batch."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def wavering_net() -> nn.Module:
    """With statistics of batches and with dropout, which each worker draws for itself."""
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(512, 10))


def weights_of(
    shard: WorkerShare,
    make: Callable[[], nn.Module] = net,
    checkpoints: Checkpoints | None = None,
    draw: EpochDraw | None = None,
    recipe: Recipe = RECIPE,
) -> dict[str, torch.Tensor]:
    """Of a net that was trained on digits."""
    source = open_source(source_ref("digits"))
    pixel_store, _ = load_pixel_store(source, 8)
    ids = np.arange(256)
    labels = source.info.labels_N[ids]
    plan = FitPlan(ids_M=ids, labels_M=labels, num_classes=10, recipe=recipe, seed=5, shard=shard, draw=draw)
    torch.manual_seed(5)
    model = make()
    with numerics(1, False, CPU):
        for _ in fit(model, BatchLoader(hold_pixels(pixel_store, CPU), measure(pixel_store, ids)), plan, checkpoints):
            pass
    if checkpoints is not None:
        checkpoints.flush()
    return dict(model.state_dict())


@contextlib.contextmanager
def met(rank: int, folder: str) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def work(rank: int, folder: str, draw: EpochDraw | None, recipe: Recipe = RECIPE) -> None:
    with met(rank, folder):
        weights = weights_of(WorkerShare(rank, 2), draw=draw, recipe=recipe)
    save_file({name: value.contiguous() for name, value in weights.items()}, f"{folder}/{rank}.safetensors")


def work_until(rank: int, folder: str, stop_at: int | None, kept: bool) -> None:
    """Train, keeping every step where `kept`, and end without a word before a batch."""
    standing._WITHIN_S, standing._AGREED_STEPS = -1.0, 1
    given, epoch = 0, BatchLoader.epoch

    def counted(self: BatchLoader, *args: Any, **options: Any) -> Iterator[Any]:
        nonlocal given
        for batch in epoch(self, *args, **options):
            if given == stop_at:
                os._exit(7)
            given += 1
            yield batch

    BatchLoader.epoch = counted  # type: ignore[method-assign]
    Checkpoints.due = lambda self, trained_s: True  # type: ignore[method-assign]
    with met(rank, folder):
        checkpoints = Checkpoints(Folder(f"{folder}/../out"), "b" * 64) if kept else None
        weights = weights_of(WorkerShare(rank, 2), wavering_net, checkpoints)
    save_file({name: value.contiguous() for name, value in weights.items()}, f"{folder}/{rank}.safetensors")
    Path(f"{folder}/{rank}.given").write_text(str(given))


def ended(target: Callable[..., None], *args: Any) -> None:
    """Run a worker and end it without the interpreter's tear-down, in which a thread of torch's has been seen to abort."""
    target(*args)
    os._exit(0)


def both(folder: Path, target: Callable[..., None], *args: Any) -> list[int | None]:
    """How two workers have ended."""
    folder.mkdir(exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=ended, args=(target, rank, str(folder), *args)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]


@pytest.mark.slow
def test_two_workers_average_their_weights_as_one_does_and_mix_their_own_images(tmp_path: Path) -> None:
    averaged = RECIPE.model_copy(update={"optimizer": "adamw", "lr": 0.003, "layer_decay": 0.7, "ema": 0.9})
    mixed = averaged.model_copy(update={"mixup": 0.4, "cutmix": 1.0})
    found = {}
    for name, recipe in (("averaged", averaged), ("mixed", mixed)):
        assert both(tmp_path / name, work, None, recipe) == [0, 0]
        found[name] = [load_file(tmp_path / name / f"{rank}.safetensors") for rank in range(2)]
        for key, value in found[name][0].items():
            assert torch.equal(value, found[name][1][key]), key
    for key, value in weights_of(WorkerShare(), recipe=averaged).items():
        torch.testing.assert_close(found["averaged"][0][key], value, atol=2e-4, rtol=1e-3)
        assert not torch.equal(found["mixed"][0][key], found["averaged"][0][key])


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 6])
def test_workers_that_end_within_an_epoch_go_on_from_there(tmp_path: Path, stop_at: int) -> None:
    """Four steps an epoch, two epochs: to the same bits on each, whose dropout goes on as well, without a batch again."""
    assert both(tmp_path / "clean", work_until, None, False) == [0, 0]
    assert both(tmp_path / "stopped", work_until, stop_at, True) == [7, 7]
    assert both(tmp_path / "again", work_until, None, True) == [0, 0]
    clean, again = (
        [load_file(tmp_path / name / f"{rank}.safetensors") for rank in range(2)] for name in ("clean", "again")
    )
    for rank in range(2):
        assert int((tmp_path / "again" / f"{rank}.given").read_text()) == 8 - stop_at
        for name, value in clean[rank].items():
            assert rank or again[rank][name].equal(value), name  # statistics are the first worker's in the end
    weights = [name for name in clean[1] if "running" not in name and "tracked" not in name]
    assert all(clean[1][name].equal(again[1][name]) for name in weights)


@pytest.mark.parametrize("draw", [None, EpochDraw(fixed_ids=np.arange(50), size=130, seed=9)])
def test_two_workers_make_the_steps_that_one_makes(tmp_path: Path, draw: EpochDraw | None) -> None:
    assert both(tmp_path, work, draw) == [0, 0]
    alone = weights_of(WorkerShare(), draw=draw)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in alone.items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


def test_a_set_smaller_than_its_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples cannot be divided among 4 workers"):
        RECIPE.plan(3, workers=4)
