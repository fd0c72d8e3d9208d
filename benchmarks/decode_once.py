"""How often each image is read and decoded by K folds: kept in files, against decoding at every read.

python benchmarks/decode_once.py --json benchmarks/results/decode_once_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from timing import conditions, write

import unseen_ray as ur
from unseen_ray.data.images.decode import to_pixels

SAMPLES, FOLDS, SIZE_PX = 20_000, 5, 64


class NotedJpegs:
    """So many samples of the real JPEGs, again and again; each decoding is noted in a file of its process."""

    def __init__(self, sample: str, count: int, log: str) -> None:
        table = pq.read_table(sample)
        self._images = [image["bytes"] for image in table.column("image").to_pylist()]
        classes = np.unique(table.column("label").to_numpy(), return_inverse=True)[1]
        self._which = np.random.default_rng(0).permutation(np.arange(count) % len(self._images))
        self.labels, self.keys = classes[self._which], [f"row-{row}" for row in range(count)]
        self._log = Path(log)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> np.ndarray:
        with (self._log / str(os.getpid())).open("a") as stream:
            stream.write(f"{row}\n")
        return to_pixels(self._images[self._which[row]], SIZE_PX)


def run(folder: Path, pixel_folder: str | None, count: int) -> dict[str, Any]:
    """Prune once; the decodings of each image, and the seconds."""
    log = folder / "log"
    log.mkdir(parents=True)
    sample = str(Path(os.environ.get("UNSEEN_DATA", "data")).resolve() / "imagenet-sample128.parquet")
    source = {"use": "decode_once:NotedJpegs", "sample": sample, "count": count, "log": str(log)}
    config = ur.PruneConfig(
        source=source,
        keep=0.5,
        folds=FOLDS,
        model="scale_imagenet:tiny",
        recipe={"epochs": 1, "min_steps": 0, "batch_size": 256, "augment": "flip"},
        pixel_memory_gb=0,
        pixel_folder=pixel_folder,
        out=folder / "run",
    )
    began = time.monotonic()
    result = ur.prune(config)
    seconds = time.monotonic() - began
    reads = Counter(row for path in log.iterdir() for row in path.read_text().split())
    times = np.array([reads[str(row)] for row in range(count)])
    return {
        "seconds": seconds,
        "decodings": int(times.sum()),
        "an image": {"least": int(times.min()), "most": int(times.max())},
        "ids": result.coreset.ids.tolist(),
    }


def main() -> None:
    """Both ways, one after the other, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, pixel_folder in (("files", None), ("every read", "none")):
            found[name] = run(Path(folder) / name, pixel_folder, asked.samples)
    same = len({str(each.pop("ids")) for each in found.values()}) == 1
    facts = {"samples": asked.samples, "folds": FOLDS, "size_px": SIZE_PX, "same_ids": same, "ways": found}
    print(json.dumps(facts, indent=1))
    write(asked.json, {"conditions": conditions(torch.device("cpu"), asked), **facts})


if __name__ == "__main__":
    main()
