"""Where the images of a tar lie, and their labels: one pass over the headers, which reads no image of a local tar."""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pyarrow.fs import FileSystem

from unseen_ray.data.listing.image_files import IMAGE_ENDINGS
from unseen_ray.errors import DataError
from unseen_ray.storage.retry import answers_still

__all__ = ["Columns", "Member", "TarIndex", "index_tar", "members_by_key"]

_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")
_BLOCK = 512
_OCTAL = re.compile(rb"[0-7]+")
_STREAM_BYTES = 2**22
_SHOWN = 6
_SHOWN_TEXT = 200  # characters of a label in a message


@dataclass(frozen=True, slots=True)
class Columns:
    """Which files of a sample are its image and its label.

    Attributes:
        image: the image's ending without its first dot, such as `jpg`; None for the first that Pillow reads.
        label: the label's ending: `cls` or `txt`, or `json:key` for a value of a JSON file.
    """

    image: str | None
    label: str

    @property
    def label_ending(self) -> str:
        """The ending of the file that holds the label."""
        return self.label.partition(":")[0]


@dataclass(slots=True)
class TarIndex:
    """The samples of a tar, in order.

    Attributes:
        keys: names of the samples, as WebDataset gives them.
        labels: whole numbers or text.
        offsets, sizes: where the image of each lies, in bytes.
        is_first: whether every image is the first of its sample: the one that is read where none is named, or by ending.
    """

    keys: list[str] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    is_first: bool = True


def index_tar(fs: FileSystem, path: str, columns: Columns, *, name: str) -> TarIndex:
    """Index a tar.

    Args:
        fs: its file system.
        path: its path there.
        columns: what of a sample is used.
        name: its name in messages.

    Raises:
        DataError: if it is damaged or compressed, or a sample has no image or no label.
    """
    index = TarIndex()
    for key, members in members_by_key(fs, path, lambda _, ending: ending == columns.label_ending, name=name):
        image = _image_of(members, columns)
        label = members.get(columns.label_ending)
        if image is None or label is None:
            lacking = "image" if image is None else f"label (.{columns.label_ending})"
            held = ", ".join(sorted(members)[:_SHOWN])
            raise DataError(
                f"sample {key} of {name} has no {lacking}; it has {held}. Name the endings: "
                "{use: webdataset, path: ..., image: jpg, label: cls}, or label: 'json:key'. Unpack a tar that is no WebDataset."
            )
        index.keys.append(key)
        index.labels.append(_label_in(label.data, columns.label, f"{key} of {name}"))
        index.is_first &= image is (_first_of(members) or image)
        index.offsets.append(image.offset)
        index.sizes.append(image.size)
    return index


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a sample.

    Attributes:
        name: its path in the tar.
        offset, size: where its bytes lie.
        data: its bytes, where they were asked for.
    """

    name: str
    offset: int
    size: int
    data: bytes = b""


def members_by_key(
    fs: FileSystem, path: str, wants: Callable[[str, str], bool], *, name: str
) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples of a tar with their files by ending, as WebDataset groups them: neighbours with the same name up to the first dot.

    Args:
        fs: its file system.
        path: its path there.
        wants: takes a key and an ending, and tells whether the file's bytes are to be read.
        name: its name in messages.

    Raises:
        DataError: if the tar is damaged, or names a file of a sample twice.
        OSError: if it cannot be read.
    """
    try:
        for key, group in groupby(_files(fs, path, wants), key=lambda found: found[0]):
            members: dict[str, Member] = {}
            for _, ending, member in group:
                if ending in members:
                    raise DataError(f"sample {key} of {name} has two files .{ending}. Give each sample a unique name.")
                members[ending] = member
            yield key, members
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{name} cannot be read as an uncompressed tar: {error}.") from None


def _files(fs: FileSystem, path: str, wants: Callable[[str, str], bool]) -> Iterator[tuple[str, str, Member]]:
    """Key, ending and place of each file; what WebDataset passes over, and hidden files, are left out."""
    for name, offset, size, read in _local_members(path) if fs.type_name == "local" else _streamed_members(fs, path):
        found = _NAME.fullmatch(name)
        base = name.rpartition("/")[2]
        if not found or base.startswith(".") or (base.startswith("__") and base.endswith("__")):
            continue
        key, ending = found[1], found[2].lower()
        yield key, ending, Member(name, offset, size, read() if wants(key, ending) else b"")


def _local_members(path: str) -> Iterator[tuple[str, int, int, Callable[[], bytes]]]:
    """Name, offset and size of the files of a tar on a disk, whose images are not touched.

    Plain headers are read here: `tarfile` takes a damaged header for the end, and takes twice as long. It reads tars with headers
    of another kind.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise tarfile.ReadError("empty file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            plain = list(_plain_members(data))
            if None not in plain:
                for each in plain:
                    assert each is not None
                    name, offset, size = each
                    yield name, offset, size, functools.partial(_slice, data, offset, size)
                return
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            yield from _members_of(archive)
            end = archive.offset  # `tarfile` takes a damaged header for the end
        file.seek(max(0, end - _BLOCK))
        if any(file.read(_BLOCK)) and any(file.read(_BLOCK)):
            raise tarfile.ReadError(f"the header at byte {end} is damaged")


def _slice(data: mmap.mmap, offset: int, size: int) -> bytes:
    return data[offset : offset + size]


def _plain_members(data: mmap.mmap) -> Iterator[tuple[str, int, int] | None]:
    """Name, offset and size of the files of a tar with plain headers; ends with None at a header of another kind."""
    at = 0
    while at < len(data):
        header = data[at : at + _BLOCK]
        if len(header) < _BLOCK:
            raise tarfile.ReadError("it is cut off within a header")
        if not any(header):
            return
        sums = header[148:156].strip(b" \0")
        if not _OCTAL.fullmatch(sums) or int(sums, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise tarfile.ReadError(f"the header at byte {at} is damaged")
        size, kind = header[124:136].strip(b" \0"), header[156:157]
        try:
            name = header[:100].partition(b"\0")[0].decode()
            if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
                name = f"{prefix.decode()}/{name}"
        except UnicodeDecodeError:
            kind = b""
        if size and not size[0] & 0x80 and not _OCTAL.fullmatch(size):  # with that bit, it is a binary number
            raise tarfile.ReadError(f"the header at byte {at} is damaged")
        if kind not in (b"0", b"\0", b"5") or not _OCTAL.fullmatch(size or b"0"):
            yield None
            return
        at += _BLOCK
        if kind == b"5" or name.endswith("/"):
            continue  # a folder has no data, whatever its size says
        count = int(size or b"0", 8)
        if at + count > len(data):
            raise tarfile.ReadError(f"{name} is cut off")
        yield name, at, count
        at += -(-count // _BLOCK) * _BLOCK
    raise tarfile.ReadError("it is cut off: its end is missing")


def _streamed_members(fs: FileSystem, path: str) -> Iterator[tuple[str, int, int, Callable[[], bytes]]]:
    """The same of a tar in an object store, which is read from start to end: a request for each header would take longer."""
    with (
        fs.open_input_stream(path, compression=None) as opened,
        tarfile.open(fileobj=opened, mode="r|", bufsize=_STREAM_BYTES) as archive,
    ):
        yield from _members_of(archive)


def _members_of(archive: tarfile.TarFile) -> Iterator[tuple[str, int, int, Callable[[], bytes]]]:
    for info in archive:
        answers_still()
        archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has read
        try:
            info.name.encode()
        except UnicodeEncodeError:
            raise tarfile.ReadError(f"the name {info.name!r} is not UTF-8") from None
        if info.issparse():  # its size is not that of its bytes
            raise tarfile.ReadError(f"{info.name} is a sparse file, whose size need not be true")
        if info.isfile():
            yield info.name, info.offset_data, info.size, functools.partial(_extracted, archive, info)


def _extracted(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(info)
    assert stream is not None
    return stream.read()


def _image_of(members: dict[str, Member], columns: Columns) -> Member | None:
    if columns.image is not None:
        return next((members[ending] for ending in columns.image.split(";") if ending in members), None)
    return next((members[ending[1:]] for ending in IMAGE_ENDINGS if ending[1:] in members), None)


def _first_of(members: dict[str, Member]) -> Member | None:
    endings = (*(ending[1:] for ending in IMAGE_ENDINGS), *sorted(members))
    return next((members[name] for name in endings if name in members and f".{name}".endswith(IMAGE_ENDINGS)), None)


def _label_in(data: bytes, label: str, where: str) -> int | str:
    """A label as it is written: a whole number or text."""
    _, of_json, key = label.partition(":")
    try:
        value: Any = json.loads(data) if of_json else data.decode().strip()
        for part in key.split(".") if of_json else ():
            value = value[part]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DataError(
            f"the label {label} of sample {where} cannot be read: {type(error).__name__}: {error}."
        ) from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,19}", value):
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if not is_number and not (isinstance(value, str) and value):
        raise DataError(
            f"the label {label} of sample {where} is {str(value)[:_SHOWN_TEXT]!r}; labels are whole numbers, or names of classes."
        )
    checked: int | str = value
    return checked
