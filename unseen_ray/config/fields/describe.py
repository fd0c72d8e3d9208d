"""The fields of a configuration as text, from the descriptions and defaults that flags and `--help` are made of."""

from __future__ import annotations

import inspect
from typing import TypeVar

from pydantic import BaseModel

__all__ = ["described"]

Model = TypeVar("Model", bound=BaseModel)


def described(model: type[Model]) -> type[Model]:
    """A decorator that adds every field with its default to a configuration's docstring, for `help` and notebooks."""
    fields = []
    for name, field in model.model_fields.items():
        stated = field.default_factory is None and not field.is_required() and field.default is not None
        fields.append(f"    {name}: {field.description}{f' [default: {field.default}]' if stated else ''}.")
    model.__doc__ = "\n".join([inspect.cleandoc(model.__doc__ or ""), "", "Args:", *fields])
    return model
