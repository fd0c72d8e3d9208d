"""Number formats, memory, NCCL and rates: what a GPU does that no CPU shows."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile

import numpy as np
import torch
from gpu_checks import Found, Place
from gpu_training import DEVICE, GPU, Ours, images, model_of, recipe, with_numerics

import unseen_ray as ur
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.training.hardware import supported_precisions
from unseen_ray.training.loop.batches import hold_pixels
from unseen_ray.training.loop.trainer import Trainer

LEFT_MB = 64  # that a fit may leave on the device, in tables of cuDNN and cuBLAS


def precisions(place: Place) -> Found:
    """Speed and loss of every number format that the device has."""
    batch, model = (16, "small_cnn") if place.small else (512, "resnet18_cifar")
    pixels, labels = images(batch * (4 if place.small else 40), 32, 10)
    labels[:10] = np.arange(10)
    with with_numerics():
        for precision in supported_precisions(DEVICE):
            held, settings = hold_pixels(MemoryPixelStore(pixels), DEVICE), recipe(batch, precision=precision)
            training = Ours(model_of(model, 10), held, labels, settings)
            rate, loss = training.rate(0.1 if place.small else 2.0), training.epoch().loss
            yield (
                f"{precision}: {rate:,.0f} images/s, loss {loss:.3f}",
                {precision: {"images_per_s": rate, "loss": loss}},
            )


def memory(place: Place) -> Found:
    """What fits leave on the device, and whether pixels still find room beside what the allocator caches."""
    pixels, labels = images(20_000, 32, 10)
    left: list[float] = []
    with with_numerics():
        for _ in range(3):
            training = Ours(
                model_of("resnet18_cifar", 10), hold_pixels(MemoryPixelStore(pixels), DEVICE), labels, recipe(1024)
            )
            for _ in range(2):
                training.epoch()
            del training
            gc.collect()
            left.append(torch.cuda.memory_allocated() / 1e6)
    yield f"after three fits {', '.join(f'{each:.0f}' for each in left)} MB are left", {"left_mb": left}
    if left[-1] > left[0] + LEFT_MB:
        raise SystemExit("each fit leaves more memory")
    torch.empty(int(torch.cuda.mem_get_info()[0] * 0.9), dtype=torch.uint8, device=DEVICE)  # given back to the cache
    held = hold_pixels(MemoryPixelStore(pixels), DEVICE).all_NHWC is not None
    yield f"pixels find room in the allocator's cache: {held}", {"held_beside_cache": held}
    if not held:
        raise SystemExit("the cache was counted as memory in use")


def group_of_one(place: Place) -> Found:
    """Steps of one worker alone and of one in a group of its own: DistributedDataParallel over NCCL, or Gloo on a CPU."""
    from torch import distributed

    kind = "nccl" if GPU else "gloo"
    with tempfile.TemporaryDirectory() as folder, with_numerics(deterministic=True):
        distributed.init_process_group(kind, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        alone, grouped = (_losses(replicas) for replicas in (1, 2))
        distributed.destroy_process_group()
    yield f"{kind}: losses {alone} alone, {grouped} in a group", {"alone": alone, "grouped": grouped}
    if not np.allclose(alone, grouped, rtol=1e-3):
        raise SystemExit("a group of one trains otherwise than one alone")


def _losses(replicas: int) -> list[float]:
    """Of four steps over one batch; as soon as they are several, replicas are averaged by torch.distributed."""
    torch.manual_seed(1)
    inputs = torch.randn(32, 3, 32, 32).to(DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(32, device=DEVICE) % 10
    settings = recipe(32, precision="float32")
    trainer = Trainer(model_of("small_cnn", 10), settings, steps=4, num_classes=10, device=DEVICE, replicas=replicas)
    return [round(float(trainer.step(inputs, labels, 0.002)[0]), 4) for _ in range(4)]


def out_of_memory(place: Place) -> Found:
    """What a run says that gets 2 % of the GPU's memory."""
    torch.cuda.set_per_process_memory_fraction(0.02)
    with tempfile.TemporaryDirectory() as out:
        try:
            ur.prune(
                source={"use": "parquet", "path": str(place.data / "cifar10-train.parquet")},
                keep=0.5,
                folds=2,
                model="resnet18_cifar",
                recipe={"batch_size": 25_000, "epochs": 1, "min_steps": 0},
                executor="local",
                log_to="none",
                out=out,
            )
        except ur.UnseenError as error:
            yield str(error), {"said": str(error)}
            if "Lower recipe.batch_size" not in str(error):
                raise
        else:
            raise SystemExit("a batch of 25,000 found room in 2 % of the memory")


def planned_rates(place: Place) -> Found:
    """Rates that `plan --measure` takes, by which plans are made."""
    model, recipe_name = ("small_cnn", "quick") if place.small else ("resnet18_cifar", "tdds-200")
    source = {
        "use": "parquet",
        "path": str(place.data / "cifar10-train.parquet"),
        "limit": 400 if place.small else None,
    }
    line = [
        sys.executable,
        "-m",
        "unseen_ray",
        "plan",
        "--source",
        json.dumps(source),
        "--keep",
        "0.7",
        "--model",
        model,
    ]
    line += ["--recipe", recipe_name, "--workers", "1", "--measure", "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"plan ended with {done.returncode}")
    plan = json.loads(done.stdout)
    rates = {name: rate for name, rate in plan["rates"].items() if name != "how"}
    yield ", ".join(f"{name} {rate:,.0f} images/s" for name, rate in rates.items()), plan["rates"]
