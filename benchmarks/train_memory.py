"""Peak memory of a worker that trains and scores, above what importing torch and torchvision takes.

Each case runs in a process of its own. What it must hold: the pixels (uint8), the model (weights, gradients, momentum), and the
activations that one training step keeps for its backward pass, counted as autograd keeps them.

python benchmarks/train_memory.py --json benchmarks/results/train_memory_cpu.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SAMPLES = 50_000  # CIFAR-10; a fifth of it at 64 px


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def activations(model: Any, inputs: Any, labels: Any, precision: str) -> int:
    """Bytes that a step keeps for its backward pass, weights apart."""
    import torch

    from unseen_ray.config.recipe import Recipe
    from unseen_ray.training.loop.trainer import autocast

    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast(Recipe(precision=precision), inputs.device):  # type: ignore[arg-type]
            loss = torch.nn.functional.cross_entropy(model(inputs).float(), labels)
        total = sum(kept.values())
        loss.backward()
    return total


def work(case: Any, answer: Connection) -> None:
    """Train two epochs with checkpoints and score, in a fresh process; then count what it had to hold."""
    import torch
    import torchvision  # noqa: F401

    before = memory("VmRSS")
    import numpy as np
    from train_speed import Paced, pixels, recipe

    from unseen_ray.data.images.pixel_store import MemoryPixelStore
    from unseen_ray.training.hardware import numerics, resolve_precision
    from unseen_ray.training.loop.batches import BatchLoader, hold_pixels, measure
    from unseen_ray.training.loop.predict import predict

    device = torch.device("cpu")
    precision = resolve_precision("auto", device)
    images, labels = pixels(case, SAMPLES if case.size_px == 32 else SAMPLES // 5)
    few = case.images
    with tempfile.TemporaryDirectory() as folder, numerics(1, False, device):
        ids, pixel_store = np.arange(few), MemoryPixelStore(images)
        training = Paced(case, images, labels[:few], folder, device, precision)
        for _ in range(2):
            training.epoch()
        training.settle()
        model, feed = training.model, BatchLoader(hold_pixels(pixel_store, device), measure(pixel_store, ids))
        for _ in predict(model, feed, np.arange(1024), recipe(case, precision)):
            pass
    peak = memory("VmHWM")
    weights = sum(weight.nbytes for weight in model.parameters())
    inputs = torch.zeros(case.batch, 3, case.size_px, case.size_px).to(memory_format=torch.channels_last)
    held = {
        "data": images.nbytes,
        "model": 3 * weights,
        "activations": activations(model.train(), inputs, torch.zeros(case.batch, dtype=torch.int64), precision),
    }
    answer.send({"peak": peak - before, **held, "peak/held": round((peak - before) / sum(held.values()), 3)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    import torch
    from timing import conditions, write
    from train_speed import CPU_CASES

    report: dict[str, Any] = {"conditions": conditions(torch.device("cpu"), args), "cases": {}}
    context = multiprocessing.get_context("spawn")
    for case in CPU_CASES:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(case, there))
        process.start()
        there.close()
        report["cases"][case.name] = found = here.recv()
        process.join()
        print(
            case.name,
            {name: value if isinstance(value, float) else f"{value / 1e6:.0f} MB" for name, value in found.items()},
        )
    write(args.json, report)


if __name__ == "__main__":
    main()
