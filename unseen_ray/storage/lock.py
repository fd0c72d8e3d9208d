"""One driver a run: a file in the run's folder says who it is, and that it still lives.

A driver that finds another one's name leaves, unless that one has been silent for a minute, or is known to be dead: then it takes
over. A driver that finds its own name gone stops, and writes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from unseen_ray.errors import RunInUseError, StorageError
from unseen_ray.storage.filesystem import Folder, filesystem_of, sha256_of

__all__ = ["LOCK", "Holder", "RunLock", "held", "holder_of"]

logger = logging.getLogger(__name__)

LOCK = "lease.json"
_SILENCE_S = 60.0
_BEAT_S = 10.0
_SETTLE_S = 2.0  # in which writes of two drivers that began at once have both arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a run.

    Attributes:
        token: unlike any other driver's.
        host: its machine.
        pid: its process there.
        job: the id of its `ray job submit`, or nothing.
        home: digest of what tells processes of one machine's boot and namespace from others.
        started: when its process began, in clock ticks of that boot.
        beat: when it last said that it lives, seconds since 1970 by its own clock.
    """

    token: str
    host: str
    pid: int
    job: str
    home: str
    started: str
    beat: float

    def age_s(self) -> float:
        """Seconds since it last said that it lives, by this machine's clock."""
        return max(time.time() - self.beat, 0.0)

    def is_dead(self) -> bool:
        """Whether it was a process of this very machine, and is none any more."""
        return bool(self.home) and self.home == _home() and _started(self.pid) != self.started

    def is_unknown(self) -> bool:
        """Whether it stands for a file that nobody can read."""
        return not self.pid

    def __str__(self) -> str:
        return (f"process {self.pid} on " if self.pid else "") + self.host + (f", job {self.job}" if self.job else "")


def holder_of(folder: Folder) -> Holder | None:
    """Who holds a run, if anybody does; StorageError if that cannot be read."""
    return _read(folder)


class RunLock:
    """A driver's hold on a run, kept alive by a thread.

    Args:
        folder: the run's.
        holder: this driver.
    """

    def __init__(self, folder: Folder, holder: Holder) -> None:
        self._folder, self._holder = folder, holder
        self._lost = ""
        self._confirmed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run lock")
        self._thread.start()

    def check(self) -> None:
        """To be called before anything is written. After a minute of silence it waits until this driver holds the run again.

        Raises:
            RunInUseError: if another driver has taken over, or storage is given up.
        """
        silent_s = time.monotonic() - self._confirmed
        if not self._lost and silent_s > _SILENCE_S:
            self._lost = self._regain(silent_s)
        if self._lost:
            raise RunInUseError(
                f"this driver has lost {self._folder.root} and stops: {self._lost}. What was finished is kept: once no other driver "
                "works on it, the same line goes on."
            )

    def _regain(self, silent_s: float) -> str:
        """Say again that this driver lives, as soon as storage takes it; what is wrong, if it does not hold the run any more."""
        logger.warning(
            "%s has taken no sign of life for %.0f s; asking whether the run is still ours", self._folder.root, silent_s
        )
        try:
            for _ in range(2):  # a driver that takes over at this moment is seen the second time
                found = _read(self._folder)
                if found is None or self._is_other(found):
                    return f"{found or 'another driver, which has ended since,'} has taken over"
                _write(self._folder, replace(self._holder, beat=time.time()))
                time.sleep(_SETTLE_S)
        except StorageError as error:
            return f"the storage has not taken a sign of life for {silent_s:.0f} s: {error}"
        self._confirmed = time.monotonic()
        return ""

    def _is_other(self, found: Holder) -> bool:
        """Whether another driver stands in the file; one that is damaged is written anew."""
        return found.token != self._holder.token and not found.is_unknown()

    def release(self) -> None:
        """Let the run go."""
        self._over.set()
        self._thread.join(_BEAT_S)
        with contextlib.suppress(StorageError):
            found = _read(self._folder)
            if found is not None and found.token == self._holder.token:
                self._folder.delete(LOCK)

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S) and not self._lost:
            try:
                found = _read(self._folder)
                if found is not None and self._is_other(found):
                    self._lost = f"{found} has taken over"
                    return
                _write(self._folder, replace(self._holder, beat=time.time()))
                self._confirmed = time.monotonic()
            except StorageError as error:
                logger.warning("no sign of life: %s", error)


@contextlib.contextmanager
def held(folder: Folder) -> Iterator[RunLock]:
    """Hold a run's folder for as long as the block lasts.

    Raises:
        RunInUseError: if another driver holds it.
        StorageError: if the folder cannot be written.
    """
    lease = RunLock(folder, _take(folder))
    try:
        yield lease
    finally:
        lease.release()


def _take(folder: Folder) -> Holder:
    mine = Holder(
        token=uuid.uuid4().hex,
        host=platform.node(),
        pid=os.getpid(),
        job=_job(),
        home=_home(),
        started=_started(os.getpid()),
        beat=time.time(),
    )
    found = _read(folder)
    if found is not None:
        _refuse_if_alive(folder, found)
        logger.warning("%s was held by %s, silent for %.0f s; taking over", folder.root, found, found.age_s())
    elif _create(folder, mine):
        return mine
    _write(folder, mine)
    time.sleep(_SETTLE_S)
    found = _read(folder)
    if found is None or found.token != mine.token:
        raise _in_use(folder, found)
    return mine


def _refuse_if_alive(folder: Folder, found: Holder) -> None:
    if found.is_dead():
        return
    if found.age_s() <= _SILENCE_S:
        raise _in_use(folder, found)
    time.sleep(2 * _BEAT_S)  # its clock may be behind: one that lives has spoken by then
    again = _read(folder)
    if again is not None and (again.token, again.beat) != (found.token, found.beat):
        raise _in_use(folder, again)


def _in_use(folder: Folder, found: Holder | None) -> RunInUseError:
    who = "another driver" if found is None else f"{found}, which last reported {found.age_s():.0f} s ago"
    return RunInUseError(
        f"{folder.root} is held by {who}. Let it finish, stop it, or name another folder; {_SILENCE_S:.0f} s after its last report the "
        "same line takes over."
    )


def _create(folder: Folder, holder: Holder) -> bool:
    """Make the file if there is none, at once, as a local file system can; False where there is one, or none can."""
    fs, path = filesystem_of(folder.path(LOCK))
    if fs.type_name != "local":
        return False
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        aside = f"{path}.{holder.token[:8]}.tmp"
        with open(aside, "xb") as stream:
            stream.write(_bytes_of(holder))
        try:
            os.link(aside, path)
        finally:
            os.unlink(aside)
    except FileExistsError:
        found = _read(folder)
        raise _in_use(folder, found) from None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error}. Free space or mend the storage, then run again."
        ) from None
    return True


def _read(folder: Folder) -> Holder | None:
    """Who holds a run; of a damaged file, which a crash may leave, somebody unknown who has been silent."""
    data = folder.read(LOCK)
    try:
        return None if data is None else Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder(
            token=sha256_of(data or b""), host="an unknown machine", pid=0, job="", home="", started="", beat=0.0
        )


def _write(folder: Folder, holder: Holder) -> None:
    folder.write(LOCK, _bytes_of(holder))


def _bytes_of(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=1) + "\n").encode()


def _home() -> str:
    """What tells this boot and process namespace from others; empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty where there is none, or the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            state, *rest = file.read().rpartition(")")[2].split()
            return "" if state == "Z" else rest[18]
    except (OSError, IndexError, ValueError):
        return ""


def _job() -> str:
    """The id that `ray job submit` gave this driver."""
    try:
        metadata: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
        return str(metadata.get("job_submission_id", ""))
    except (ValueError, AttributeError):
        return ""
