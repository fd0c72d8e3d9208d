"""Makes one Parquet file of prepared images, named by its rows and verified by its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.data.images.encode import to_jpeg, to_ppm
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.images.pixel_store import BadSample
from unseen_ray.data.sources.prepared import PREPARING
from unseen_ray.data.sources.registry import RawImage, Source, SourceRef, open_source
from unseen_ray.data.sources.tables.labels import image_schema
from unseen_ray.errors import DataError
from unseen_ray.storage.checked_json import to_checked_json
from unseen_ray.storage.filesystem import Folder, sha256_of

__all__ = ["Form", "Shard", "ShardJob", "ShardReceipt", "receipt_file", "settled"]

_GROUP_ROWS, _GROUP_BYTES = 128, 4 * 2**20  # limits of a row group: readers read one whole, even for a single image
_COMPRESSION = {"image.bytes": "none", "image.path": "none", "label": "zstd", "key": "zstd"}

Kind = Literal["jpeg", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The form of prepared images.

    Attributes:
        kind: `jpeg`, or `raw` for a square of uncompressed pixels.
        size_px: the short side of a JPEG, which is never enlarged; height and width of a square.
        quality: JPEG quality; None for raw pixels.
    """

    kind: Kind
    size_px: int
    quality: int | None

    def encode(self, raw: RawImage) -> bytes:
        """Encode an image in this form; UndecodableError if it cannot be decoded."""
        return to_ppm(raw, self.size_px) if self.quality is None else to_jpeg(raw, self.size_px, self.quality)

    def __str__(self) -> str:
        size = f"{self.kind} of {self.size_px} px"
        return size if self.quality is None else f"{size}, quality {self.quality}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file and the rows [start, stop) of the source that are in it."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """The receipt of a finished shard.

    Attributes:
        name, start, rows: which shard.
        size: bytes of the file.
        sha256: of the file; empty if it was not written because bad samples are an error.
        bad: samples that cannot be decoded; their rows have no bytes.
        reused: whether an earlier call made it.
    """

    name: str
    start: int
    rows: int
    size: int
    sha256: str
    bad: tuple[BadSample, ...] = ()
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        """The receipt as a JSON object."""
        return {name: value for name, value in asdict(self).items() if name != "reused"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ShardReceipt:
        """The receipt that `to_json` wrote; ValueError, KeyError or TypeError if it is malformed."""
        return cls(**{**values, "bad": tuple(BadSample(**sample) for sample in values["bad"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """What all shards of a folder share; sent to the worker processes.

    Attributes:
        ref: how to open the source.
        fingerprint: the fingerprint that the source must have in every process.
        form: the form of the images.
        folder: what they go to, under its lock.
        skip: whether samples that cannot be decoded become rows without bytes.
    """

    ref: SourceRef
    fingerprint: str
    form: Form
    folder: Folder
    skip: bool


_opened: list[tuple[SourceRef, Source]] = []  # one per process: opening a source may list millions of files


def settled(work: ShardJob, shard: Shard, before: ShardReceipt | None) -> ShardReceipt:
    """Make a shard, unless the file matches its earlier receipt `before`.

    Raises:
        DataError: if the source cannot be read, or has changed.
        StorageError: if the folder cannot be written.
    """
    folder = work.folder
    if before is not None and (before.start, before.rows) == (shard.start, shard.stop - shard.start):
        data = folder.read(shard.name)
        if data is not None and sha256_of(data) == before.sha256:
            return ShardReceipt.from_json({**before.to_json(), "reused": True})
    source = _open(work)
    data, bad = _file_of(source, work.form, shard)
    receipt = ShardReceipt(
        name=shard.name, start=shard.start, rows=shard.stop - shard.start, size=len(data), sha256="", bad=bad
    )
    if bad and not work.skip:
        return receipt
    digest = folder.write(shard.name, data)
    receipt = ShardReceipt.from_json({**receipt.to_json(), "sha256": digest})
    # after the file that it vouches for: a shard without a receipt is made again
    folder.write(receipt_file(shard.name), to_checked_json({"shard": receipt.to_json()}))
    return receipt


def receipt_file(name: str) -> str:
    """The file that holds a shard's receipt until all shards are made."""
    return f"{PREPARING}/{name}.json"


def _open(work: ShardJob) -> Source:
    if not _opened or _opened[0][0] != work.ref:
        _opened[:] = [(work.ref, open_source(work.ref))]
    source = _opened[0][1]
    if source.info.fingerprint != work.fingerprint:
        raise DataError(f"source {source.info.name} changed while it was prepared. Run the same line again.")
    return source


def _file_of(source: Source, form: Form, shard: Shard) -> tuple[bytes, tuple[BadSample, ...]]:
    """The bytes of a Parquet file, and the samples in it that cannot be decoded."""
    bad: list[BadSample] = []
    schema, sink = image_schema(source.info.class_names), pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression=_COMPRESSION,
        use_dictionary=["label"],
        write_statistics=["label"],
        write_page_checksum=True,
    ) as writer:
        for ids, images in _groups(_encoded(source, form, shard, bad)):
            columns = {
                "image": [{"bytes": image, "path": None} for image in images],
                "label": source.info.labels_N[ids],
                "key": source.keys(ids),
            }
            writer.write_table(pa.table(columns, schema))
    return bytes(sink.getvalue().to_pybytes()), tuple(bad)


def _encoded(source: Source, form: Form, shard: Shard, bad: list[BadSample]) -> Iterator[tuple[int, bytes]]:
    for number, raw in source.read(range(shard.start, shard.stop)):
        try:
            image = form.encode(raw)
        except UndecodableError as error:
            bad.append(BadSample(number, source.keys([number])[0], str(error)))
            image = b""
        yield number, image


def _groups(rows: Iterator[tuple[int, bytes]]) -> Iterator[tuple[list[int], list[bytes]]]:
    ids: list[int] = []
    images: list[bytes] = []
    held = 0
    for number, image in rows:
        ids.append(number)
        images.append(image)
        held += len(image)
        if len(ids) == _GROUP_ROWS or held >= _GROUP_BYTES:
            yield ids, images
            ids, images, held = [], [], 0
    if ids:
        yield ids, images
