"""What all configurations have in common: they are frozen, know their fields, and take no boolean for a number."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["Fields"]


class Fields(BaseModel):
    """A part of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers, although Python treats them as 1 and 0."""
        kind = str(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and re.match(r"<class '(int|float)'>|(int|float) \| None", kind):
            raise PydanticCustomError("boolean", "a number is allowed, not true or false")
        return value
