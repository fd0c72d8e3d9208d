"""Work that several runs need is done once: a shelf of what is finished, by what determines it, and claims on what is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypeVar

from unseen_ray.runs.evaluation_file import result_of
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult
from unseen_ray.runs.votes import borrow_votes, find_receipt
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json, without_nan
from unseen_ray.storage.filesystem import Folder

__all__ = ["ClaimBook", "ResultCache", "TaskClaims", "once"]

_SILENCE_S = 60.0
_BEAT_S = 10.0
_PAUSE_S = 0.5
_RESULT = "result.json"
_PLACE = (0, 0)  # stage and index under which votes stand on the shelf, whatever task they were

Task = TypeVar("Task")
Result = TypeVar("Result")


class TaskClaims(Protocol):
    """Who is at work on what; see `ClaimBook`."""

    def claim(self, owner: str, keys: list[str]) -> list[str]:
        """Claim what nobody else has."""
        ...

    def release(self, owner: str, keys: list[str]) -> None:
        """Give claims back."""
        ...

    def beat(self, owner: str) -> None:
        """Note that an owner lives."""
        ...


@dataclass(slots=True, eq=False)
class ClaimBook:
    """TaskClaims on unfinished work. An owner that has been silent for a minute has none.

    Attributes:
        silence_s: how long an owner may be silent.
    """

    silence_s: float = _SILENCE_S
    _owner_of: dict[str, str] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)

    def claim(self, owner: str, keys: list[str]) -> list[str]:
        """Claim what nobody else has; returns those keys, in the order given."""
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
        """Give everything back that an owner has claimed: it has ended."""
        self.release(owner, [key for key, its in self._owner_of.items() if its == owner])

    def beat(self, owner: str) -> None:
        """Note that an owner lives."""
        self._heard[owner] = time.monotonic()

    def _is_held(self, key: str, *, by_others_than: str) -> bool:
        owner = self._owner_of.get(key)
        if owner is None or owner == by_others_than:
            return False
        return time.monotonic() - self._heard[owner] < self.silence_s


class ResultCache:
    """One run's view of the work that it shares with others. Use as a context, in which it says that it lives.

    Args:
        root: the folder of the shelf.
        owner: the run's name among those that share it.
        claims: who is at work on what.
    """

    def __init__(self, root: str, owner: str, claims: TaskClaims) -> None:
        self._root, self._owner, self._claims = Folder(root), owner, claims
        self._over = threading.Event()

    def __enter__(self) -> ResultCache:
        threading.Thread(target=self._beat, daemon=True, name="shelf").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def claim(self, keys: list[str]) -> list[str]:
        """See `ClaimBook.claim`."""
        return self._claims.claim(self._owner, keys)

    def release(self, keys: list[str]) -> None:
        """See `ClaimBook.release`."""
        self._claims.release(self._owner, keys)

    def lend_votes(self, folder: Folder, stage: int, index: int, key: str) -> None:
        """Put the votes of a task on the shelf, if they are not there."""
        if find_receipt(self._at(key), *_PLACE, key) is None:
            borrow_votes(folder, self._at(key), *_PLACE, key, at=(stage, index))

    def borrow_votes(self, folder: Folder, stage: int, index: int, key: str, name: str) -> Receipt | None:
        """Take the votes of a task from the shelf into a run's folder; None where they are not there."""
        return borrow_votes(self._at(key), folder, stage, index, key, at=_PLACE, name=name)

    def lend_result(self, key: str, result: EvalResult) -> None:
        """Put what an evaluation said on the shelf."""
        self._at(key).write(_RESULT, to_checked_json(without_nan(asdict(result))))

    def borrow_result(self, key: str) -> EvalResult | None:
        """What an evaluation said; None where it is not there, or damaged."""
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
    """Have each task done once among all that share a shelf; returns the results in no certain order.

    Whoever waits holds no claim and no machine, so that nobody waits for ever.

    Args:
        tasks: to be done.
        keys: what names the work of each.
        known: the result of a task that somebody has finished, else None.
        do: does tasks, puts each one's work on the shelf, and returns their results.
        shelf: what is shared.
        rest: is called before waiting, to let machines go.
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
        if left and not mine:
            rest()
            time.sleep(_PAUSE_S)
    return results
