"""Writes the kept samples as WebDataset tars, with the number of samples in each and a list of keys."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

import numpy as np

from unseen_ray.core.arrays import IdArray
from unseen_ray.data.images.encode import to_png
from unseen_ray.data.listing.image_files import IMAGE_ENDINGS, ending_of, ending_of_head
from unseen_ray.data.sources.registry import Source
from unseen_ray.data.sources.webdataset.source import WebDatasetSource
from unseen_ray.data.sources.webdataset.tar_index import members_by_key
from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import Folder

__all__ = ["write_tars"]

SHARDS_FILE = "index.json"
KEYS_FILE = "keys.txt"
CLASSES_FILE = "classes.txt"
_SAMPLES = 5000  # in a tar that is not one of the source's
_Files = list[tuple[str, bytes]]


def write_tars(source: Source, ids: IdArray, folder: Folder) -> None:
    """Write ascending ids as tars.

    Of a WebDataset, each tar keeps its name and each sample all its files. Of another source, a sample is its id with the image and a
    `.cls`; 5,000 make a tar. `index.json` says how many samples each tar holds, in the form that `wids` reads; `keys.txt` has the
    source's key of each, in order, and `classes.txt` the names of the classes, if there are any.

    Raises:
        DataError: if the source is damaged.
    """
    shards = _of_tars(source, ids) if isinstance(source, WebDatasetSource) else _of_images(source, ids)
    counts = []
    for name, samples in shards:
        sink, count = io.BytesIO(), 0
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for files in samples:
                for path, data in files:
                    info = tarfile.TarInfo(path)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                count += 1
        folder.write(name, sink.getbuffer())
        counts.append({"url": name, "nsamples": count})
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": counts}
    folder.write(SHARDS_FILE, json.dumps(index, indent=1).encode())
    if source.info.class_names:
        folder.write(CLASSES_FILE, "".join(f"{name}\n" for name in source.info.class_names).encode())
    folder.write(KEYS_FILE, "".join(f"{key}\n" for key in source.keys(ids.tolist())).encode())


def _of_tars(source: WebDatasetSource, ids: IdArray) -> Iterator[tuple[str, Iterator[_Files]]]:
    tars = source.tars_of(ids)
    for tar in np.unique(tars).tolist():
        yield source.names[tar], _kept_of(source, tar, source.keys_in_tar(ids[tars == tar]))


def _kept_of(source: WebDatasetSource, tar: int, kept: set[str]) -> Iterator[_Files]:
    """All files of the samples with some keys."""
    name = source.names[tar]
    try:
        for key, members in members_by_key(source.fs, source.paths[tar], lambda key, _: key in kept, name=name):
            if key in kept:
                yield [(member.name, member.data) for member in members.values()]
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error}. Run the same line again.") from None


def _of_images(source: Source, ids: IdArray) -> Iterator[tuple[str, Iterator[_Files]]]:
    labels_N = source.info.labels_N
    for number, start in enumerate(range(0, len(ids), _SAMPLES)):
        part = ids[start : start + _SAMPLES].tolist()
        samples = zip(source.read(part), source.keys(part), strict=True)
        files = (_files_of(place, raw, key, int(labels_N[place])) for (place, raw), key in samples)
        yield f"part-{number:06d}.tar", files


def _files_of(number: int, raw: bytes | np.ndarray, key: str, label: int) -> _Files:
    data = raw if isinstance(raw, bytes) else to_png(raw)
    ending = ending_of_head(data) or ending_of(key)
    if ending not in IMAGE_ENDINGS:
        raise DataError(
            f"sample {key} is an image of no format that tars name by an ending. Export without --as webdataset."
        )
    return [(f"{number:09d}{ending}", data), (f"{number:09d}.cls", str(label).encode())]
