"""Where `--help` lists a field, said beside the field: its group, the word for its value, and whether it is rarely used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field
from pydantic.fields import FieldInfo

__all__ = ["HELP_GROUPS", "HelpEntry", "help_entry", "setting"]

Group = Literal["data", "choice", "training", "cluster", "storage"]

HELP_GROUPS: dict[Group, str] = {
    "data": "Data",
    "choice": "Choice of samples",
    "training": "Training",
    "cluster": "Cluster",
    "storage": "Storage",
}
"""The groups in the order of `--help`, with their titles."""


@dataclass(frozen=True, slots=True)
class HelpEntry:
    """How a field is listed.

    Attributes:
        group: its group.
        metavar: the word that stands for its value; None for one that follows from its type.
        rare: whether only `--help-all` lists it.
    """

    group: Group
    metavar: str | None = None
    rare: bool = False


def setting(
    default: Any, description: str, group: Group, metavar: str | None = None, *, rare: bool = False, **rest: Any
) -> Any:
    """A field of a configuration, see `HelpEntry`; `rest` goes to `pydantic.Field`.

    The default `...` is of fields that are required or have a `default_factory`.
    """
    return Field(default, description=description, json_schema_extra=asdict(HelpEntry(group, metavar, rare)), **rest)


def help_entry(field: FieldInfo) -> HelpEntry:
    """How a field is listed; TypeError if it does not say."""
    said = field.json_schema_extra
    if not isinstance(said, dict) or said.get("group") not in HELP_GROUPS:
        raise TypeError(f"the field with the description {field.description!r} names no group.")
    return HelpEntry(**said)  # type: ignore[arg-type]
