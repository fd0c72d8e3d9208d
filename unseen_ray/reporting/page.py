"""The page: facts, plots and thumbnails in one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from unseen_ray.config.named_recipes import recipe_name
from unseen_ray.config.score_columns import plug_label
from unseen_ray.reporting import figures
from unseen_ray.reporting.html import html_environment, number_text, safe
from unseen_ray.reporting.thumbnails import GROUPS, shown_classes

if TYPE_CHECKING:
    from unseen_ray.reporting.facts import ReportFacts
    from unseen_ray.reporting.thumbnails import Thumbnail

__all__ = ["render"]

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
    """The report as HTML; all text that comes from the data is escaped.

    Args:
        facts: the numbers.
        shots: thumbnails by class and group; empty if there are none.
        no_images: the sentence to show instead of thumbnails.
    """
    values = facts.values
    classes = values["classes"]
    few = len(classes["names"]) <= _ALL_CLASSES
    environment = html_environment()
    environment.globals |= {"points": _points, "leads_of": _leads_of, "recipe_name": recipe_name, "label": plug_label}
    return environment.get_template("page.html.j2").render(
        facts=values,
        sections=_SECTIONS,
        figures={name: safe(svg) for name, svg in _plots(values).items()},
        # A table of a thousand classes helps nobody; the JSON has all of them.
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


def _plots(values: dict[str, Any]) -> dict[str, Any]:
    distribution, score, evaluation = values["distribution"], values["score"], values["evaluation"]
    plots: dict[str, Any] = {
        "distribution": figures.histogram(
            distribution["edges"],
            distribution["counts"],
            label=score,
            title=f"Distribution of {score} over the samples",
        ),
        "agreement": [_agreement_plot(row) for row in values["agreement"]],
        "importance": [_importance_plot(row) for row in values["importance"]],
        "classes": _classes_plot(values["classes"]),
    }
    if evaluation:
        plots["accuracy"] = _accuracy_plot(evaluation["arms"])
    return plots


def _agreement_plot(row: dict[str, Any]) -> str:
    first, second = row["seeds"][:2]
    return figures.density(
        row["cells"],
        across=f"rank with seed {first}",
        up=f"rank with seed {second}",
        title=f"Ranks of the samples with two seeds, {row['mode']}: correlation {number_text(row['rank_correlation'])}",
    )


def _importance_plot(row: dict[str, Any]) -> str:
    return figures.density(
        row["cells"],
        across="rank in stage 0",
        up=f"rank in stage {row['stage']}",
        title=f"Ranks in stage 0 and stage {row['stage']}: correlation {number_text(row['rank_correlation'])}",
    )


def _classes_plot(classes: dict[str, Any]) -> str:
    hardness = classes["accuracy"].get("full", classes["unseen_accuracy"])
    known = [row for row, value in enumerate(hardness) if value is not None and classes["share"][row] is not None]
    return figures.class_points(
        [hardness[row] for row in known],
        [classes["share"][row] for row in known],
        [classes["names"][row] for row in known],
        label=f"accuracy of the class ({classes['hardness_of']})",
        title="Share kept of each class against its accuracy",
    )


def _accuracy_plot(arms: list[dict[str, Any]]) -> str:
    return figures.accuracy_bars(
        [arm["name"] for arm in arms],
        [arm["mean"] for arm in arms],
        [math.nan if arm["std"] is None else arm["std"] for arm in arms],
        title="Accuracy by training set: " + ", ".join(f"{arm['name']} {arm['mean']:.4f}" for arm in arms),
    )


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _leads_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {row["baseline"]: row for row in evaluation["differences"]}


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"
