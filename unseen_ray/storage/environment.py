"""The environment variables that the package reads, and how it replaces Ray's for a while.

Defaults for Ray stand beside their use, and what torch reads is set in `training/hardware.py`.

Values are read when they are asked for, not at import: a program may set one after it has imported the package.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping

__all__ = [
    "RAY_API_SERVER",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_FILE",
    "RAY_CLUSTER",
    "STORAGE_WAIT_S",
    "WANDB_MODE",
    "WANDB_PROJECT",
    "ray_job_id",
    "replaced_variables",
    "set_defaults",
    "storage_wait_s",
    "variable",
    "variables_of",
]

STORAGE_WAIT_S = "UNSEEN_RAY_STORAGE_WAIT_S"  # ours: seconds for which a storage may fail or not answer
RAY_CLUSTER = "RAY_ADDRESS"  # the cluster to join where a run names none
RAY_API_SERVER = "RAY_API_SERVER_ADDRESS"  # the dashboard to submit a job to where `submit` names none
RAY_AUTH_MODE = "RAY_AUTH_MODE"  # `token` if Ray's clients are to send one
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # the token, or the file that holds it
_RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit` for the driver that it starts
WANDB_MODE, WANDB_PROJECT = "WANDB_MODE", "WANDB_PROJECT"  # of Weights & Biases: `offline`, and where fits are listed

_DEFAULT_WAIT_S, _LONGEST_WAIT_S = 120.0, 86_400.0


def variable(name: str) -> str | None:
    """The value of a variable; None if it is unset or empty."""
    return os.environ.get(name) or None


def variables_of(prefix: str) -> tuple[tuple[str, str], ...]:
    """The variables whose names begin so, sorted."""
    return tuple(sorted(each for each in os.environ.items() if each[0].startswith(prefix)))


def storage_wait_s() -> float:
    """Seconds for which a storage may fail or not answer: 120, unless `STORAGE_WAIT_S` is set; ValueError if that is no such number."""
    given = variable(STORAGE_WAIT_S)
    if given is None:
        return _DEFAULT_WAIT_S
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_WAIT_S:
        raise ValueError(
            f"{STORAGE_WAIT_S}={given!r} must be seconds, 0 to {_LONGEST_WAIT_S:.0f}: for how long a storage may fail or not answer. "
            "Correct it, or unset it for 120."
        )
    return seconds


def ray_job_id() -> str:
    """The id that `ray job submit` gave this driver; empty for any other process."""
    try:
        metadata = json.loads(os.environ.get(_RAY_JOB_CONFIG, "{}")).get("metadata", {})
        return str(metadata.get("job_submission_id", ""))
    except (ValueError, AttributeError):
        return ""


def set_defaults(values: Mapping[str, str]) -> None:
    """Set variables for this process and its children, unless the user has set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def replaced_variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Give variables these values within the block, for this process and its children; None unsets one."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
