"""What policies share: the order of the candidates, and the check of an option that is a share of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen_ray.core.arrays import FloatArray, IdArray
from unseen_ray.core.seeds import tie_keys
from unseen_ray.errors import ConfigError

__all__ = ["Positions", "best_first", "check_share"]

Positions = NDArray[np.intp]


def best_first(scores_M: FloatArray, ids_M: IdArray, seed: int) -> Positions:
    """(M,) positions from the highest score to the lowest, ties by the seeded hash of the id."""
    return np.lexsort((tie_keys(ids_M, seed), -scores_M))


def check_share(name: str, value: float, *, most: float = 1.0, closed: bool = False) -> None:
    """Refuse an option that is no share of the candidates; ConfigError says what is allowed."""
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not (0 <= value <= most if closed else 0 <= value < most):
        raise ConfigError(
            f"policy option {name}={value!r} is outside 0 {'to' if closed else 'up to'} {most:g}: it is a share."
        )
