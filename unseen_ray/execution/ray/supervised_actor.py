"""An actor that is replaced when it is lost."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.exceptions import RayError

from unseen_ray.errors import FoldFailedError
from unseen_ray.execution.ray.failures import decide, explain, failure_of, loss_of, raise_own

__all__ = ["SupervisedActor"]

logger = logging.getLogger(__name__)


class SupervisedActor:
    """One actor of a class that reserves no CPU; a new one replaces it when it is lost.

    Args:
        cls: the plain class.
        max_retries: how often a call is repeated.
    """

    def __init__(self, cls: type, *, max_retries: int) -> None:
        self._cls, self._max_retries = cls, max_retries
        self._actor = self._start()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its result.

        Raises:
            UnseenError: as the method raised it on the actor.
            FoldFailedError: if it failed for good.
        """
        name = f"{self._cls.__name__}.{method}"
        for attempt in range(1, self._max_retries + 2):
            try:
                return ray.get(getattr(self._actor, method).remote(*args))
            except RayError as error:
                failure = failure_of(error)
                raise_own(error)
                if decide(failure, failed=attempt, max_retries=self._max_retries) == "give up":
                    raise FoldFailedError(name, attempt, explain(error, failure)) from None
                logger.warning("%s: %s; calling it again", name, loss_of(error))
                self._actor = self._start()
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Kill the actor."""
        ray.kill(self._actor)

    def _start(self) -> Any:
        # No CPU: folds may hold all of them, and a merge that waited for one would wait for ever. Retries are ours, to count them.
        options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        return ray.remote(self._cls).options(**options).remote()
