"""Retries of storage: transient failures are retried with growing pauses, and calls that never return are abandoned."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from unseen_ray.storage.environment import storage_wait_s
from unseen_ray.storage.plain_text import reason_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = [
    "SilentStorageError",
    "answered",
    "answers_still",
    "is_of_storage",
    "is_on_network",
    "is_transient",
    "no_more_files",
    "remedy",
    "retried",
    "retried_inline",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOOKS = 50  # for an answer: time in which the whole process was stopped uses up one of them alone
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
_MOUNTS = "/proc/self/mountinfo"
_NETWORK = re.compile(r"(nfs|cifs|smb|fuse\.|lustre|gpfs|beegfs|ceph|gluster|9p|afs|virtiofs|pvfs|orangefs|wekafs)")
# pyarrow gives an object store's failures no errno, only text. Those that a retry cannot mend are refused by their words.
_SERVICE = re.compile(r"AWS Error|Azure Error|google::cloud|HTTP status|curl", re.IGNORECASE)
_REFUSED = re.compile(
    r"ACCESS_DENIED|AccessDenied|Forbidden|NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket .*(not found|does not exist)|INVALID_ACCESS_KEY|"
    r"InvalidAccessKey|SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|ExpiredToken|INVALID_ACTION|INVALID_PARAMETER|"
    r"HTTP status (400|401|403|404|405)|credentials|Not a regular file|[Ii]s a directory"
)


class SilentStorageError(OSError):
    """A call to storage that has not returned in time."""


def retried(what: str, do: Callable[[], _T], *, known: bool = False) -> _T:
    """Call `do`, and again while it fails for reasons that may pass.

    Args:
        what: the path, also for the log.
        do: uses storage; it may be called several times, in another thread.
        known: whether the file must exist, because a manifest or a receipt names it. A network file system may still deny it, from what
            this node remembers; so it is looked for again there.

    Raises:
        OSError: if `do` fails for good (a full disk, no permission, a missing file), or for longer than `storage_wait_s` from its first
            failure on.
        SilentStorageError: if one call took longer than `storage_wait_s`; its thread is left running.
        MemoryError: if the system had no memory for the call: the storage is not at fault.
    """
    limit, failures = storage_wait_s(), list[float]()

    def is_over(state: RetryCallState) -> bool:
        failures.append(time.monotonic())  # a long file may be written for longer than the limit before anything fails
        return failures[-1] - failures[0] + state.upcoming_sleep >= limit

    def log(state: RetryCallState) -> None:
        assert state.outcome is not None
        logger.warning("%s: %s; retrying in %.1f s", what, state.outcome.exception(), state.upcoming_sleep)

    retries = Retrying(
        retry=retry_if_exception(lambda error: _is_transient(error) or (known and _is_denied(what, error))),
        wait=wait_exponential(_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        stop=is_over,
        before_sleep=log,
        reraise=True,
    )
    with _memory_named(what):
        answer: _T = retries(answered, what, do, limit)
    return answer


@contextmanager
def _memory_named(path: str) -> Iterator[None]:
    """Let a call to storage that found no memory fail by that name."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"{path}: {reason_of(error)}") from error


def _is_denied(path: str, error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) and is_on_network(path)


def is_on_network(path: str) -> bool:
    """Whether a local path is on a file system of the network, which may know of other nodes' files only after a minute."""
    if "://" in path:
        return False
    above = os.path.realpath(path)
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as table:
            mounts = [line.split() for line in table]
    except OSError:  # no Linux
        return False
    # A line ends in " - KIND SOURCE OPTIONS"; of mounts in one place, the last one is seen.
    kinds = {mount[4]: mount[mount.index("-", 6) + 1] for mount in mounts if "-" in mount[6:]}
    while above not in kinds and above != os.path.dirname(above):
        above = os.path.dirname(above)
    return _NETWORK.match(kinds.get(above, "")) is not None


def _is_transient(error: BaseException) -> bool:
    # A call that hangs has used up the time, and still holds its connection.
    return isinstance(error, OSError) and not isinstance(error, SilentStorageError) and is_transient(error)


def is_transient(error: OSError) -> bool:
    """Whether a failure may pass by itself, so that a retry makes sense."""
    if error.errno is None:
        return _SERVICE.search(str(error)) is not None and _REFUSED.search(str(error)) is None
    return error.errno in _TRANSIENT


def is_of_storage(error: OSError) -> bool:
    """Whether the storage has refused a file or not answered, so that nothing is known about what the file holds."""
    return isinstance(error, SilentStorageError) or bool(error.errno) or _SERVICE.search(str(error)) is not None


def remedy(error: OSError, otherwise: str = "Free space or repair the storage") -> str:
    """What the user can do about a failure that lasts, as the start of a sentence; `otherwise` where no limit of the process is it."""
    if error.errno in _NO_MORE_FILES:
        return "Raise the limit of open files (`ulimit -n`)"
    if error.errno == errno.EFBIG:
        return "Raise the limit of a file's size (`ulimit -f`)"
    return otherwise


def no_more_files(error: BaseException) -> str | None:
    """What to say of an error if the process may open no more files; None for others."""
    if not isinstance(error, OSError) or error.errno not in _NO_MORE_FILES:
        return None
    return f"this process may open no more files: {reason_of(error)}. {remedy(error)}"


def retried_inline(what: str, do: Callable[[], _T], fs: FileSystem | None, *, known: bool = False) -> _T:
    """`retried` for calls that are too frequent for a thread each, or whose size has no bound.

    Args:
        what, do, known: see `retried`.
        fs: that of the call; None for a call of no bounded size that cannot tell that storage `answers_still`. The first attempt of such
            a call, and of one to a local file system, runs in this thread and may hang as long as the storage does.

    Raises:
        OSError, MemoryError: see `retried`.
    """
    is_far = fs is not None and fs.type_name != "local"
    try:
        with _memory_named(what):
            return answered(what, do, storage_wait_s()) if is_far else do()
    except OSError as error:
        if not (is_transient(error) or (known and _is_denied(what, error))):
            raise
    return retried(what, do, known=known)


class _Asking(threading.Thread):
    """A thread that waits for storage."""

    looks_left = _LOOKS


def answers_still() -> None:
    """A piece of a long answer has come: the time within which storage must answer begins anew."""
    thread = threading.current_thread()
    if isinstance(thread, _Asking):
        thread.looks_left = _LOOKS


def answered(what: str, do: Callable[[], _T], limit_s: float) -> _T:
    """The result of `do`, called in another thread, so that Ctrl-C is heard meanwhile; within such a call, in the same one.

    Raises:
        SilentStorageError: if it took longer than `limit_s`; its thread is left running.
    """
    if isinstance(threading.current_thread(), _Asking):  # the outer call's limit holds: of two, either might end first
        return do()
    results: list[_T] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            results.append(do())
        except BaseException as error:
            errors.append(error)

    # Blocking I/O cannot be interrupted, only left behind; a daemon thread does not keep the process alive.
    thread = _Asking(target=ask, daemon=True, name=f"storage {what}")
    thread.start()
    while thread.looks_left and thread.is_alive():
        thread.looks_left -= 1
        thread.join(max(limit_s, 1.0) / _LOOKS)
    if errors:
        raise errors[0]
    if not results:
        raise SilentStorageError(f"no answer within {limit_s:g} s")
    return results[0]
