"""Finds the Parquet or tar files of a path, and refuses files of several splits or configurations of a data set."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unseen_ray.data.listing.files import FileStat, directly_in, list_below, list_folder
from unseen_ray.data.listing.image_files import IMAGE_ENDINGS, ending_of
from unseen_ray.data.listing.splits import SPLIT_WORDS, split_of
from unseen_ray.errors import DataError, first_line
from unseen_ray.storage.filesystem import filesystem_of, is_uri
from unseen_ray.storage.patterns import MARKS, is_glob, matches, without_braces
from unseen_ray.storage.retry import retried_inline

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["ShardFiles", "find_shards", "kind_of_folder", "parts_of_data_set"]

_KINDS = {".parquet": "Parquet file", ".tar": "tar file"}
_HIVE_KEYS = {"split", "subset", "partition"}
_LEVELS, _FOLDERS = 5, 8
_NAMED = 4


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The files that a path stands for.

    Attributes:
        fs: their file system.
        base: the folder that their names are relative to, within its file system.
        names: relative to `base`, in order.
        stats: their sizes and times.
        is_folder: whether the path is a folder, of which all files are taken.
        note: a remark for the user on what is read together; empty if there is none.
    """

    fs: FileSystem
    base: str
    names: list[str]
    stats: list[FileStat]
    is_folder: bool
    note: str = ""

    @property
    def paths(self) -> list[str]:
        """Their paths within the file system."""
        return [f"{self.base.rstrip('/')}/{name}" for name in self.names]


def find_shards(path: str, ending: str = ".parquet") -> ShardFiles:
    """Find the files of a path: a file, a folder with all that is below it, or a pattern.

    In a pattern, `*` stands for any characters of a name, `**` for any folders, `{000..146}` for each of these numbers, and `{a,b}`
    for each of these words; without a star, all the files that it names must be there.

    Args:
        path: local or a URI.
        ending: of the files to take from a folder.

    Raises:
        DataError: if there are none, or a folder holds several splits or configurations.
    """
    from pyarrow.fs import FileType

    if is_glob(path):
        return _of_pattern(path, ending)
    fs, root = filesystem_of(path)
    try:
        entry = retried_inline(path, lambda: fs.get_file_info(root), fs)
    except OSError as error:
        raise DataError(f"source {path} cannot be read: {first_line(error).rstrip('.')}.") from None
    if entry.type == FileType.NotFound:
        raise DataError(f"source {path} does not exist. Check the path; a glob or a folder of *{ending} also works.")
    if entry.type == FileType.File:
        stat = FileStat(int(entry.size), entry.mtime_ns)
        return ShardFiles(fs, os.path.dirname(root), [entry.base_name], [stat], is_folder=False)
    return _of_folder(fs, root, path, ending)


def _of_folder(fs: FileSystem, root: str, path: str, ending: str) -> ShardFiles:
    listing = list_folder(path, is_hidden=_is_hidden)
    names = _checked((name for name in listing.files if name.endswith(ending)), path, ending)
    splits, configurations = parts_of_data_set(names)
    if len(splits) > 1:
        raise DataError(
            f"source {path} holds the splits {', '.join(sorted(splits))}. Name one of them with a glob: "
            f"source: {path.rstrip('/')}/{splits[_training(splits)]} (and test: the split to measure on)."
        )
    if len(configurations) > 1:
        raise DataError(
            f"source {path} holds the configurations {_some(sorted(configurations))} of a data set. Name the folder of one of them, "
            f"source: {path.rstrip('/')}/{min(configurations)}, or with a glob all of them: {path.rstrip('/')}/**/*{ending}."
        )
    folders = sorted({os.path.dirname(name) for name in names})
    note = f"the files of {len(folders)} folders are read together ({_some(folders)})" if len(folders) > 1 else ""
    return ShardFiles(fs, root, names, [listing.files[name] for name in names], is_folder=True, note=note)


def kind_of_folder(fs: FileSystem, root: str) -> str:
    """Whether a folder holds `parquet` files, tars of `webdataset`, or images (`folder`), from the first folders of the first levels.

    There may be a thousand classes, and each listing of an object store takes a request.
    """
    folders, kind = [root], "folder"
    for _ in range(_LEVELS):
        listings = [directly_in(fs, folder) for folder in folders[:_FOLDERS]]
        endings = {ending_of(name) for found, _ in listings for name in found}
        if ".parquet" in endings:
            return "parquet"
        if not endings.isdisjoint(IMAGE_ENDINGS):
            return "folder"  # also beside a tar, which is often left there when it was unpacked
        kind = "webdataset" if ".tar" in endings else kind
        folders = [folder for _, inner in listings for folder in inner]
    return kind


def parts_of_data_set(names: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Which splits and which configurations of a data set files belong to, by the words in their paths.

    `plants/train-00000-of-00002.parquet` is of the split `train` and of the configuration `plants`, which is the folder above what
    names the split. A file whose path names no split belongs to neither.

    Returns:
        For each split a glob of its files; and the configurations.
    """
    globs: dict[str, set[str]] = defaultdict(set)
    configurations = set()
    for name in names:
        *folders, file = name.split("/")
        stem, ending = os.path.splitext(file)
        if (split := _split_in(stem)) is not None:
            globs[split].add("/".join([*folders, f"{_up_to_split(stem)}*{ending}"]))
            configurations.add("/".join(folders))
            continue
        for depth in range(len(folders) - 1, -1, -1):
            if (split := _split_in(folders[depth])) is not None:
                globs[split].add(
                    "/".join(
                        [*folders[: depth + 1], *["**"] * (depth + 1 < len(folders)), f"*{os.path.splitext(file)[1]}"]
                    )
                )
                configurations.add("/".join(folders[:depth]))
                break
    return {split: min(found) for split, found in globs.items()}, configurations


def _split_in(part: str) -> str | None:
    """The split that a file's stem or a folder's name gives; a hive partition such as `split=unlabeled` may give any."""
    key, equals, value = part.partition("=")
    if equals and key.lower() in _HIVE_KEYS:
        return split_of(value) or value
    return split_of(part)


def _up_to_split(stem: str) -> str:
    """The start of a stem up to the word that names its split: `mnist_train` of `mnist_train_2`."""
    places = [match.end() for match in re.finditer(r"[A-Za-z]+", stem) if match[0].lower() in SPLIT_WORDS]
    return stem[: places[0]] if places else stem


def _training(splits: Iterable[str]) -> str:
    found = sorted(splits)
    return "train" if "train" in found else found[0]


def _of_pattern(path: str, ending: str) -> ShardFiles:
    fs, patterns = _expanded(path)
    base = os.path.commonpath([re.split(r"[*?[]", pattern)[0].rpartition("/")[0] or "/" for pattern in patterns])
    found: dict[str, FileStat] = {}
    listed = list_below(fs, base, path, _is_hidden).files if is_uri(path) else {}
    for pattern in patterns:
        inner = pattern[len(base.rstrip("/")) + 1 :]
        if not is_uri(path):
            matching = _local_glob(pattern, base)
        elif any(mark in inner for mark in MARKS):
            matching = {name: stat for name, stat in listed.items() if matches(name, inner)}
        else:
            matching = {inner: listed[inner]} if inner in listed else {}
        if not matching and len(patterns) > 1:
            raise DataError(
                f"{pattern} of source {path} does not exist. Complete the files, or correct the numbers in braces."
            )
        found |= matching
    names = _checked(found, path, ending)
    splits, _ = parts_of_data_set(names)
    together = f"the splits {', '.join(sorted(splits))} are read together" if len(splits) > 1 else ""
    return ShardFiles(fs, base, names, [found[name] for name in names], is_folder=False, note=together)


def _expanded(path: str) -> tuple[FileSystem, list[str]]:
    """The file system of a pattern, and the patterns within it that braces stand for."""
    first, *others = without_braces(path)  # braces are no part of a URI
    fs, inner = filesystem_of(first)
    if is_uri(path) and first.endswith(inner):
        start = len(first) - len(inner)
        return fs, [inner, *(other[start:] for other in others)]
    return fs, [inner, *(filesystem_of(other)[1] for other in others)]


def _local_glob(pattern: str, base: str) -> dict[str, FileStat]:
    """Files by their names below `base`; one that links reach again is taken once."""
    start = len(base.rstrip("/")) + 1
    found: dict[str, str] = {}
    for place in sorted(glob.iglob(pattern, recursive=True), key=lambda place: (place.count("/"), place)):
        name = place[start:]
        if name.isprintable() and not any(map(_is_hidden, name.split("/"))) and os.path.isfile(place):
            found.setdefault(os.path.realpath(place), name)
    stats = {name: os.stat(place) for place, name in found.items()}
    return {name: FileStat(stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _checked(names: Iterable[str], path: str, ending: str) -> list[str]:
    found = sorted(names)
    if not found:
        raise DataError(f"source {path} matches no {_KINDS[ending]}. Check the pattern, or the folder's *{ending}.")
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name or "." for name in names[:_NAMED]) + more
