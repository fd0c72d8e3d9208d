"""How fast the same images are read from class folders, Parquet, a saved data set, tars and a list, and by the webdataset package.

    python benchmarks/read_forms.py --source data/cifar10-train.parquet --json benchmarks/results/read_forms_cpu.json

The first `--count` images of the source are written as PNG in every form; each form is opened once, and all its images are read, in order
and in a drawn order, in interleaved rounds. Nothing is decoded. It also checks that the forms hold the same pixels and labels, and that
one run on each keeps the same samples.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from timing import conditions, interleaved, quartiles, ratio, write

import unseen_ray as ur
from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.images.encode import to_png
from unseen_ray.data.sources.registry import Source, open_source, source_ref
from unseen_ray.reporting.tars import write_tars
from unseen_ray.storage.filesystem import Folder

WORDS = ("Parquet", "saved", "tars", "folder", "list")


def written(source: Source, root: Path) -> dict[str, Any]:
    """The images of a source in every form; how each is named as a source."""
    from datasets import ClassLabel, Dataset, Features, Image

    labels = source.info.labels_N.tolist()
    names = [f"c{number:03d}" for number in range(source.info.num_classes)]
    order = np.argsort(labels, kind="stable").tolist()  # as class folders have it
    images = [to_png(to_pixels(raw, source.info.size_px)) for _, raw in source.read(order)]
    labels = [labels[number] for number in order]
    (root / "parquet").mkdir(parents=True)
    metadata = {b"class_names": json.dumps(names).encode()}
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    pq.write_table(table, root / "parquet" / "train.parquet", row_group_size=1000)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rows = {"image": [{"bytes": raw, "path": None} for raw in images], "label": labels}
    Dataset.from_dict(rows, features=features).save_to_disk(str(root / "saved"))
    write_tars(open_source(source_ref(str(root / "parquet"))), np.arange(len(images)), Folder(str(root / "tars")))
    (root / "names.txt").write_text("\n".join(names))
    lines = ["path,label"]
    for number, (raw, label) in enumerate(zip(images, labels, strict=True)):
        path = root / "folder" / names[label] / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        lines.append(f"{path.relative_to(root)},{names[label]}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return {
        "Parquet": str(root / "parquet"),
        "saved": str(root / "saved"),
        "tars": {"use": "webdataset", "path": str(root / "tars"), "classes": str(root / "names.txt")},
        "folder": str(root / "folder"),
        "list": str(root / "list.csv"),
    }


def read_all(source: Source, ids: list[int]) -> int:
    return sum(len(raw) for _, raw in source.read(ids))


def read_by_package(urls: list[str]) -> int:
    import webdataset as wds

    return sum(len(row["png"]) for row in wds.WebDataset(urls, shardshuffle=False, empty_check=False))


def is_same(sources: dict[str, Source]) -> bool:
    """Whether all hold the same labels and the same pixels, to the bit."""
    first, *others = sources.values()
    pixels = np.stack([to_pixels(raw, 32) for _, raw in first.read(range(len(first.info)))])
    return all(
        np.array_equal(first.info.labels_N, other.info.labels_N)
        and np.array_equal(pixels, np.stack([to_pixels(raw, 32) for _, raw in other.read(range(len(first.info)))]))
        for other in others
    )


def kept_by(named: Any, out: Path) -> list[int]:
    recipe = {"epochs": 1, "min_steps": 0}
    config = ur.PruneConfig(source=named, keep=0.5, folds=2, recipe=recipe, executor="local", out=out)
    return ur.prune(config).coreset.ids.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=2_000, help="how many images the runs are on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        compared = {"use": "parquet", "path": args.source, "limit": args.compared}
        named = written(open_source(source_ref(compared)), root / "few")
        same = is_same({form: open_source(source_ref(each)) for form, each in named.items()})
        kept = [kept_by(each, root / f"run-{form}") for form, each in named.items()]
        named = written(open_source(source_ref({**compared, "limit": args.count})), root / "many")
        sources = {form: open_source(source_ref(each)) for form, each in named.items()}
        drawn = np.random.default_rng(0).permutation(args.count).tolist()
        urls = sorted(map(str, (root / "many" / "tars").glob("*.tar")))
        loops: dict[str, Callable[[], Any]] = {
            **{
                f"{form} in order": functools.partial(read_all, each, list(range(args.count)))
                for form, each in sources.items()
            },
            **{
                f"{form} drawn": functools.partial(read_all, each, drawn)
                for form, each in sources.items()
                if form != "Parquet"
            },
            "webdataset package": functools.partial(read_by_package, urls),
        }
        seconds = interleaved(loops, rounds=args.rounds, most=args.rounds)
    report = {
        "conditions": conditions(torch.device("cpu"), args),
        "same_labels_and_pixels": same,
        "same_samples_kept": all(ids == kept[0] for ids in kept),
        "images_per_s": {name: round(args.count / quartiles(each)["median"]) for name, each in seconds.items()},
        "times_as_fast_as_parquet": {
            form: ratio(seconds, f"{form} in order", "Parquet in order") for form in WORDS[1:]
        },
        "tars_times_as_fast_as_the_package": ratio(seconds, "tars in order", "webdataset package"),
    }
    print(json.dumps(report, indent=1))
    write(args.json, report)


if __name__ == "__main__":
    main()
