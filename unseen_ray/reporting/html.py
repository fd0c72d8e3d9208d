"""Templates of our pages, and how they show numbers."""

from __future__ import annotations

import math

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["html_environment", "number_text", "points_text", "safe"]


def html_environment() -> Environment:
    """Our templates; all text that is inserted into them is escaped."""
    # Strict: a misspelled name in a template is an error, not an empty cell.
    environment = Environment(
        loader=PackageLoader("unseen_ray.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"percent": _percent, "duration": _duration, "number": number_text, "points": points_text}
    return environment


def safe(svg: str | list[str]) -> Markup | list[Markup]:
    """Mark our own plots as safe HTML; names were escaped when they were drawn."""
    return Markup(svg) if isinstance(svg, str) else [Markup(one) for one in svg]


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.2f}\N{NO-BREAK SPACE}%"


def number_text(value: float | None) -> str:
    """Three decimals, or `undefined`."""
    return "undefined" if value is None else f"{value:.3f}"


def points_text(value: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * value:+.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:,.1f} s"
