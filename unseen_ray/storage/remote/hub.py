"""The Hugging Face hub as a file system of pyarrow: `hf://datasets/user/name/...` and `hf://buckets/user/name/...`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyarrow import PythonFile
from pyarrow.fs import FileInfo, FileSelector, FSSpecHandler, PyFileSystem

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["open_hub"]


def open_hub(uri: str) -> tuple[FileSystem, str]:
    """The file system of an address on the hub, and the path within it.

    Raises:
        ImportError: if `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise ImportError("it needs the package huggingface_hub; run pip install huggingface_hub") from None
    # An instance of its own: the shared one remembers listings, and would not notice that a data set has changed.
    fs = HfFileSystem(skip_instance_cache=True)
    return PyFileSystem(_Hub(fs)), fs._strip_protocol(uri)


class _Hub(FSSpecHandler):  # type: ignore[misc]
    """Reports failures as pyarrow's other file systems do.

    fsspec takes a file whose server cannot be reached for one that does not exist, unless it knows the file already; so every
    call begins with asking for it.
    """

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        with _as_os_errors():
            for path in paths:
                self._check_there(path)
            found: list[FileInfo] = super().get_file_info(paths)
            return found

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        with _as_os_errors(), contextlib.suppress(FileNotFoundError):
            self.fs.info(selector.base_dir)
        with _as_os_errors():
            found: list[FileInfo] = super().get_file_info_selector(selector)
            return found

    def open_input_file(self, path: str) -> PythonFile:
        with _as_os_errors():
            self.fs.info(path)
            return PythonFile(_HubFile(self.fs.open(path, mode="rb")), mode="r")

    open_input_stream = open_input_file

    def _check_there(self, path: str) -> None:
        try:
            self.fs.resolve_path(path)
        except FileNotFoundError:
            raise PermissionError(
                errno.EACCES, "the hub has no such data set or bucket, or it is private and HF_TOKEN does not open it"
            ) from None


class _HubFile:
    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, *size: int) -> bytes:
        with _as_os_errors():
            data: bytes = self._file.read(*size)
            return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn errors of the hub's client into those that `retry` knows: connections by errno, answers by their HTTP status."""
    try:
        yield
    except Exception as error:
        if (response := getattr(error, "response", None)) is not None:
            raise OSError(f"HTTP status {response.status_code}: {str(error).splitlines()[0]}") from None
        if type(error).__module__.startswith("httpx"):
            raise OSError(errno.EHOSTUNREACH, f"no connection to the hub: {error}") from None
        raise
