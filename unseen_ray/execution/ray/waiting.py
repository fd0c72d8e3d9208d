"""Waiting for workers that a cluster has yet to provide, with a log line a minute and a time limit."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from unseen_ray.errors import ClusterError

__all__ = ["Wait"]

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 60.0


@dataclass(slots=True, kw_only=True)
class Wait:
    """Logs that the run waits, and gives up after `wait_s` in which the cluster could not provide what it waits for.

    It says once that other work holds it, and once a minute that no node has it.

    Args:
        requested: what for, as messages call it.
        wait_s: how long the cluster may be unable to provide it.
    """

    requested: str
    wait_s: float
    _since: float = field(default_factory=time.monotonic)
    _last_check: float = field(default_factory=time.monotonic)
    _last_log: float = field(default_factory=time.monotonic)
    _last_chance: float = field(default_factory=time.monotonic)
    _busy_s: float = 0.0

    def check(self, *, came: bool, may_come: bool, is_busy: bool, otherwise: str) -> float:
        """Note the present state; call it at every poll.

        Args:
            came: whether it has come.
            may_come: whether the cluster could provide it: it has the resources, though others use them now.
            is_busy: whether Ray has yet to find a place for it.
            otherwise: the error's message.

        Returns:
            The seconds since the last call, if they were spent waiting; 0 while workers start or work.

        Raises:
            ClusterError: if it neither came nor could have come for `wait_s`.
        """
        now = time.monotonic()
        passed, self._last_check = now - self._last_check, now
        if came or may_come:
            self._last_chance = now
        if came:
            if self._busy_s:
                logger.info("waited %.0f s for %s", self._busy_s, self.requested)
            self._since, self._last_log, self._busy_s = now, now, 0.0
            return 0.0
        if may_come and is_busy:
            return self._note_busy(passed)
        if not may_come and now - self._last_chance > self.wait_s:
            raise ClusterError(otherwise)
        if now - self._last_log >= _LOG_EVERY_S:
            self._last_log = now
            what = "Ray to start a worker with " if may_come else ""
            logger.warning("waiting for %s%s, %.0f s so far", what, self.requested, now - self._since)
        return 0.0 if may_come else passed

    def _note_busy(self, passed: float) -> float:
        if not self._busy_s:
            logger.info("waiting for %s: other work on the cluster holds all that fit", self.requested)
        self._busy_s += passed
        return passed
