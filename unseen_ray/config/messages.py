"""pydantic's errors as messages: what was given, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unseen_ray.plugins import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["field_message"]


def field_message(
    detail: Any, model: type[BaseModel], *, parts: Mapping[str, type[BaseModel]], hint: str | None = None
) -> str:
    """The message for one entry of `ValidationError.errors()`.

    Args:
        detail: the entry.
        model: the configuration.
        parts: models of its fields that are mappings, by their dotted names.
        hint: where to find the names of the fields; None to list them.
    """
    path = [str(part) for part in detail["loc"]]
    name, leaf = ".".join(path), path[0]
    for depth in range(1, len(path)):
        if (part := ".".join(path[:depth])) in parts:
            model, leaf = parts[part], path[depth]
    fields = model.model_fields
    if detail["type"] == "extra_forbidden":
        hint = hint or f"Allowed: {', '.join(fields)}."
        return f"{name} is not a field.{did_you_mean(leaf, fields)} {hint}"
    if detail["type"] == "missing":
        return f"{name} is missing: {fields[leaf].description}."
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    allowed = str(detail["msg"]).replace("Input should be", "it must be")
    return f"{name}={detail['input']!r} is not allowed: {allowed} ({fields[leaf].description})."
