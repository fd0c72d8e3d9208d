"""The pruned data set itself, in the form that its source has: Parquet with all its columns, or images in class folders."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.core.arrays import IdArray
from unseen_ray.errors import ConfigError, DataError, StorageError
from unseen_ray.resolve import is_target, name_of, plug_of
from unseen_ray.run import CORESET, Run
from unseen_ray.sources import Source, open_source, source_ref
from unseen_ray.sources.folder import FolderSource
from unseen_ray.sources.parquet import ParquetSource
from unseen_ray.storage import Folder, absolute_path, filesystem_of, is_uri

__all__ = ["pack"]

logger = logging.getLogger(__name__)

_AT_ONCE = 16  # files that are copied side by side
_PART = 2048  # images in one part of what has no form of its own


def pack(run: Run, to: str) -> int:
    """Write the kept samples into a new folder.

    A Parquet source gives Parquet files of the same names, columns and metadata; a class-per-folder tree (`folder`, `imagenet`)
    the same files; `digits` and `cifar*` give Parquet in the Hugging Face image schema. Images that a Parquet file only
    names are written into it.

    Args:
        run: a finished run, whose source can be opened without importing anything that the run folder names.
        to: a folder or URI that does not exist, or is empty. A local one appears when it is whole.

    Returns:
        How many samples were written.

    Raises:
        ConfigError: if it holds anything, lies in the source, or cannot be written; or if the source is a user's function.
        DataError: if the source is missing, or has changed since the run, or a key would lead out of the folder.
    """
    source, ids = _source_of(run), run.table(CORESET).column("id").to_numpy()
    _check_place(to, run)
    aside = to if is_uri(to) else f"{absolute_path(to).rstrip('/')}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        if isinstance(source, FolderSource):
            _copy_files(source, ids, Folder(aside))
        else:
            _write_parts(_parts_of(source, ids), aside)
        if not is_uri(to):
            if os.path.isdir(to):
                os.rmdir(to)
            os.replace(aside, absolute_path(to))
    except (OSError, StorageError) as error:
        raise ConfigError(f"--to {to} cannot be written: {error}") from None
    finally:
        if not is_uri(to):
            shutil.rmtree(aside, ignore_errors=True)
    return len(ids)


def _source_of(run: Run) -> Source:
    asked = run.manifest.asked["source"]
    target = plug_of(asked)[0]
    if is_target(target):
        raise ConfigError(
            f"the run's source is {name_of(target)}, a function of its user's own, which export does not call. "
            "Export ids (.npy) or keys (.txt) and take the samples from there; in Python, `ur.torch_subset`."
        )
    source = open_source(source_ref(asked))
    if source.info.fingerprint != run.manifest.source["fingerprint"]:
        raise DataError(
            f"source {source.info.name} has changed since the run: its samples are no longer those that were chosen."
        )
    return source


def _check_place(to: str, run: Run) -> None:
    folder = Folder(to)
    if os.path.isfile(to) or (others := folder.names()):
        held = "is a file" if os.path.isfile(to) else f"holds {', '.join(others[:3])}"
        raise ConfigError(f"--to {to} {held}. Name a new or an empty folder for the pruned data set.")
    options = plug_of(run.manifest.asked["source"])[1]
    asked = run.manifest.asked["source"]
    places = [options.get("path"), options.get("root"), asked if isinstance(asked, str) else None]
    here = f"{absolute_path(to).rstrip('/')}/"
    for place in (place for place in places if place):
        if here.startswith(f"{absolute_path(str(place)).rstrip('/')}/"):
            raise ConfigError(f"--to {to} lies in the source {place}, which it would change. Name a folder elsewhere.")


def _copy_files(source: FolderSource, ids: IdArray, folder: Folder) -> None:
    keys = source.keys(ids.tolist())
    for key in keys:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise DataError(f"key {key!r} leads out of the folder or is no plain path. Rename the file.")

    def copy(number: int, key: str) -> None:
        ((_, data),) = source.read([number])
        assert isinstance(data, bytes)
        folder.write(key, data)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [pool.submit(copy, int(number), key) for number, key in zip(ids, keys, strict=True)]:
            done.result()


def _parts_of(source: Source, ids: IdArray) -> Iterator[tuple[str, pa.Table]]:
    """Name and rows of each piece; pieces of one file follow each other."""
    if isinstance(source, ParquetSource):
        yield from source.tables(ids.tolist())
        return
    info = source.info
    metadata = {b"class_names": json.dumps(info.class_names).encode()} if info.class_names else None
    for number, start in enumerate(range(0, len(ids), _PART)):
        part = ids[start : start + _PART].tolist()
        rows = [{"bytes": _encoded(image), "path": None} for _, image in source.read(part)]
        images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        columns = {"image": images, "label": info.labels_N[part], "key": source.keys(part)}
        yield f"part-{number:05d}.parquet", pa.table(columns).replace_schema_metadata(metadata)


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _write_parts(parts: Iterator[tuple[str, pa.Table]], root: str) -> None:
    writer: pq.ParquetWriter | None = None
    stream: Any = None
    current = ""
    try:
        for name, table in parts:
            if name != current:
                if writer is not None:
                    writer.close()
                    stream.close()
                current = name
                stream = _opened(f"{root.rstrip('/')}/{name}")
                writer = pq.ParquetWriter(stream, table.schema, compression="zstd", write_page_checksum=True)
            assert writer is not None
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
            stream.close()


def _opened(path: str) -> Any:
    fs, inner = filesystem_of(path)
    if not is_uri(path):
        fs.create_dir(os.path.dirname(inner), recursive=True)
    return fs.open_output_stream(inner)
