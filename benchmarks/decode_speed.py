"""How fast one core decodes real photographs: ours against bare loops, as they come and after `unseen-ray prepare`.

    python benchmarks/decode_speed.py --source data/imagenet-sample128.parquet --json benchmarks/results/decode_speed_cpu.json

Every loop reads the same Parquet files and fills an array of (N, size, size, 3) uint8, on one core, in interleaved rounds; seconds are
those of the CPU.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from PIL import Image, ImageOps, features
from timing import conditions, interleaved, quartiles, ratio, write
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

import unseen_ray as ur
from unseen_ray.data.images.pixel_store import decode_range
from unseen_ray.data.prepare.shards import Form
from unseen_ray.data.sources.registry import open_source, source_ref

Loop = Callable[[bytes, int], Any]
FORMS = {64: (("jpeg", 64), ("raw", 64)), 224: (("jpeg", 256), ("jpeg", 224), ("raw", 224))}


def bare_torchvision(encoded: bytes, size_px: int) -> Any:
    image = decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return (
        functional.center_crop(functional.resize(image, [size_px], antialias=True), [size_px, size_px])
        .permute(1, 2, 0)
        .numpy()
    )


def bare_simplejpeg(encoded: bytes, size_px: int) -> Any:
    """Decoded at the eighth part of its size that is just large enough, then scaled by torch."""
    pixels = simplejpeg.decode_jpeg(encoded, "RGB", min_height=size_px, min_width=size_px, min_factor=1)
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, top : top + side, left : left + side]
    if side != size_px:
        square = torch.nn.functional.interpolate(square, size=(size_px, size_px), mode="bilinear", antialias=True)
    return square[0].permute(1, 2, 0).numpy()


def bare_pillow(encoded: bytes, size_px: int) -> Any:
    image = Image.open(io.BytesIO(encoded))
    image.draft("RGB", (size_px, size_px))
    image = image if image.mode == "RGB" else image.convert("RGB")
    return ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR)


BARE: dict[str, Loop] = {"torchvision": bare_torchvision, "Pillow": bare_pillow, "simplejpeg": bare_simplejpeg}


def repeated(source: str, copies: int, folder: Path) -> Path:
    """The images several times over in one file, more than a reader keeps in memory."""
    table = pq.read_table(source)
    path = folder / "originals.parquet"
    pq.write_table(pa.concat_tables([table] * copies), path, row_group_size=table.num_rows, compression="none")
    return path


def images_in(place: Path) -> Iterator[bytes]:
    """The encoded images of Parquet files, read the plain way."""
    for path in sorted(place.glob("*.parquet")) if place.is_dir() else [place]:
        for batch in pq.ParquetFile(path).iter_batches(128, columns=["image"]):
            yield from (encoded.as_py() for encoded in batch.column(0).field("bytes"))


def filling(loop: Loop, place: Path, count: int, size_px: int) -> Callable[[], object]:
    def fill() -> object:
        pixels = np.empty((count, size_px, size_px, 3), np.uint8)
        for number, encoded in enumerate(images_in(place)):
            pixels[number] = loop(encoded, size_px)
        return pixels

    return fill


def measure(originals: Path, size_px: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """All loops on all forms of the images, at one size, in the same rounds."""
    places = {"as they come": originals}
    for kind, size in FORMS[size_px]:
        places[f"{kind} of {size} px"] = folder / f"{kind}-{size}"
        ur.prepare(str(originals), places[f"{kind} of {size} px"], kind=kind, size=size, workers=1)
    variants, weights = {}, {}
    for form, place in places.items():
        source = open_source(source_ref(str(place)))
        ids = range(len(source.info))
        weights[form] = sum(map(len, images_in(place))) / len(ids)
        variants[form, "ours"] = lambda source=source, ids=ids: decode_range(source, ids, size_px)
        for name, loop in {} if form.startswith("raw") else BARE.items():
            variants[form, name] = filling(loop, place, len(ids), size_px)
    named = {"/".join(key): variant for key, variant in variants.items()}
    seconds = interleaved(named, rounds=rounds, most=2 * rounds, clock=time.process_time)
    count = pq.read_metadata(originals).num_rows
    rows = []
    for form in places:
        loops = [name for of, name in variants if of == form]
        speeds = {name: quartiles([count / each for each in seconds[f"{form}/{name}"]]) for name in loops}
        ratios = {f"to {name}": ratio(seconds, f"{form}/ours", f"{form}/{name}") for name in loops if name != "ours"}
        gain = ratio(seconds, f"{form}/ours", "as they come/ours")
        best = min((name for name in loops if name != "ours"), key=lambda of: -speeds[of]["median"], default=None)
        rows.append(
            {"size": size_px, "form": form, "kB": round(weights[form] / 1e3, 1), "images_per_s": speeds}
            | {"best_bare": best, "ratios": ratios, "gain": gain, "rounds": len(seconds[f"{form}/ours"])}
        )
        print(
            size_px,
            form,
            {name: speed["median"] for name, speed in speeds.items()},
            f"gain {gain['median']}",
            flush=True,
        )
    return rows


def making(originals: Path, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Images a second that one core prepares."""
    source = open_source(source_ref(str(originals)))
    images = [raw for _, raw in source.read(range(count))]
    forms = [
        Form(kind=k, size_px=s, quality=90 if k == "jpeg" else None)
        for k, s in (f for of in FORMS.values() for f in of)
    ]
    variants = {str(form): lambda form=form: [form.encode(raw) for raw in images] for form in forms}
    seconds = interleaved(variants, rounds=rounds, most=2 * rounds, clock=time.process_time)
    return {name: quartiles([count / each for each in values]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="a Parquet file of JPEGs")
    parser.add_argument("--copies", type=int, default=8, help="how often to take its images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    warnings.filterwarnings(
        "ignore", "The image decoding", DeprecationWarning
    )  # torchvision's, of what is measured here
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as temporary:
        originals = repeated(args.source, args.copies, Path(temporary))
        report = {
            "conditions": conditions(torch.device("cpu"), args) | versions(),
            "rows": [row for size in FORMS for row in measure(originals, size, Path(temporary), args.rounds)],
            "prepared_per_s": making(originals, pq.read_metadata(args.source).num_rows, args.rounds),
        }
    write(args.json, report)


def versions() -> dict[str, str | None]:
    own = {name: version(name) for name in ("pillow", "simplejpeg")}
    return own | {"libjpeg_turbo_of_pillow": features.version("libjpeg_turbo")}


if __name__ == "__main__":
    main()
