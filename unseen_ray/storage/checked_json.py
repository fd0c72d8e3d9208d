"""JSON files that contain the SHA-256 of their own entries."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np

from unseen_ray.storage.filesystem import sha256_of

__all__ = ["from_checked_json", "to_checked_json", "without_nan", "write_checked_json"]

_DIGEST = "sha256"
_SPELLED = 2**16  # numbers of an array that are Python objects at a time


def to_checked_json(values: dict[str, Any]) -> bytes:
    """Serialise a JSON object together with the digest of its entries."""
    read_back = json.loads(json.dumps(values))  # the digest must be of what a reader gets: lists for tuples, text keys
    return (json.dumps({**read_back, _DIGEST: _digest(read_back)}, indent=1) + "\n").encode()


def write_checked_json(stream: IO[bytes], values: Mapping[str, Any], lists: Mapping[str, Iterable[np.ndarray]]) -> None:
    """Write a JSON object with the digest of its entries, some of which are lists of more numbers than fit in memory.

    Args:
        stream: where to write.
        values: entries that fit.
        lists: by name, the pieces of a list.
    """
    digest = hashlib.sha256()

    def put(text: str) -> None:
        digest.update(text.encode())
        stream.write(text.encode())

    # In the order and the spelling of which `_digest` is.
    for place, name in enumerate(sorted({*values, *lists})):
        put(f"{', ' if place else '{'}{json.dumps(name)}: ")
        if name not in lists:
            put(json.dumps(values[name], sort_keys=True))
            continue
        between = "["
        for piece in lists[name]:
            for start in range(0, len(piece), _SPELLED):
                put(between + json.dumps(piece[start : start + _SPELLED].tolist())[1:-1])
                between = ", "
        put("[]" if between == "[" else "]")
    digest.update(b"}")
    stream.write(f', "{_DIGEST}": "{digest.hexdigest()}"}}\n'.encode())


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
