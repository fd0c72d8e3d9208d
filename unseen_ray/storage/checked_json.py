"""JSON files that contain the SHA-256 of their own entries."""

from __future__ import annotations

import json
import math
from typing import Any

from unseen_ray.storage.filesystem import sha256_of

__all__ = ["from_checked_json", "to_checked_json", "without_nan"]

_DIGEST = "sha256"


def to_checked_json(values: dict[str, Any], *, indent: int | None = 1) -> bytes:
    """Serialise a JSON object together with the digest of its entries; long lists of numbers are shorter without `indent`."""
    read_back = json.loads(json.dumps(values))  # the digest must be of what a reader gets: lists for tuples, text keys
    return (json.dumps({**read_back, _DIGEST: _digest(read_back)}, indent=indent) + "\n").encode()


def from_checked_json(data: bytes) -> dict[str, Any]:
    """The entries of a JSON object, without the digest; an object that has no digest is not checked.

    Raises:
        ValueError: if the data is not a JSON object, or its entries do not match its digest.
    """
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if values.pop(_DIGEST, None) not in (None, _digest(values)):
        raise ValueError("its entries do not match its checksum")
    return values


def _digest(values: dict[str, Any]) -> str:
    return sha256_of(json.dumps(values, sort_keys=True).encode())


def without_nan(value: Any) -> Any:
    """Replace each NaN in nested values by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
