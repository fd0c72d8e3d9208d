"""How fast training is beside a bare loop over one batch, and as a share of what the card multiplies."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_checks import CIFAR10, FAST, ROOT, Found, Place
from gpu_training import DEVICE, GPU, Ours, bare_rate, images, matrix_rate, model_of, own_pixels, recipe, with_numerics

from unseen_ray.data.images.pixel_files import FilePixelStore, PixelFiles
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.loop.batches import Pixels, hold_pixels

BATCHES = (64, 128, 512, 1024)


def small_images(
    place: Place,
    model: str,
    batches: tuple[int, ...] = BATCHES,
    compiled: bool = False,
    graphs: bool = True,
    named: str = "quick",
) -> Found:
    """A model at 32 px by a named recipe, its pixels on the device, checkpoints beside it."""
    model = "small_cnn" if place.small and model != FAST[0] else model
    with with_numerics():
        peak_rate = matrix_rate()
        for batch in (16,) if place.small else batches:
            pixels, labels = images(batch * (4 if place.small else max(40, 20_000 // batch)), 32, 10)
            labels[:10] = np.arange(10)
            held = hold_pixels(MemoryPixelStore(pixels), DEVICE)
            settings = recipe(batch, named, compile=compiled, cuda_graphs=graphs)
            with tempfile.TemporaryDirectory() as folder:
                training = Ours(model_of(model, 10), held, labels, settings, Path(folder))
                found = _beside_bare(training, model, 32, 10, peak_rate, seconds=0.1 if place.small else 1.5)
            yield f"batch {batch}: {_said(found)}", {str(batch): found}


def on_all_of_cifar10(place: Place, model: dict[str, Any], recipe: str, seeds: int) -> Found:
    """What a recipe reaches on the test set, and how long a training takes with all that belongs to it."""
    asked: dict[str, Any] = {"use": recipe}
    if place.small:
        model, seeds, asked = {**model, "width": 8}, 1, {**asked, "epochs": 2, "batch_size": 50}
    table = place.state / "runs" / f"{recipe}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, str(ROOT / "benchmarks" / "train_accuracy.py"), "--json", str(table)]
    line += ["--source", str(place.data / CIFAR10[0]), "--test", str(place.data / CIFAR10[1])]
    line += ["--model", json.dumps(model), "--recipe", json.dumps(asked), "--seeds", *map(str, range(seeds))]
    done = subprocess.run([*line, *(["--limit", "500"] if place.small else [])], check=False)
    if done.returncode:
        raise SystemExit(f"train_accuracy.py ended with {done.returncode}")
    found = json.loads(table.read_text())
    pairs = zip(found["accuracies"], found["seconds"], strict=True)
    yield f"mean {found['mean']:.4f}: " + ", ".join(f"{accuracy:.4f} in {s:.1f} s" for accuracy, s in pairs), found


def large_images(place: Place) -> Found:
    """A model of ImageNet's size: pixels on the device, in files, and in files that answer a millisecond later."""
    model, size_px, batch, count = ("resnet18", 32, 4, 16) if place.small else ("resnet50", 224, 256, 4096)
    classes, seconds = 1000, 0.1 if place.small else 5.0
    with with_numerics(), tempfile.TemporaryDirectory() as folder:
        peak_rate, files, labels = matrix_rate(), _files(Path(folder), count, size_px), np.arange(count) % classes
        labels[0] = classes - 1
        stores: dict[str, Callable[[], Pixels]] = {
            "on the device": lambda: hold_pixels(FilePixelStore(files), DEVICE),
            "in files": lambda: own_pixels(FilePixelStore(files)),
            "in files 1 ms away": lambda: own_pixels(_Distant(files)),
        }
        for name, pixels in stores.items():
            settings = recipe(batch, augment="resized_crop_flip")
            training = Ours(model_of(model, classes), pixels(), labels, settings)
            found = _beside_bare(training, model, size_px, classes, peak_rate, seconds)
            yield f"pixels {name}: {_said(found)}", {name: found}


@dataclass(slots=True, eq=False)
class _Distant(FilePixelStore):
    """Files of a storage that takes a millisecond to answer."""

    def _read(self, first: int, into: np.ndarray) -> None:
        time.sleep(0.001)
        FilePixelStore._read(self, first, into)


def _files(folder: Path, count: int, size_px: int) -> PixelFiles:
    files = PixelFiles(folder=str(folder), num_samples=count, size_px=size_px)
    block = np.random.default_rng(0).integers(0, 256, (64, size_px, size_px, 3), np.uint8)
    for place, (start, stop) in enumerate(files.ranges()):
        digest = Folder(str(folder)).write(
            files.name(place), np.resize(block, (stop - start, size_px, size_px, 3)).data.cast("B")
        )
        receipt = {"rows": [start, stop], "sha256": digest, "bad": []}
        Path(folder, files.name(place)).with_suffix(".json").write_text(json.dumps(receipt))
    return files


def _beside_bare(
    training: Ours, model: str, size_px: int, classes: int, peak_rate: float, seconds: float
) -> dict[str, Any]:
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    rate, waits = training.rate(seconds), training.waits()
    peak = torch.cuda.max_memory_allocated() / 1e9 if GPU else None
    bare, operations = bare_rate(model_of(model, classes), training.recipe, size_px, classes, seconds)
    return {
        "images_per_s": rate,
        "bare_images_per_s": bare,
        "share_of_bare": rate / bare,
        "share_of_matrix_rate": rate * operations / peak_rate,
        "matrix_tflops": peak_rate / 1e12,
        "host_waits_a_step": waits,
        "peak_memory_gb": peak,
        "precision": training.recipe.precision,
    }


def _said(found: dict[str, Any]) -> str:
    said = (
        f"{found['images_per_s']:,.0f} images/s, {found['share_of_bare']:.2f} of a bare loop, "
        f"{found['share_of_matrix_rate']:.1%} of {found['matrix_tflops']:.3g} TFLOP/s"
    )
    if found["host_waits_a_step"] is None:
        return said
    return f"{said}, {found['host_waits_a_step']:.2f} host waits a step, peak {found['peak_memory_gb']:.1f} GB"
