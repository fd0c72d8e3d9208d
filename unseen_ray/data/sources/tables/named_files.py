"""Reads the image files that rows name: those below the data's folder, and below one that the user names."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote

from pyarrow.fs import FileSystem

from unseen_ray.storage.filesystem import absolute_path, filesystem_of, is_uri, read_file

__all__ = ["NamedFiles"]

_SHARED = re.compile(r"(s3|gs|hf)://[\w.-]+")
_FILE = "file://"


class NamedFiles:
    """The files that the rows of a source may name.

    Whoever made a table chose these names: without bounds, a row could name a private file, which would be shown in the report
    and packed into the pruned data set. Links below the folders are followed.

    Args:
        fs: the file system of the tables.
        source: the path or URI of the source.
        tables: the paths of its files in `fs`.
        images: the folder or URI prefix of images that lie elsewhere; None if there are none.
    """

    def __init__(self, fs: FileSystem, source: str, tables: list[str], images: str | None) -> None:
        self._fs, self._buckets = fs, dict[str, FileSystem]()
        self._scheme = f"{source.partition('://')[0]}://" if fs.type_name != "local" else ""
        inner = _normal(absolute_path(source).partition("?")[0] if self._scheme else absolute_path(source))
        if not all(f"{self._scheme}{table}".startswith(f"{inner}/") for table in tables):  # a file, or a pattern
            inner = self._scheme + os.path.commonpath([posixpath.dirname(table) for table in tables])
        self._roots = [inner, *([_normal(absolute_path(images))] if images else [])]

    def read(self, name: str, table: str) -> bytes:
        """The bytes of a file.

        Args:
            name: as a row gives it: a URI, an absolute path, or one relative to the table's file.
            table: the path of that file.

        Raises:
            OSError: if the file may not be named, cannot be read, or is no regular file.
        """
        if "\0" in name:
            raise PermissionError("its name holds a zero byte")
        place = _normal(name if is_uri(name) else self._scheme + posixpath.join(posixpath.dirname(table), name))
        if not any(place.startswith(f"{root.rstrip('/')}/") for root in self._roots):
            raise PermissionError(
                f"it lies outside {self._roots[0]}. If you trust the table, set `images` of the source to the folder of its images"
            )
        return read_file(*self._opened(place))

    def _opened(self, place: str) -> tuple[FileSystem, str]:
        """The file system of a path or URI, which all of its bucket share, and the path in it."""
        if self._scheme and place.startswith(f"{self._roots[0]}/"):
            return self._fs, place[len(self._scheme) :]
        if not is_uri(place):
            return filesystem_of(place)
        if "?" in place:  # options name servers, among others
            raise PermissionError("an address in a row takes no options")
        top = "/".join(place.split("/", 3)[:3])
        if not _SHARED.fullmatch(top) or "%" in place:
            return filesystem_of(place)
        if top not in self._buckets:
            self._buckets[top] = filesystem_of(top)[0]
        return self._buckets[top], place.split("://", 1)[1]


def _normal(place: str) -> str:
    """A path or URI without `..` and doubled slashes; a local path for a URI of one."""
    if place.startswith(_FILE):
        place = unquote(place.removeprefix(_FILE))
    scheme, mark, inner = place.partition("://") if is_uri(place) else ("", "", place)
    normal = posixpath.normpath(inner)
    return scheme + mark + (f"/{normal.lstrip('/')}" if normal.startswith("//") else normal)
