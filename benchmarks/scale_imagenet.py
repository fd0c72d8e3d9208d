"""The whole pipeline at ImageNet-1K's true count: 1,281,167 rows that name real JPEG files, repeated, and a tiny model.

    python benchmarks/scale.py imagenet --scratch /big/disk --json benchmarks/results/scale_imagenet_cpu.json

What is real: Ray, the reading and scaled decoding of every row's JPEG, folds, training, votes, merge, selection, storage. What is not:
there are 128 different images, and the model learns next to nothing in its one epoch.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scale_pruned import checked, prune, reported

IMAGENET = 1_281_167


def tiny(num_classes: int) -> torch.nn.Module:
    """Two convolutions of stride 4 and a linear layer: what costs next to nothing beside the feed."""
    nn = torch.nn
    body = [nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=4), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def build(folder: Path, sample: Path, count: int) -> Path:
    """A Parquet file of `count` rows that name the sample's JPEGs, which are written beside it."""
    images = pq.read_table(sample).column("image").to_pylist()
    labels = pq.read_table(sample).column("label").to_numpy()
    classes = np.unique(labels, return_inverse=True)[1]
    (folder / "jpeg").mkdir(parents=True)
    names = [f"jpeg/{number:03d}.JPEG" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        (folder / name).write_bytes(image["bytes"])
    which = np.random.default_rng(0).permutation(np.arange(count) % len(images))
    paths = pa.array(names).take(pa.array(which))
    image_column = pa.StructArray.from_arrays([pa.nulls(count, pa.binary()), paths], ["bytes", "path"])
    path = folder / "train.parquet"
    pq.write_table(pa.table({"image": image_column, "label": classes[which]}), path, row_group_size=16_384)
    return path


def run(scratch: Path, sample: Path, count: int, size_px: int) -> dict[str, Any]:
    """Build the set, prune it, check the ids, and say what each phase took."""
    began = time.monotonic()
    data = build(scratch / "set", sample, count)
    built_s = time.monotonic() - began
    out, pixels = scratch / "run", scratch / "pixels"
    recipe = {"epochs": 1, "min_steps": 0, "batch_size": 256, "augment": "flip"}
    fields = {"source.size": size_px, "folds": 4, "model": "scale_imagenet:tiny", "pixel_folder": pixels}
    done = prune(data, out, **fields, **{f"recipe.{name}": value for name, value in recipe.items()})
    stages = [stage["seconds"] for stage in done.stages]
    decoded_s = max(path.stat().st_mtime for path in pixels.rglob("*.json")) - done.started
    return {
        "samples": count,
        "size_px": size_px,
        "kept": checked(out, count, votes_0=3),
        "seconds": {
            "make the set": built_s,
            "open and decode": decoded_s,
            **{f"stage {number}": seconds for number, seconds in enumerate(stages)},
            "the rest": done.total_s - decoded_s - sum(stages),
            "prune in all": done.total_s,
        },
        "decoded_per_s": count / decoded_s,
        "pixel_gb": sum(path.stat().st_size for path in pixels.rglob("*.pixels")) / 1e9,
        "peak_gb": {name: held["resident_gb"] for name, held in done.peaks.items()},
    }


def add_to(subparsers: Any) -> None:
    """The subcommand `imagenet` of scale.py."""
    parser = subparsers.add_parser(
        "imagenet", help="the whole pipeline over 1,281,167 real JPEGs, 128 of them different"
    )
    parser.add_argument("--samples", type=int, default=IMAGENET)
    parser.add_argument("--size", type=int, default=64, help="px (default: 64)")
    parser.add_argument("--source", type=Path, default=Path(os.environ.get("UNSEEN_DATA", "data")), help="of the JPEGs")
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for some 16 GB, removed in the end")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    """Run it, print what it took, and clean up."""
    sample = args.source.resolve() / "imagenet-sample128.parquet"
    reported(args, "scale-imagenet", lambda scratch: run(scratch, sample, args.samples, args.size))
