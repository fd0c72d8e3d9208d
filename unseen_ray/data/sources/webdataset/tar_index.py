"""Where the images of a tar lie, and their labels: one pass over the headers, which reads no image of a local tar."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Any

from pyarrow.fs import FileSystem

from unseen_ray.data.listing.image_files import IMAGE_ENDINGS
from unseen_ray.errors import DataError

__all__ = ["Columns", "Member", "TarIndex", "index_tar", "members_by_key"]

_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")
_STREAM_BYTES = 2**22
_SHOWN = 6


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
    """

    keys: list[str] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


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
                "{use: webdataset, path: ..., image: jpg, label: cls}, or label: 'json:key'."
            )
        index.keys.append(key)
        index.labels.append(_label_in(label.data, columns.label, f"{key} of {name}"))
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
    """
    try:
        # A header of an object store would take a request each, so that such a tar is read from start to end.
        local = fs.type_name == "local"
        opened: Any = fs.open_input_file(path) if local else fs.open_input_stream(path, compression=None)
        with opened, _archive(opened, local) as archive:
            for key, group in groupby(_files(archive, wants), key=lambda found: found[0]):
                members: dict[str, Member] = {}
                for _, ending, member in group:
                    if ending in members:
                        raise DataError(
                            f"sample {key} of {name} has two files .{ending}. Give each sample a name of its own."
                        )
                    members[ending] = member
                yield key, members
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name} cannot be read as an uncompressed tar: {error}.") from None


def _archive(opened: IO[bytes], local: bool) -> tarfile.TarFile:
    if local:
        return tarfile.open(fileobj=opened, mode="r:")
    return tarfile.open(fileobj=opened, mode="r|", bufsize=_STREAM_BYTES)


def _files(archive: tarfile.TarFile, wants: Callable[[str, str], bool]) -> Iterator[tuple[str, str, Member]]:
    for info in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has read
        found = _NAME.fullmatch(info.name)
        if not info.isfile() or not found or (info.name.startswith("__") and info.name.endswith("__")):
            continue
        key, ending = found[1], found[2].lower()
        data = b""
        if wants(key, ending):
            stream = archive.extractfile(info)
            assert stream is not None
            data = stream.read()
        yield key, ending, Member(info.name, info.offset_data, info.size, data)


def _image_of(members: dict[str, Member], columns: Columns) -> Member | None:
    if columns.image is not None:
        return next((members[ending] for ending in columns.image.split(";") if ending in members), None)
    return next((members[ending[1:]] for ending in IMAGE_ENDINGS if ending[1:] in members), None)


def _label_in(data: bytes, label: str, where: str) -> int | str:
    """A label as it is written: a whole number or text."""
    _, of_json, key = label.partition(":")
    try:
        value: Any = json.loads(data) if of_json else data.decode().strip()
        for part in key.split(".") if of_json else ():
            value = value[part]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the label {label} of sample {where} cannot be read: {type(error).__name__}: {error}."
        ) from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise DataError(
            f"the label {label} of sample {where} is {value!r}; labels are whole numbers, or names of classes."
        )
    return value
