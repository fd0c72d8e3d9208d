"""Opens the file systems that URIs name, and explains why one cannot be opened."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING

from unseen_ray.storage.environment import variables_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["explained", "open_uri"]

_GCS_LIMIT = "retry_limit_seconds=5"  # Arrow's own is 15 minutes, deaf to Ctrl-C; `retried` goes on beyond it
_AZURE = "an address on Azure is abfs://container@account.dfs.core.windows.net/path"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gs://anonymous@bucket/path for a public bucket",
    "hf": "HF_TOKEN for what is private; an address on the hub is hf://datasets/user/name/path",
    "abfs": f"AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET; {_AZURE}",
}
_NO_CONNECTION = re.compile(r"CURL error|Fail to get a new connection|no connection to the hub")
_LAST_WORDS = re.compile(r".*with a last message of (.*?)( error_info=.*)?", re.DOTALL)  # of Google's errors
_S3 = re.compile(r"(s3://([a-z0-9.-]+))((?:/[\w.~!$&'()*+,;=:@-]+)*)(\?[^#]*)?", re.ASCII)  # nothing to unescape
_reached: set[str] = set()


def open_uri(uri: str) -> tuple[FileSystem, str]:
    """The file system of a URI, and the path within it.

    A bucket's server is asked before its first use in a process, whatever it answers: one that cannot be reached is an
    error within seconds, and not waited for as later outages are.
    """
    scheme = _scheme(uri)
    place = "/".join(uri.split("/")[: 5 if scheme == "hf" else 3])  # of the hub, hf://datasets/user/name
    fs, inner = _opened(uri, scheme)
    if place not in _reached and scheme != "s3":  # which asks for the bucket's region when it is opened
        try:
            fs.get_file_info(inner)
        except OSError as error:
            if _NO_CONNECTION.search(str(error)):
                raise
    _reached.add(place)
    return fs, inner


def explained(uri: str, error: Exception) -> str:
    """Why a URI cannot be opened, and what to do."""
    what = str(error).strip().split("\n", 1)[0].rstrip(".")
    if words := _LAST_WORDS.fullmatch(what):
        what = words[1]
    if credentials := _CREDENTIALS.get(_scheme(uri)):
        return f"{what}. Check the address, the network and the credentials ({credentials})."
    hint = f"; {_AZURE}" if _scheme(uri) in ("az", "adl", "wasb", "wasbs") else ""
    return f"{what}. Allowed are local paths, s3://, gs://, abfs:// and hf:// addresses{hint}."


def _scheme(uri: str) -> str:
    scheme = uri.split(":", 1)[0]
    return {"gcs": "gs", "abfss": "abfs"}.get(scheme, scheme)


def _opened(uri: str, scheme: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem

    if scheme == "hf":
        from unseen_ray.storage.remote.hub import open_hub

        return open_hub(uri)
    if scheme == "gs" and "retry_limit_seconds=" not in uri:
        uri += f"{'&' if '?' in uri else '?'}{_GCS_LIMIT}"
    if address := _S3.fullmatch(uri):
        place, bucket, path, options = address.groups(default="")
        return _s3_of(place + options, os.getpid(), variables_of("AWS_")), bucket + path
    fs, inner = FileSystem.from_uri(uri)
    return fs, str(inner)


@functools.lru_cache(maxsize=8)
def _s3_of(place: str, process: int, variables: tuple[tuple[str, str], ...]) -> FileSystem:
    """The file system of a bucket, for one process and its credentials: while one request hangs, Arrow opens no other."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(place)[0]
