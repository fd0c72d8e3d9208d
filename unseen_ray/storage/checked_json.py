"""JSON files that carry the SHA-256 of their own entries."""

from __future__ import annotations

import json
import math
from typing import Any

from unseen_ray.storage.filesystem import sha256_of

__all__ = ["from_checked_json", "to_checked_json", "without_nan"]

_DIGEST = "sha256"


def to_checked_json(values: dict[str, Any]) -> bytes:
    """A JSON object as the bytes of a file, with the digest of its entries beside them."""
    read_back = json.loads(json.dumps(values))
    return (json.dumps({**read_back, _DIGEST: _digest(read_back)}, indent=1) + "\n").encode()


def from_checked_json(data: bytes) -> dict[str, Any]:
    """The entries of a JSON object, without the digest.

    Raises:
        ValueError: if it is none, or its entries are not those that were written; one without a digest is taken as it is.
    """
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    if values.pop(_DIGEST, None) not in (None, _digest(values)):
        raise ValueError("its entries are not those that were written")
    return values


def _digest(values: dict[str, Any]) -> str:
    return sha256_of(json.dumps(values, sort_keys=True).encode())


def without_nan(value: Any) -> Any:
    """Nested values with None for each NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
