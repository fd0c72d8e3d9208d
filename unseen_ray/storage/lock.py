"""The lock of a run: a file in its folder names the one driver that works on it, which renews the file every ten seconds.

A driver that finds another one's name leaves, unless that one has been silent for a minute or is known to be dead; then it takes
over. A driver that no longer finds its own name stops, for good; `fence.py` keeps it and its workers from writing. Object stores have
no locks, hence the file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from unseen_ray.errors import RunInUseError, StorageError, UnseenError
from unseen_ray.storage.environment import ray_job_id
from unseen_ray.storage.fence import LOCK, Fence, token_of
from unseen_ray.storage.filesystem import Folder, absolute_path, filesystem_of, is_uri, remedy_to_write, sha256_of
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import answered

__all__ = ["LOCK", "Holder", "RunLock", "held", "holder_of"]

logger = logging.getLogger(__name__)

_UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.tmp$")
_SILENCE_S = 60.0  # several renewals may fail before another driver takes over
_BEAT_S = 10.0
_GLANCE_S = 15.0  # longer than a fence looks for a lock that is missing
_SETTLE_S = 2.0  # by then the writes of two drivers that began at once have both arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The driver that holds a run.

    Attributes:
        token: unique to this driver.
        host: its machine.
        pid: its process there.
        job: the id of its `ray job submit`, or empty.
        home: the machine's boot and the process namespace, within which a pid means one process; empty if unknown.
        started: when its process began, in clock ticks since that boot.
        beat: when it last renewed the lock, seconds since 1970 by its own clock.
    """

    token: str
    host: str
    pid: int
    job: str
    home: str
    started: str
    beat: float

    def age_s(self) -> float:
        """Seconds since it last renewed the lock, by this machine's clock; 0 if its own clock is ahead."""
        return max(time.time() - self.beat, 0.0)

    def silence(self) -> str:
        """For how long it has been silent, in words."""
        return f"{self.age_s():.0f} s" if self.beat > 0 and not self.is_ahead() else "an unknown time"

    def is_ahead(self) -> bool:
        """Whether its clock is so far ahead of this machine's that its last report is of no time."""
        return not self.beat - time.time() <= _SILENCE_S  # NaN as well

    def is_dead(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        # Another process may have its pid by now, but not its start time as well.
        return bool(self.home) and self.home == _home() and _started(self.pid) != self.started

    def is_unknown(self) -> bool:
        """Whether it stands for a damaged file."""
        return not self.pid

    def __str__(self) -> str:
        return (f"process {self.pid} on " if self.pid else "") + self.host + (f", job {self.job}" if self.job else "")


class RunLock:
    """A lock that this driver holds and a thread renews.

    Args:
        folder: the run's.
        holder: this driver.

    Attributes:
        folder: the same, changed only while this driver holds the lock.
    """

    def __init__(self, folder: Folder, holder: Holder) -> None:
        self._holder = holder
        self.folder = replace(folder, fence=Fence(absolute_path(folder.root), holder.token))
        self._lost = ""
        self._confirmed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run lock")
        self._thread.start()

    def check(self) -> None:
        """Call this before a step. If the lock was not renewed for a minute, it first confirms the lock again.

        Raises:
            RunInUseError: if another driver has taken over, or storage does not answer.
        """
        silent_s = time.monotonic() - self._confirmed
        if not self._lost and silent_s > _SILENCE_S:
            self._lost = self._regain(silent_s)
        if self._lost:
            raise RunInUseError(
                f"this driver has lost {self.folder.root} and stops: {self._lost}. What was finished is kept: once no other driver "
                "works on it, the same line resumes the run."
            )

    def glance(self) -> None:
        """RunInUseError if the lock is lost, as far as storage tells it soon; call this when something has failed.

        Whoever takes over removes and replaces files, so that this driver may fail before it next looks at the lock.
        """
        with contextlib.suppress(OSError, StorageError, MemoryError):
            answered(self.folder.path(LOCK), self.folder.confirm, _GLANCE_S)

    def _regain(self, silent_s: float) -> str:
        """Renew the lock as soon as storage allows it; returns why this driver has lost it, or nothing."""
        logger.warning(
            "the lock of %s was not renewed for %.0f s; checking whether this driver still holds it",
            self.folder.root,
            silent_s,
        )
        try:
            # The second round sees a driver that takes over between this read and this write.
            for _ in range(2):
                if lost := self._renewed():
                    return lost
                time.sleep(_SETTLE_S)
        except StorageError as error:
            return f"its lock could not be renewed for {silent_s:.0f} s: {str(error).rstrip('.')}"
        return ""

    def _renewed(self) -> str:
        """Write the lock again; returns why this driver has lost it, or nothing."""
        found = holder_of(self.folder)
        # A damaged file names nobody, and is written again. One that is missing may have been that of another driver, which has ended.
        if found is None:
            raise StorageError(f"{self.folder.path(LOCK)} is missing.")
        if found.token != self._holder.token and not found.is_unknown():
            return f"{found} has taken over"
        self.folder.write(LOCK, _bytes_of(replace(self._holder, beat=time.time())), conditional=True)
        self._confirmed = time.monotonic()
        return ""

    def release(self) -> None:
        """Stop renewing the lock and delete its file."""
        self._over.set()
        # A renewal that arrives after the delete would lock the folder for a minute.
        self._thread.join(_BEAT_S)
        with contextlib.suppress(StorageError, RunInUseError, MemoryError):
            found = holder_of(self.folder)
            if found is not None and found.token == self._holder.token:
                self.folder.delete(LOCK, conditional=True)

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S) and not self._lost:
            try:
                self._lost = self._renewed()
            except Exception as error:  # for want of memory, too: with this thread, the next renewals would be lost
                logger.warning("the run's lock was not renewed: %s", error)


@contextlib.contextmanager
def held(folder: Folder) -> Iterator[RunLock]:
    """Hold the lock of a run's folder within the block; a folder that it made for the lock alone is removed again.

    Raises:
        RunInUseError: if another driver holds it.
        StorageError: if the folder cannot be written.
    """
    folder, path = Folder(folder.root), absolute_path(folder.root)
    is_new = not is_uri(path) and not os.path.exists(path)
    lock = RunLock(folder, _take(folder))
    try:
        yield lock
    except UnseenError as error:
        if not isinstance(error, RunInUseError):
            lock.glance()
        raise
    finally:
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):  # it holds a run
                os.rmdir(path)


def _take(folder: Folder) -> Holder:
    mine = Holder(
        token=uuid.uuid4().hex,
        host=platform.node(),
        pid=os.getpid(),
        job=ray_job_id(),
        home=_home(),
        started=_started(os.getpid()),
        beat=time.time(),
    )
    data = folder.read(LOCK)
    if data is None:
        is_decided = _create(folder, mine)
    else:
        found = _holder_in(data)
        _refuse_if_alive(folder, found)
        logger.warning("%s was held by %s, silent for %s; taking over", folder.root, found, found.silence())
        # Of several drivers that take over, the others are to find that the file does not name the silent one any more.
        is_decided = _replace(replace(folder, fence=Fence(absolute_path(folder.root), token_of(data) or "")), mine)
    if not is_decided:
        # Of drivers that write at once, the last one wins, and all find that out by waiting.
        time.sleep(_SETTLE_S)
        found_again = holder_of(folder)
        if found_again is None or found_again.token != mine.token:
            raise _in_use(folder, found_again)
    _remove_unfinished(folder)
    return mine


def _replace(folder: Folder, holder: Holder, *, new: bool = False) -> bool:
    """Write the file; whether storage itself lets one of several drivers do so."""
    try:
        folder.write(LOCK, _bytes_of(holder), new=new, conditional=True)
    except (FileExistsError, RunInUseError):
        found = holder_of(folder)
        if found is None or found.token != holder.token:  # else an earlier attempt arrived, and its answer did not
            raise _in_use(folder, found) from None
    return folder.is_decided(LOCK, _bytes_of(holder))


def _remove_unfinished(folder: Folder) -> None:
    """Remove what the driver before was writing, so that it cannot put it in place any more; see `Folder.write`."""
    fs, path = filesystem_of(folder.root)
    if fs.type_name != "local":
        return
    for above, folders, files in os.walk(path):
        # A run within this one has a lock and a driver of its own.
        folders[:] = [each for each in folders if not os.path.exists(os.path.join(above, each, LOCK))]
        for name in filter(_UNFINISHED.search, files):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(above, name))


def _refuse_if_alive(folder: Folder, found: Holder) -> None:
    if found.is_dead():
        return
    if found.age_s() <= _SILENCE_S and not found.is_ahead():
        raise _in_use(folder, found)
    # Its clock may be wrong, so that its age is no proof; a driver that lives renews its lock meanwhile.
    time.sleep(_SILENCE_S if found.is_ahead() else 2 * _BEAT_S)
    again = holder_of(folder)
    if again is not None and repr(again) != repr(found):  # of equal text: NaN differs from itself
        raise _in_use(folder, again)


def _in_use(folder: Folder, found: Holder | None) -> RunInUseError:
    who = "another driver" if found is None else f"{found}, which last reported {found.silence()} ago"
    return RunInUseError(
        f"{folder.root} is held by {who}. Let it finish, stop it, or name another folder; {_SILENCE_S:.0f} s after its last report the "
        "same line takes over."
    )


def _create(folder: Folder, holder: Holder) -> bool:
    """Create the file if there is none; whether storage itself lets one of several drivers do so."""
    fs, path = filesystem_of(folder.path(LOCK))
    if fs.type_name != "local":
        return _replace(folder, holder, new=True)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # A hard link appears with its whole content; opening the file with O_EXCL would show an empty one to others.
        aside = f"{path}.{holder.token[:8]}.tmp"
        with open(aside, "xb") as stream:
            stream.write(_bytes_of(holder))
        try:
            os.link(aside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
    except (FileExistsError, FileNotFoundError):  # the latter where a driver that was faster removed the file aside
        found = holder_of(folder)
        raise _in_use(folder, found) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {reason_of(error)}. {remedy_to_write(error)}") from None
    return True


def holder_of(folder: Folder) -> Holder | None:
    """The driver that holds a run, if any; StorageError if the file cannot be read."""
    data = folder.read(LOCK)
    return None if data is None else _holder_in(data)


def _holder_in(data: bytes) -> Holder:
    """The driver that a lock names; for a damaged file, as a crash may leave it, an unknown one that has been silent."""
    try:
        return _checked(Holder(**json.loads(data)))
    except (ValueError, TypeError, OverflowError, RecursionError):
        # A token made of the content tells a driver that repairs the file from a file that stays as it is.
        return Holder(token=sha256_of(data), host="an unknown machine", pid=0, job="", home="", started="", beat=0.0)


def _checked(found: Holder) -> Holder:
    """The same with a float as `beat`; TypeError where a field is of another type."""
    values = asdict(found)
    beat, pid = values.pop("beat"), values.pop("pid")
    if not all(isinstance(value, str) and value.isprintable() for value in values.values()) or not isinstance(pid, int):
        raise TypeError("a field is of another type")
    return replace(found, beat=float(beat))


def _bytes_of(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=1) + "\n").encode()


def _home() -> str:
    """This boot and process namespace; empty where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty where it does not exist or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            state, *rest = file.read().rpartition(")")[2].split()
            return "" if state == "Z" else rest[18]
    except (OSError, IndexError, ValueError):
        return ""
