"""A cache of finished work that several runs share, and claims on unfinished work, so that each task is done once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypeVar

from unseen_ray.runs.evaluation_file import result_of
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult
from unseen_ray.runs.votes import copy_votes, find_receipt
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json, without_nan
from unseen_ray.storage.filesystem import Folder

__all__ = ["ClaimBook", "ResultCache", "TaskClaims", "once"]

_SILENCE_S = 60.0  # several heartbeats may be lost before an owner counts as dead
_BEAT_S = 10.0
_PAUSE_S = 0.5
_RESULT = "result.json"
_PLACE = (0, 0)  # stage and index of all votes in the cache: the same work is another task in another run

Task = TypeVar("Task")
Result = TypeVar("Result")


class TaskClaims(Protocol):
    """Which owner works on which tasks; see `ClaimBook`."""

    def claim(self, owner: str, keys: list[str]) -> list[str]:
        """Claim the keys that no other owner holds."""
        ...

    def release(self, owner: str, keys: list[str]) -> None:
        """Give claims back."""
        ...

    def beat(self, owner: str) -> None:
        """Record that an owner is alive."""
        ...


@dataclass(slots=True, eq=False)
class ClaimBook:
    """Claims on unfinished work; those of an owner without a sign of life for a minute do not count.

    Attributes:
        silence_s: seconds between two signs of life after which an owner counts as dead.
    """

    silence_s: float = _SILENCE_S
    _owner_of: dict[str, str] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)

    def claim(self, owner: str, keys: list[str]) -> list[str]:
        """Claim the keys that no other owner holds; returns them in the order given."""
        self.beat(owner)
        free = [key for key in keys if not self._is_held(key, by_others_than=owner)]
        self._owner_of |= dict.fromkeys(free, owner)
        return free

    def release(self, owner: str, keys: list[str]) -> None:
        """Give claims back."""
        for key in keys:
            if self._owner_of.get(key) == owner:
                del self._owner_of[key]

    def drop(self, owner: str) -> None:
        """Give back all claims of an owner that has ended."""
        self.release(owner, [key for key, its in self._owner_of.items() if its == owner])

    def beat(self, owner: str) -> None:
        """Record that an owner is alive."""
        self._heard[owner] = time.monotonic()

    def _is_held(self, key: str, *, by_others_than: str) -> bool:
        owner = self._owner_of.get(key)
        if owner is None or owner == by_others_than:
            return False
        return time.monotonic() - self._heard[owner] < self.silence_s


class ResultCache:
    """One run's view of the cache. Within its `with` block a thread tells the others that the run is alive.

    Args:
        root: the cache's folder.
        owner: the run's name among those that share it.
        claims: shared by all runs.
    """

    def __init__(self, root: str, owner: str, claims: TaskClaims) -> None:
        self._root, self._owner, self._claims = Folder(root), owner, claims
        self._over = threading.Event()

    def __enter__(self) -> ResultCache:
        threading.Thread(target=self._beat, daemon=True, name="result cache").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def claim(self, keys: list[str]) -> list[str]:
        """See `ClaimBook.claim`."""
        return self._claims.claim(self._owner, keys)

    def release(self, keys: list[str]) -> None:
        """See `ClaimBook.release`."""
        self._claims.release(self._owner, keys)

    def put_votes(self, folder: Folder, stage: int, index: int, key: str) -> None:
        """Copy a task's votes from a run into the cache, unless they are there."""
        if find_receipt(self._at(key), *_PLACE, key) is None:
            copy_votes(folder, self._at(key), *_PLACE, key, at=(stage, index))

    def get_votes(self, folder: Folder, stage: int, index: int, key: str, name: str) -> Receipt | None:
        """Copy a task's votes from the cache into a run; None if they are not there."""
        return copy_votes(self._at(key), folder, stage, index, key, at=_PLACE, name=name)

    def put_result(self, key: str, result: EvalResult) -> None:
        """Put the result of a training into the cache."""
        self._at(key).write(_RESULT, to_checked_json(without_nan(asdict(result))))

    def get_result(self, key: str) -> EvalResult | None:
        """The result of a training; None if it is missing or damaged."""
        data = self._at(key).read(_RESULT)
        try:
            return None if data is None else result_of(from_checked_json(data))
        except (ValueError, KeyError, TypeError):
            return None

    def _at(self, key: str) -> Folder:
        return Folder(self._root.path(key))

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            self._claims.beat(self._owner)


def once(
    tasks: Sequence[Task],
    keys: Sequence[str],
    *,
    known: Callable[[Task], Result | None],
    do: Callable[[list[Task]], list[Result]],
    cache: ResultCache,
    rest: Callable[[], None],
) -> list[Result]:
    """Do each task once among all runs that share a cache; returns the results in any order.

    Args:
        tasks: to be done.
        keys: of each task's work.
        known: returns the result of a task that some run has finished, else None.
        do: does tasks, puts each one's work into the cache, and returns their results.
        cache: shared by the runs.
        rest: called before waiting, to release machines.
    """
    results: list[Result] = []
    left = dict(zip(keys, tasks, strict=True))
    while left:
        mine = cache.claim(list(left))
        try:
            found = {key: result for key in mine if (result := known(left[key])) is not None}
            results += found.values()
            if todo := [left[key] for key in mine if key not in found]:
                results += do(todo)
        finally:
            cache.release(mine)
        for key in mine:
            del left[key]
        # A run that waits holds neither claims nor machines, so that two runs never wait for each other.
        if left and not mine:
            rest()
            time.sleep(_PAUSE_S)
    return results
