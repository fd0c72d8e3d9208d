"""Class names in the metadata of a Parquet file."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

__all__ = ["class_names"]


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The class names in the metadata: Hugging Face's ClassLabel, else a list in JSON or separated by | or commas."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        names = _plain_names(metadata)
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _plain_names(metadata: dict[bytes, bytes]) -> Any:
    for key in (b"class_names", b"class_wnids"):
        if key in metadata:
            try:
                return json.loads(metadata[key])
            except ValueError:
                text = metadata[key].decode("utf-8", "replace")
                return text.split("|" if "|" in text else ",")
    return None
