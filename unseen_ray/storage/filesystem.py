"""Files anywhere that pyarrow.fs reaches: local paths, s3://, gs://, abfs://, hf://. A reader never sees a half-written file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from unseen_ray.errors import ConfigError, RunInUseError, StorageError
from unseen_ray.storage.environment import storage_wait_s
from unseen_ray.storage.fence import LOCK, Fence
from unseen_ray.storage.npy import array_of_npy, npy_pieces
from unseen_ray.storage.plain_text import holds_secret, reason_of, secret_problem
from unseen_ray.storage.remote.conditional import ConditionalFile, conditional_file
from unseen_ray.storage.remote.uris import explained, open_uri
from unseen_ray.storage.retry import answered, answers_still, remedy, retried, retried_inline

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

__all__ = [
    "DEFAULT_ROW_GROUP",
    "Folder",
    "absolute_path",
    "filesystem_of",
    "is_uri",
    "parquet_options",
    "pieces_of",
    "read_file",
    "real_path",
    "remedy_to_read",
    "remedy_to_write",
    "sha256_of",
]

logger = logging.getLogger(__name__)

_Content: TypeAlias = bytes | memoryview | Callable[[], Iterable[memoryview]]
_LONGEST_NAME = 255  # bytes, on nearly all local file systems
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_PIECE = 2**23  # bytes that are read or written at once
DEFAULT_ROW_GROUP = 2**20  # rows; readers of a range of ids skip row groups by their statistics
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(path: str) -> bool:
    """Whether a path names its own file system, such as `s3://bucket/run`."""
    return _URI.match(path) is not None


def absolute_path(path: str) -> str:
    """A local path made absolute; a URI unchanged."""
    return path if is_uri(path) else os.path.abspath(os.path.expanduser(path))


def filesystem_of(path: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path within it; local paths become absolute.

    Raises:
        ConfigError: if a URI holds a password, its scheme is not known, its server cannot be reached, or our variable of waiting is no
            time.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import LocalFileSystem

    try:
        wait_s = storage_wait_s()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if "\0" in path or path != path.encode(errors="ignore").decode():
        raise ConfigError(f"{path!r} cannot be opened: paths are UTF-8, without NUL. Rename the file or the folder.")
    if not is_uri(path):
        return LocalFileSystem(), absolute_path(path)
    if holds_secret(path):
        raise ConfigError(secret_problem("an address"))
    try:
        return answered(path, lambda: open_uri(path), wait_s)
    except (ValueError, OSError, ImportError, ArrowException) as error:
        raise ConfigError(f"{path} cannot be opened: {explained(path, error)}") from None


def read_file(fs: FileSystem, path: str) -> bytes:
    """The bytes of a regular file of a source; OSError if it is none, or cannot be read, even after retries."""

    def read() -> bytes:
        if fs.type_name == "local" and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may have no end
            raise IsADirectoryError("it is not a regular file")
        return _content(fs, path)

    return retried_inline(path, read, fs)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """The Parquet options for a run's tables."""
    import pyarrow as pa

    # scores hardly repeat, so a dictionary of them would only add bytes
    repeating = [column.name for column in schema if not pa.types.is_floating(column.type)]
    return {"compression": "zstd", "write_page_checksum": True, "use_dictionary": repeating}


def pieces_of(stream: pa.NativeFile) -> Iterator[bytes]:
    """The rest of an open file in blocks, each of which must come within `storage_wait_s`."""
    while piece := stream.read(_PIECE):
        answers_still()
        yield piece


def sha256_of(data: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def remedy_to_write(error: OSError) -> str:
    """What to do where a file cannot be written."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "This place can only be read: name another folder, work on a copy, or get permission to write."
    return f"{remedy(error)}, then run again."


def remedy_to_read(error: OSError) -> str:
    """What to do where a file cannot be read."""
    return f"{remedy(error, 'Check that the storage can be reached and that you may read it')}, then run again."


def real_path(path: str) -> str:
    """A path with links and `~` resolved; a URI unchanged."""
    return path.rstrip("/") if is_uri(path) else os.path.realpath(os.path.expanduser(path))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of named files.

    Args:
        root: local path or URI.
        fence: what must hold before anything here is written or deleted; None for a folder that no lock guards.
    """

    root: str
    fence: Fence | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", os.path.expanduser(self.root))

    def path(self, name: str) -> str:
        """The path or URI of a file in this folder.

        Raises:
            StorageError: if the name leads out of the folder.
        """
        # names also come from manifests, which anybody may have edited
        if "\0" in name or {"", "."} & set(name.split("/")) or ".." in re.split(r"[/\\]", name):
            raise StorageError(
                f"{name!r} is not the name of a file in {self.root}: it leads elsewhere, or to the folder itself."
            )
        return f"{self.root.rstrip('/')}/{name}"

    def within(self, name: str) -> Folder:
        """A folder in this one, behind the same fence."""
        return replace(self, root=self.path(name))

    def write(
        self,
        name: str,
        data: bytes | memoryview,
        *,
        durable: bool = False,
        new: bool = False,
        conditional: bool = False,
    ) -> str:
        """Write a file atomically, create the folders above it, and return the SHA-256 of its bytes.

        Local files are written to a temporary name and renamed; an object store shows an object only when it is complete.

        Args:
            name: the file.
            data: its bytes.
            durable: whether to sync it to disk, so that it survives a power failure. Files with a checksum need not.
            new: whether to refuse to replace a file; this holds only on local file systems with hard links, and where `conditional` does.
            conditional: whether to write only while nobody else has written the file since the fence was last checked; this holds only
                on S3, see `remote/conditional.py`.

        Raises:
            FileExistsError: if `new` is set and the file exists.
            StorageError: if it cannot be written; an existing file stays as it was.
            RunInUseError: if the folder's fence does not hold.
        """
        try:
            retried(self.path(name), lambda: self._put(name, data, durable=durable, new=new, conditional=conditional))
        except OSError as error:
            if new and isinstance(error, FileExistsError):
                raise
            raise StorageError(
                f"{self.path(name)} cannot be written: {reason_of(error)}. {remedy_to_write(error)}"
            ) from None
        return sha256_of(data)

    def write_table(self, name: str, table: pa.Table, *, new: bool = False, row_group: int | None = None) -> str:
        """Write a table as Parquet, in groups of `row_group` rows, and return the SHA-256 of the file; see `write`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group or DEFAULT_ROW_GROUP, **parquet_options(table.schema))
        return self.write(name, memoryview(sink.getvalue()), new=new)

    def write_array(self, name: str, array: Any) -> str:
        """Write a numpy array as .npy and return the SHA-256 of the file; see `write`."""
        return self.write_rows(name, array.shape, lambda: [array], array.dtype)

    def write_rows(
        self, name: str, shape: tuple[int, ...], rows: Callable[[], Iterable[Any]], dtype: Any = "<f4"
    ) -> str:
        """Write an array that is given in blocks of rows as .npy and return the SHA-256 of the file; see `write`.

        Args:
            name: the file.
            shape: of the whole array.
            rows: begins to give the blocks, once more if storage fails.
            dtype: of the array; float32 unless it is given.
        """
        digest = hashlib.sha256()

        def pieces() -> Iterator[memoryview]:
            nonlocal digest
            digest = hashlib.sha256()
            for piece in npy_pieces(shape, dtype, rows(), _PIECE):
                digest.update(piece)
                yield piece
                answers_still()

        try:
            retried(self.path(name), lambda: self._put(name, pieces))
        except OSError as error:
            raise StorageError(
                f"{self.path(name)} cannot be written: {reason_of(error)}. {remedy_to_write(error)}"
            ) from None
        return digest.hexdigest()

    def read(self, name: str, *, known: bool = False) -> bytes | None:
        """The bytes of a file, or None if it does not exist; for `known` see `retried`."""
        try:
            return retried(self.path(name), lambda: _get(self.path(name)), known=known)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(
                f"{self.path(name)} cannot be read: {reason_of(error)}. {remedy_to_read(error)}"
            ) from None

    def read_whole(self, name: str, digest: str | None = None) -> bytes:
        """The bytes of a file that must exist.

        Raises:
            StorageError: if it is missing, or its SHA-256 is not `digest` (None skips the check).
        """
        data = self.read(name, known=True)
        if data is None:
            raise StorageError(f"{self.path(name)} is missing. Is `out` on storage that every node shares?")
        if digest is not None and sha256_of(data) != digest:
            raise StorageError(
                f"{self.path(name)} is damaged: it is not what was written. Run the same `unseen-ray prune` line again to redo this work."
            )
        return data

    def read_table(self, name: str, digest: str | None = None) -> pa.Table:
        """A Parquet file as a table; see `read_whole`.

        Raises:
            StorageError: if it is missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = self.read_whole(name, digest)
        try:
            return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"{self.path(name)} is damaged: {str(error).rstrip('.')}. Delete it and run the same line again."
            ) from None

    def read_array(self, name: str, digest: str | None = None) -> Any:
        """A .npy file as a numpy array; see `read_whole`. Pickled content counts as damaged."""
        data = self.read_whole(name, digest)
        try:
            return array_of_npy(data)
        except ValueError as error:
            raise StorageError(f"{self.path(name)} is damaged: {error}.") from None

    def copy(self, name: str, lender: Folder, digest: str | None = None) -> str:
        """Copy a file from another folder and return its SHA-256; see `read_whole` and `write`."""
        return self.write(name, lender.read_whole(name, digest))

    def delete(self, name: str, *, conditional: bool = False) -> None:
        """Remove a file, if it exists; for `conditional` see `write`."""
        fs, path = filesystem_of(self.path(name))

        def delete() -> None:
            file = self._conditional(fs, name) if conditional else None
            seen = None if file is None else file.etag()
            self.confirm()
            if file is not None and seen is not None:
                file.delete(seen)
            else:
                fs.delete_file(path)

        try:
            retried(self.path(name), delete)
        except FileNotFoundError:
            return
        except OSError as error:
            if fs.type_name == "local" and not os.path.lexists(path):  # a read-only file system refuses even this
                return
            raise StorageError(f"{self.path(name)} cannot be removed: {reason_of(error)}.") from None

    def delete_folder(self, name: str) -> None:
        """Remove a folder and its contents, if it exists. Symbolic links are not followed; one in its place stays, with a warning."""
        from pyarrow.fs import FileType

        fs, path = filesystem_of(self.path(name))

        def delete() -> None:
            self.confirm()
            if fs.type_name == "local":
                self._delete_tree(path)
            elif fs.get_file_info(path).type == FileType.Directory:
                fs.delete_dir(path)

        if fs.type_name == "local" and os.path.islink(path):
            logger.warning("%s is a link to %s; it stays, and so does all behind it", path, os.path.realpath(path))
            return
        try:
            retried(self.path(name), delete)
        except FileNotFoundError:  # another process was faster
            return
        except OSError as error:
            raise StorageError(f"{self.path(name)} cannot be removed: {reason_of(error)}.") from None

    def _delete_tree(self, path: str) -> None:
        """Remove a local folder, file by file: the fence must hold before each of them."""
        for above, folders, files in os.walk(path, topdown=False):
            links = [each for each in folders if os.path.islink(os.path.join(above, each))]
            for each in (*files, *links):
                self.confirm()
                _remove(os.unlink, os.path.join(above, each))
            self.confirm()
            _remove(os.rmdir, above)

    def names(self) -> list[str]:
        """Sorted names of the files and folders directly in it; empty if it does not exist."""
        from pyarrow.fs import FileSelector

        def names(fs: FileSystem, path: str) -> list[str]:
            return [entry.base_name for entry in fs.get_file_info(FileSelector(path, allow_not_found=True))]

        return self._listed(names)

    def files(self) -> list[str]:
        """Sorted names of all files in it and below, but for those behind a link; empty if it does not exist."""
        return self._listed(_files_below)

    def _listed(self, names: Callable[[FileSystem, str], list[str]]) -> list[str]:
        fs, path = filesystem_of(self.root)
        try:
            return sorted(retried(self.root, lambda: names(fs, path)))
        except OSError as error:
            raise ConfigError(
                f"{self.root} cannot be read as a folder: {reason_of(error)}. {remedy_to_read(error)}"
            ) from None

    def confirm(self) -> None:
        """RunInUseError if the folder's fence does not hold."""
        if self.fence is not None:
            lock = Folder(self.fence.root).path(LOCK)
            self.fence.check(lambda: retried(lock, lambda: _get(lock)), storage_wait_s())

    def is_decided(self, name: str, data: bytes) -> bool:
        """Whether a file of this content, just written as `conditional`, was written on conditions that its storage checks."""
        fs, _ = filesystem_of(self.path(name))

        def ask() -> bool:
            file = self._conditional(fs, name)
            return file is not None and file.refuses(data)

        try:
            return retried(self.path(name), ask)
        except OSError:  # nothing is known of it
            return False

    def _conditional(self, fs: FileSystem, name: str) -> ConditionalFile | None:
        return conditional_file(self.path(name), str(getattr(fs, "region", "")))

    def _put(
        self,
        name: str,
        data: _Content,
        *,
        durable: bool = False,
        new: bool = False,
        conditional: bool = False,
    ) -> None:
        fs, path = filesystem_of(self.path(name))
        file = self._conditional(fs, name) if conditional else None
        # Before the fence is checked: what another driver writes after that has another tag.
        seen = None if file is None or new else file.etag()
        self.confirm()  # before folders are created as well: the run's own may have been removed
        if file is not None and not callable(data):
            file.put(data, seen, new=new)
        elif fs.type_name != "local":
            _fill(fs, path, data)
        else:
            self._rename_into_place(fs, path, data, durable=durable, new=new)

    def _rename_into_place(self, fs: FileSystem, path: str, data: _Content, *, durable: bool, new: bool) -> None:
        mark = f".{uuid.uuid4().hex[:8]}.tmp"
        above, own = os.path.split(path)
        aside = f"{path}{mark}" if len(os.fsencode(own)) + len(mark) <= _LONGEST_NAME else f"{above}/{mark}"
        try:
            fs.create_dir(os.path.dirname(path), recursive=True)
            _fill(fs, aside, data)
            if durable:
                _sync(aside)
            # Whoever takes over writes its lock and then removes all files aside, so one that is still there after this was in time.
            self.confirm()
            if not (new and _linked(aside, path)):
                fs.move(aside, path)
            if durable:
                _sync(os.path.dirname(path))  # without it, a power failure may undo the rename
        except (OSError, RunInUseError):
            if os.path.exists(aside):
                os.unlink(aside)
            raise


def _fill(fs: FileSystem, path: str, data: _Content) -> None:
    with fs.open_output_stream(path) as stream:
        for piece in data() if callable(data) else [data]:
            stream.write(piece)


def _files_below(fs: FileSystem, path: str) -> list[str]:
    found = _local_files(path) if fs.type_name == "local" else _remote_files(fs, path)
    return [name[len(path.rstrip("/")) + 1 :] for name in found]


def _local_files(path: str) -> list[str]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    return [os.path.join(above, name) for above, _, names in os.walk(path, onerror=fail) for name in names]


def _remote_files(fs: FileSystem, path: str) -> list[str]:
    from pyarrow.fs import FileSelector, FileType

    found = fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    return [entry.path for entry in found if entry.type == FileType.File]


def _remove(how: Callable[[str], None], path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        how(path)


def _linked(aside: str, path: str) -> bool:
    """Name a file in one step, with FileExistsError if the name is taken; False on a file system without hard links."""
    try:
        os.link(aside, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    os.unlink(aside)
    return True


def _sync(path: str) -> None:
    """Sync a file's bytes, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _get(target: str) -> bytes:
    return _content(*filesystem_of(target))


def _content(fs: FileSystem, path: str) -> bytes:
    with fs.open_input_stream(path, compression=None) as stream:
        if fs.type_name == "local":
            return bytes(stream.read())
        content = io.BytesIO()  # joined at the end, pieces would take twice the memory
        content.writelines(pieces_of(stream))
        return content.getvalue()
