"""pydantic's errors as messages: what was given, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from unseen_ray.errors import ConfigError
from unseen_ray.plugins import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

__all__ = ["allowed_value", "check_names", "field_messages"]

_ELSEWHERE = {"random_state": "seed", "n_splits": "folds", "cv": "folds", "n_jobs": "threads"}  # in scikit-learn

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}
_BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}", "pattern": "matching {}"}


def field_messages(
    details: Iterable[Any],
    model: type[BaseModel],
    *,
    parts: Mapping[str, type[BaseModel]] | None = None,
    hint: str | None = None,
    prefix: str = "",
) -> list[str]:
    """The messages for the entries of `ValidationError.errors()`.

    Args:
        details: the entries.
        model: the configuration.
        parts: models of its fields that are mappings, by their dotted names.
        hint: where to find the names of the fields; None to list them.
        prefix: what stands before the names of the fields, such as "recipe.".
    """
    messages: list[str] = []
    for detail in details:
        messages += _messages(detail, model, parts or {}, hint, prefix)
    return list(dict.fromkeys(messages))  # a union has an entry for each of its types


def check_names(field: str, values: Mapping[Any, Any]) -> None:
    """ValueError if a name in a mapping of fields is not text."""
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"{field}.{name} is not a field: names of fields are text, not {name!r}.")


def _meant(given: str, fields: Mapping[str, Any], parts: Mapping[str, type[BaseModel]]) -> str:
    """' Did you mean ...?' for the field that scikit-learn or a part of the configuration calls so, or for the nearest one."""
    inside = (f"{part}.{given}" for part, model in parts.items() if given in model.model_fields)
    named = _ELSEWHERE.get(given)
    found = named if named in fields else next(inside, None)
    return did_you_mean(given, fields) if found is None else f" Did you mean {found!r}?"


def _messages(
    detail: Any, model: type[BaseModel], parts: Mapping[str, type[BaseModel]], hint: str | None, prefix: str
) -> list[str]:
    path = [str(part) for part in detail["loc"]]
    name, leaf = (prefix + ".".join(path)).rstrip("."), path[0] if path else ""
    if detail["type"] == "value_error":
        error = detail["ctx"]["error"]
        if isinstance(error, ConfigError):  # of a recipe, whatever it is the recipe of
            return [name + problem.removeprefix("recipe") for problem in error.problems]
        return [str(error)]
    for depth in range(1, len(path)):
        if (part := ".".join(path[:depth])) in parts:
            model, leaf = parts[part], path[depth]
    fields = model.model_fields
    if detail["type"] == "extra_forbidden":
        hint = hint or f"Allowed: {', '.join(fields)}."
        return [f"{name} is not a field.{_meant(leaf, fields, parts)} {hint}"]
    if detail["type"] == "invalid_key":
        return [f"{name} is not a field: names of fields are text, not {detail['input']!r}."]
    if detail["type"] == "missing":
        return [f"{name} is missing: {fields[leaf].description}."]
    allowed = allowed_value(fields[leaf])
    return [f"{name}={detail['input']!r} is not allowed: it must be {allowed} ({fields[leaf].description})."]


def allowed_value(field: FieldInfo) -> str:
    """What the type and the bounds of a field allow, in words.

    >>> from pydantic.fields import FieldInfo
    >>> allowed_value(FieldInfo(annotation=int, ge=2))
    'a whole number, 2 or more'
    """
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    words = [_kind(kind) for kind in kinds if kind is not type(None)]
    bounds = [
        text.format(value)
        for rule in field.metadata
        for name, text in _BOUNDS.items()
        if (value := getattr(rule, name, None)) is not None
    ]
    return ", ".join([" or ".join(words), *filter(None, [" and ".join(bounds)])])


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *first, last = map(str, get_args(kind))
        return f"{', '.join(first)} or {last}" if first else last
    return _KINDS.get(get_origin(kind) or kind, "a mapping")
