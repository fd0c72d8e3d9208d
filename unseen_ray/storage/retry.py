"""Retries of storage: what fails for a while is tried again, what never answers is given up."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

__all__ = ["SilentStorageError", "may_pass", "retried", "retried_at_length", "wait_s"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

WAIT_VARIABLE = "UNSEEN_RAY_STORAGE_WAIT_S"
_DEFAULT_WAIT_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_PASSING = {
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
_SERVICE = re.compile(r"AWS Error|google::cloud|HTTP status|curl", re.IGNORECASE)  # pyarrow's words for object stores
_REFUSED = re.compile(
    r"ACCESS_DENIED|AccessDenied|Forbidden|NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket .*(not found|does not exist)|INVALID_ACCESS_KEY|"
    r"InvalidAccessKey|SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|ExpiredToken|INVALID_ACTION|INVALID_PARAMETER|"
    r"HTTP status (400|401|403|404|405)|credentials|Not a regular file|[Ii]s a directory"
)


class SilentStorageError(OSError):
    """A storage that has not answered within its time."""


def wait_s() -> float:
    """Seconds for which a storage may fail or stay silent: the environment's UNSEEN_RAY_STORAGE_WAIT_S, else 120."""
    try:
        return max(float(os.environ[WAIT_VARIABLE]), 0.0)
    except (KeyError, ValueError):
        return _DEFAULT_WAIT_S


def retried(what: str, do: Callable[[], _T]) -> _T:
    """Do something with a storage, and again while it fails in ways that pass.

    Args:
        what: the path, for the log.
        do: may be called several times, and in another thread.

    Raises:
        OSError: if `do` fails in a way that does not pass (a full disk, no permission, a missing file), or for longer than `wait_s`.
        SilentStorageError: if one call took longer than `wait_s`; its thread is left alone.
    """
    limit = wait_s()

    def log(state: RetryCallState) -> None:
        assert state.outcome is not None
        logger.warning("%s: %s; trying again in %.1f s", what, state.outcome.exception(), state.upcoming_sleep)

    retries = Retrying(
        retry=retry_if_exception(_is_passing),
        wait=wait_exponential(_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        stop=stop_before_delay(limit),
        before_sleep=log,
        reraise=True,
    )
    answer: _T = retries(_answered, what, do, limit)
    return answer


def _is_passing(error: BaseException) -> bool:
    # A silent storage has used up its time, and the call that hangs still holds its connection.
    return isinstance(error, OSError) and not isinstance(error, SilentStorageError) and may_pass(error)


def may_pass(error: OSError) -> bool:
    """Whether waiting may mend a failure; object stores say in words what failed, and what they refuse for good."""
    if error.errno is None:
        return _SERVICE.search(str(error)) is not None and _REFUSED.search(str(error)) is None
    return error.errno in _PASSING


def retried_at_length(what: str, do: Callable[[], _T]) -> _T:
    """Do something that is done very often: without a thread, and as `retried` from its first failure on.

    A thread for each call would cost more than a short read, so the first call may hang as long as the storage does.

    Raises:
        OSError: see `retried`.
    """
    try:
        return do()
    except OSError as error:
        if not may_pass(error):
            raise
    return retried(what, do)


def _answered(what: str, do: Callable[[], _T], limit_s: float) -> _T:
    """What `do` returns, waited for no longer than a limit."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            results.append(do())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True, name=f"storage {what}")
    thread.start()
    thread.join(max(limit_s, 1.0))
    if errors:
        raise errors[0]
    if not results:
        raise SilentStorageError(f"no answer within {limit_s:g} s")
    return results[0]
