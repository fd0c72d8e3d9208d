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
    """Logs once a minute what is still missing, and gives up after `wait_s` in which the cluster could not provide it.

    Args:
        requested: what for, as messages call it.
        wait_s: how long the cluster may be unable to provide it.
    """

    requested: str
    wait_s: float
    _since: float = field(default_factory=time.monotonic)
    _last_log: float = field(default_factory=time.monotonic)
    _last_chance: float = field(default_factory=time.monotonic)

    def check(self, *, came: bool, may_come: bool, otherwise: str) -> None:
        """Note the present state; call it at every poll.

        Args:
            came: whether it has come.
            may_come: whether the cluster could provide it: it has the resources, though others use them now.
            otherwise: the error's message.

        Raises:
            ClusterError: if it neither came nor could have come for `wait_s`.
        """
        now = time.monotonic()
        if came or may_come:
            self._last_chance = now
        if came:
            self._since = self._last_log = now
        elif not may_come and now - self._last_chance > self.wait_s:
            raise ClusterError(otherwise)
        elif now - self._last_log >= _LOG_EVERY_S:
            self._last_log = now
            logger.warning("waiting for %s, %.0f s so far", self.requested, now - self._since)
