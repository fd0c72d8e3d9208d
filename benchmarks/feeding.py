"""How many decoded images a second come from slow storage to where a batch is made: pixel files of which every read takes a while.

The host's side alone, without training: pixels in files (in the page cache of this machine), and a wait added to each read, as network
storage has it. Wanted at a batch of 1024 images of 224 px are 4,000 images a second on two cores where a read takes 1 ms.

    python benchmarks/feeding.py --json benchmarks/results/feeding_cpu.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import conditions, write

from unseen_ray.data.images import pixel_files
from unseen_ray.data.images.pixel_files import FilePixelStore, PixelFiles
from unseen_ray.data.images.prefetch import fetched_ahead

_read = os.preadv


def write_files(files: PixelFiles) -> None:
    """Files of noise, with receipts of the same time: they are as if decoded from a source."""
    rng = np.random.default_rng(0)
    os.makedirs(files.folder)
    for place, (start, stop) in enumerate(files.ranges()):
        Path(files.folder, files.name(place)).write_bytes(rng.bytes((stop - start) * files.image_bytes))
        time.sleep(0.01)  # a receipt is the younger
        Path(files.folder, f"{place:05d}.json").write_text("{}")


def rate(files: PixelFiles, latency_s: float, batch: int, batches: int) -> float:
    """Images per second of an epoch's batches in random order, without its first two."""

    def slow(*given: Any) -> int:
        time.sleep(latency_s)
        return _read(*given)

    pixel_files.os.preadv = _read if not latency_s else slow
    rng, total = np.random.default_rng(1), files.num_samples
    asked = [rng.integers(0, total, batch) for _ in range(batches + 2)]
    at = [time.perf_counter() for _ in fetched_ahead(FilePixelStore(files), asked)]
    return batch * batches / (at[-1] - at[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--batches", type=int, default=6, help="of each round, after two that are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0, 0.3, 1, 5])
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    report: dict[str, Any] = {"conditions": conditions(torch.device("cpu"), args), "images_per_s": {}}
    with tempfile.TemporaryDirectory() as folder:
        files = PixelFiles(folder=f"{folder}/pixels", num_samples=args.images, size_px=args.size_px)
        write_files(files)
        for latency_ms in args.latency_ms:
            rates = [rate(files, latency_ms / 1000, args.batch, args.batches) for _ in range(args.rounds)]
            report["images_per_s"][f"{latency_ms:g}"] = {
                "median": round(statistics.median(rates)),
                "rounds": [round(each) for each in rates],
            }
            print(f"{latency_ms:g} ms: {statistics.median(rates):,.0f} images/s", flush=True)
    write(args.json, report)


if __name__ == "__main__":
    main()
