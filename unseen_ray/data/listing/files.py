"""The files below a folder, on any file system, each real folder once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple

from unseen_ray.errors import DataError
from unseen_ray.storage.filesystem import filesystem_of
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import retried_inline

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["FileStat", "Listing", "directly_in", "list_below", "list_folder"]

_UNREADABLE = {"lost+found", "system volume information", "$recycle.bin"}  # at the top of a disk


class FileStat(NamedTuple):
    """The size of a file in bytes, and when it was last modified; None where the file system does not say."""

    size: int
    mtime_ns: int | None


@dataclass(slots=True)
class Listing:
    """All that lies below a folder, by its path relative to it.

    Attributes:
        files: every file.
        folders: every folder, also an empty one where the file system has such.
        repeated: links to folders that are listed already, such as a link to the folder's own parent.
        broken: links that lead nowhere.
        special: pipes, sockets and devices, which are not read.
        not_utf8: how many names are not UTF-8; what they name is not listed.
    """

    files: dict[str, FileStat] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    not_utf8: int = 0


def list_folder(path: str, is_hidden: Callable[[str], bool] | None = None) -> Listing:
    """List a folder and what is below it.

    Args:
        path: a local path or a URI.
        is_hidden: which names to leave out, with all that is below them; None for those that begin with a dot.

    Raises:
        DataError: if it cannot be read.
    """
    fs, root = filesystem_of(path)
    return list_below(fs, root, path, is_hidden or _is_hidden)


def list_below(fs: FileSystem, root: str, where: str, is_hidden: Callable[[str], bool]) -> Listing:
    """The same of a folder of a file system, which messages call `where`."""
    try:
        if fs.type_name == "local":
            return _local(root, is_hidden)
        return _remote(retried_inline(where, lambda: _entries(fs, root), None), root, is_hidden)
    except OSError as error:
        raise DataError(f"source {where} cannot be listed: {reason_of(error)}.") from None


def directly_in(fs: FileSystem, folder: str) -> tuple[list[str], list[str]]:
    """Sorted paths of the files and of the folders directly in a folder, hidden ones and names that are not UTF-8 left out."""
    from pyarrow.fs import FileSelector, FileType

    files: list[str] = []
    folders: list[str] = []
    if fs.type_name == "local":
        for relative, entry in _scan(folder, "", _is_hidden, Listing()):
            (folders if entry.is_dir() else files).append(f"{folder.rstrip('/')}/{relative}")
    else:
        for entry in fs.get_file_info(FileSelector(folder)):
            if not _is_hidden(entry.base_name):
                (folders if entry.type == FileType.Directory else files).append(entry.path)
    return sorted(files), sorted(folders)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _local(root: str, is_hidden: Callable[[str], bool]) -> Listing:
    """By a walk of our own: pyarrow follows a link to a parent again and again, up to 40 levels deep."""
    listing = Listing()
    seen = {_identity(os.stat(root))}
    # Links come after all real folders, so that a link never takes the place of what it points to.
    waiting, linked = [""], list[str]()
    while waiting or linked:
        for relative, entry in _scan(root, waiting.pop() if waiting else linked.pop(0), is_hidden, listing):
            try:
                stat = entry.stat()
            except OSError:  # it leads nowhere, or to itself
                listing.broken.append(relative)
                continue
            if not entry.is_dir() and not S_ISREG(stat.st_mode):
                listing.special.append(relative)
            elif not entry.is_dir():
                listing.files[relative] = FileStat(stat.st_size, stat.st_mtime_ns)
            elif entry.is_symlink():
                linked.append(relative)
            elif _identity(stat) in seen:  # below a link, what was met before
                listing.repeated.append(relative)
            else:
                seen.add(_identity(stat))
                listing.folders.append(relative)
                waiting.append(relative)
        while not waiting and linked:
            identity = _identity(os.stat(os.path.join(root, linked[0])))
            if identity not in seen:
                seen.add(identity)
                listing.folders.append(linked[0])
                break
            listing.repeated.append(linked.pop(0))
    return listing


def _scan(
    root: str, folder: str, is_hidden: Callable[[str], bool], listing: Listing
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies directly in a folder, in the order of names."""
    try:
        found = os.scandir(os.path.join(root, folder))
    except PermissionError:
        if os.path.basename(folder).lower() in _UNREADABLE:
            return
        raise
    with found as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                listing.not_utf8 += 1
                continue
            if not is_hidden(entry.name):
                yield (f"{folder}/{entry.name}" if folder else entry.name), entry


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _entries(fs: FileSystem, root: str) -> Any:
    from pyarrow.fs import FileSelector

    return fs.get_file_info(FileSelector(root, recursive=True))


def _remote(entries: Any, root: str, is_hidden: Callable[[str], bool]) -> Listing:
    from pyarrow.fs import FileType

    listing = Listing()
    start = len(root.rstrip("/")) + 1
    for entry in entries:
        relative = entry.path[start:]
        if any(map(is_hidden, relative.split("/"))):
            continue
        if entry.type == FileType.Directory:
            listing.folders.append(relative)
        else:
            listing.files[relative] = FileStat(int(entry.size), entry.mtime_ns)
    return listing
