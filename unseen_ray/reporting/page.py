"""The page: facts, plots and thumbnails in one file of HTML that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unseen_ray.config.named_recipes import recipe_name
from unseen_ray.reporting import figures
from unseen_ray.reporting.facts import ReportFacts
from unseen_ray.reporting.thumbnails import GROUPS, Thumbnail, shown_classes

__all__ = ["html_environment", "render", "safe"]

_SECTIONS = [
    ("kept", "Kept and cost"),
    ("accuracy", "Accuracy"),
    ("distribution", "Distribution"),
    ("agreement", "Seeds"),
    ("stages", "Stages"),
    ("classes", "Classes"),
    ("suspects", "Suspects"),
    ("images", "Images"),
    ("scores", "Scores"),
    ("run", "Run"),
]
_ALL_CLASSES = 40


def render(facts: ReportFacts, shots: Mapping[int, dict[str, list[Thumbnail]]], no_images: str) -> str:
    """The report as HTML; every text of the data is escaped.

    Args:
        facts: the numbers.
        shots: thumbnails by class and group; empty where there are none.
        no_images: what to say then.
    """
    values = facts.values
    classes = values["classes"]
    few = len(classes["names"]) <= _ALL_CLASSES
    environment = html_environment()
    environment.globals |= {"points": _points, "leads_of": _leads_of, "recipe_name": recipe_name}
    return environment.get_template("page.html.j2").render(
        facts=values,
        sections=_SECTIONS,
        figures={name: safe(svg) for name, svg in _plots(values).items()},
        class_rows=[row for row in range(len(classes["names"])) if classes["samples"][row]]
        if few
        else shown_classes(facts),
        shots=shots,
        no_images=no_images,
        group_titles=GROUPS,
        details=[
            ("Configuration as resolved", _yaml(values["config"])),
            ("Cost", _yaml(values["cost"])),
            ("Environment", _yaml(values["environment"])),
        ],
    )


def html_environment() -> Environment:
    """Our templates; every text that is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("unseen_ray.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"percent": _percent, "duration": _duration, "number": _number}
    return environment


def _plots(values: dict[str, Any]) -> dict[str, Any]:
    score, classes, evaluation = values["score"], values["classes"], values["evaluation"]
    hardness = classes["accuracy"].get("full", classes["unseen_accuracy"])
    known = [row for row, value in enumerate(hardness) if value is not None and classes["share"][row] is not None]
    distribution = values["distribution"]
    plots: dict[str, Any] = {
        "distribution": figures.histogram(
            distribution["edges"],
            distribution["counts"],
            label=score,
            title=f"Distribution of {score} over the samples",
        ),
        "agreement": [
            figures.density(
                row["cells"],
                across=f"rank with seed {row['seeds'][0]}",
                up=f"rank with seed {row['seeds'][1]}",
                title=f"Ranks of the samples with two seeds, {row['mode']}: correlation {_number(row['rank_correlation'])}",
            )
            for row in values["agreement"]
        ],
        "importance": [
            figures.density(
                row["cells"],
                across="rank in stage 0",
                up=f"rank in stage {row['stage']}",
                title=f"Ranks in stage 0 and stage {row['stage']}: correlation {_number(row['rank_correlation'])}",
            )
            for row in values["importance"]
        ],
        "classes": figures.class_points(
            [hardness[row] for row in known],
            [classes["share"][row] for row in known],
            [classes["names"][row] for row in known],
            label=f"accuracy of the class ({classes['hardness_of']})",
            title="Share kept of each class over its accuracy",
        ),
    }
    if evaluation:
        arms = evaluation["arms"]
        plots["accuracy"] = figures.accuracy_bars(
            [arm["name"] for arm in arms],
            [arm["mean"] for arm in arms],
            [math.nan if arm["std"] is None else arm["std"] for arm in arms],
            title="Accuracy of each arm: " + ", ".join(f"{arm['name']} {arm['mean']:.4f}" for arm in arms),
        )
    return plots


def safe(svg: str | list[str]) -> Markup | list[Markup]:
    """Plots are ours: every name in them was escaped where it was put in."""
    return Markup(svg) if isinstance(svg, str) else [Markup(one) for one in svg]


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _leads_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {row["baseline"]: row for row in evaluation["differences"]}


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:,.1f} s"
