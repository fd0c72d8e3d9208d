"""Join the Ray cluster that was named, or start a private one with token authentication."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import ray

from unseen_ray.errors import ClusterError, ConfigError, first_line
from unseen_ray.execution.ray.internals import (
    canonical_address,
    dead_processes,
    end_processes,
    reread_authentication,
    session_folder,
    start_cluster,
)
from unseen_ray.storage.environment import (
    RAY_API_SERVER,
    RAY_AUTH_MODE,
    RAY_AUTH_TOKEN,
    RAY_AUTH_TOKEN_FILE,
    RAY_CLUSTER,
    replaced_variables,
    set_defaults,
    variable,
)
from unseen_ray.storage.retry import answered

__all__ = ["api_server", "check_private", "check_reachable", "ensure_session", "ray_session", "starts_private"]

logger = logging.getLogger(__name__)

_REACH_WITHIN_S = 10.0
_STARTS = 3
_LEAST_FILES = 256
_WORKERS_END_S = 10.0
_PAUSE_S = 0.2  # in which a worker may write once more
# a socket's path has at most 107 bytes, and Ray adds /ray/session_2026-11-28_21-05-39_077846_1234567/sockets/plasma_store
_LONGEST_TMPDIR = 107 - 72
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_DEFAULT_SHUFFLE_STRATEGY": "sort_shuffle_pull_based",
}


@contextlib.contextmanager
def ray_session(address: str | None, *, local: bool = True) -> Iterator[None]:
    """Connect to Ray: to the present session, the cluster at `address` or RAY_ADDRESS, or a private one.

    A private cluster requires a token that only this user can read, and ends with the session; a cluster that merely
    runs on the same host is never joined. A session that was open before stays open.

    Args:
        address: the cluster to join; None for RAY_ADDRESS, else a private one.
        local: whether `--executor local` would do the same work without Ray.

    Raises:
        ConfigError: if the named cluster does not answer.
        ClusterError: if a private one does not start.
    """
    if ray.is_initialized():
        yield
        return
    set_defaults(_QUIET)
    named = _named(address)
    opened = _joined(named) if named else _private(local)
    ours = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(opened)
        except SystemExit as ended:
            if ended.code == signal.SIGTERM:  # of the handler that ray.init puts in place of ours until it returns
                raise KeyboardInterrupt from None
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)
        yield


def starts_private(address: str | None) -> bool:
    """Whether a session would start a cluster on this machine alone."""
    return not ray.is_initialized() and _named(address) is None


def check_private() -> None:
    """ClusterError where the private cluster of this process has ended: no node can join it, and Ray ends the process a minute later."""
    dead = dead_processes() & {"raylet", "gcs_server"}
    if dead:
        raise ClusterError(
            f"the private Ray cluster has ended: its {' and '.join(sorted(dead))} does not run any more. Something killed it, perhaps "
            "for want of memory. Run the same line again: what was finished is kept."
        )


def _named(address: str | None) -> str | None:
    named = address or variable(RAY_CLUSTER)
    return named if named != "local" else None


def ensure_session() -> None:
    """Connect to Ray until this process ends; see `ray_session`."""
    if not ray.is_initialized():
        session = ray_session(None, local=False)
        session.__enter__()
        atexit.register(session.__exit__, None, None, None)


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    try:
        # Ray waits for minutes for the cluster that `auto` names if that has ended.
        auto = address == "auto"
        found = answered(address, lambda: canonical_address(address), _REACH_WITHIN_S) if auto else address
        host, _, port = (found or address).rpartition("://")[2].partition(":")
        if port.isdecimal():
            check_reachable(host, int(port))
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"the Ray cluster at {address} cannot be joined: {reason} "
            "Check `address` or RAY_ADDRESS, and the token (RAY_AUTH_TOKEN_PATH) if it asks for one."
        ) from None
    logger.info("joined the Ray cluster at %s", address)
    try:
        yield
    finally:
        ray.shutdown()


def check_reachable(host: str, port: int) -> None:
    """OSError where nobody listens: Ray's own client ends the process there, or says so at length."""
    socket.create_connection((host, port), timeout=_REACH_WITHIN_S).close()


@contextlib.contextmanager
def api_server(url: str) -> Iterator[None]:
    """Within, Ray's clients of the Jobs API use this address, whatever the environment names, and the token if there is one."""
    kept = os.path.expanduser("~/.ray/auth_token")
    found = variable(RAY_AUTH_TOKEN) or variable(RAY_AUTH_TOKEN_FILE) or os.path.exists(kept)
    mode = variable(RAY_AUTH_MODE) or ("token" if found else None)
    with _environment({RAY_API_SERVER: url, RAY_AUTH_MODE: mode}):
        yield


@contextlib.contextmanager
def _private(local: bool) -> Iterator[None]:
    _check_files(local)
    folder, token_file = _token(local)
    changed = {RAY_AUTH_MODE: "token", RAY_AUTH_TOKEN_FILE: token_file, RAY_AUTH_TOKEN: None, RAY_CLUSTER: None}
    with _environment(changed):
        session = ""
        try:
            session = _start(local)
            logger.info("started it, with a token in %s", token_file)
            yield
        finally:
            ray.shutdown(wait_for_processes=True)
            for each in filter(None, (folder, session)):
                _remove(each)


def _token(local: bool) -> tuple[str, str]:
    """A temporary folder, and a token in it that only this user can read."""
    try:
        folder = tempfile.mkdtemp(prefix="unseen_ray_")
        token_file = os.path.join(folder, "token")
        with os.fdopen(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
    except OSError as error:
        raise ClusterError(
            f"a private Ray cluster does not start on this machine: {error}. Free space there or set TMPDIR{_cure(local)}."
        ) from None
    return folder, token_file


def _check_files(local: bool) -> None:
    """ClusterError where Ray's processes may open too few files: they would wait for each other for ever."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises its own limit as far as it may
    if most != resource.RLIM_INFINITY and most < _LEAST_FILES:
        raise ClusterError(
            f"Ray needs to open {_LEAST_FILES} files and more, and this process may open {most}. Raise the limit "
            f"(ulimit -n 4096){_cure(local)}."
        )


def _start(local: bool) -> str:
    """Start Ray on this machine, again where it gives up waiting for its own processes, as on a busy machine.

    Returns:
        The folder of its session, which Ray itself leaves behind.
    """
    hint = "; --executor local needs none" if local else ""
    logger.info("starting a private Ray cluster (up to 40 s%s) ...", hint)
    folder = _short_folder()
    for left in reversed(range(_STARTS)):
        try:
            start_cluster(folder)
            return session_folder()
        except BaseException as error:
            if (begun := end_processes(error.__traceback__)) is not None:
                _remove(begun)
            ray.shutdown()
            if not isinstance(error, Exception):  # where its wait has run out, Ray raises just that
                raise
            reason = first_line(error).rstrip(".")
            if not left or not re.search(r"tim(ed|e) ?out", f"{type(error).__name__} {reason}", re.IGNORECASE):
                raise ClusterError(
                    f"a private Ray cluster does not start on this machine: {reason}. Wait until the machine is less busy, check memory, "
                    f"limits (ulimit -a) and the space in {tempfile.gettempdir()}, and run the same line again{_cure(local)}."
                ) from None
            logger.warning("Ray has not started within its own limit of 30 s; trying again")
    raise AssertionError("the last start returns or raises")


def _cure(local: bool) -> str:
    return ", or do the same work without Ray: --executor local" if local else ""


def _remove(folder: str) -> None:
    """Remove a folder in which workers of Ray that have not ended yet may still write."""
    end = time.monotonic() + _WORKERS_END_S
    while os.path.exists(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > end:
            return
        time.sleep(_PAUSE_S)


def _short_folder() -> str | None:
    """/tmp where TMPDIR is too long for the sockets that Ray puts below it, as batch systems set it; else None, Ray's default."""
    if len(tempfile.gettempdir()) <= _LONGEST_TMPDIR:
        return None
    logger.info("TMPDIR is too long for Ray's sockets: Ray's session is placed below /tmp")
    return f"/tmp/ray-{os.getuid()}"


@contextlib.contextmanager
def _environment(values: dict[str, str | None]) -> Iterator[None]:
    try:
        with replaced_variables(values):
            reread_authentication()
            yield
    finally:
        reread_authentication()
