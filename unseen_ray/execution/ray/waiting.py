"""Waiting for what a cluster is to bring: said once a minute, and not for ever."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from unseen_ray.errors import ClusterError

__all__ = ["Wait"]

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 60.0


@dataclass(slots=True, kw_only=True)
class Wait:
    """Says once a minute what has not come, and gives up after `wait_s` without hope.

    Args:
        asked: what for, as messages call it.
        wait_s: how long it may be hopeless.
    """

    asked: str
    wait_s: float
    _since: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _hoped: float = field(default_factory=time.monotonic)

    def check(self, *, came: bool, may_come: bool, otherwise: str) -> None:
        """Take note of how things stand; to be called again and again.

        Args:
            came: whether it is there.
            may_come: whether the cluster has it, and others merely hold it.
            otherwise: what to say when it is given up.

        Raises:
            ClusterError: if it neither came nor could have for `wait_s`.
        """
        now = time.monotonic()
        if came or may_come:
            self._hoped = now
        if came:
            self._since = self._said = now
        elif not may_come and now - self._hoped > self.wait_s:
            raise ClusterError(otherwise)
        elif now - self._said >= _SAY_EVERY_S:
            self._said = now
            logger.warning("waiting for %s, %.0f s so far", self.asked, now - self._since)
