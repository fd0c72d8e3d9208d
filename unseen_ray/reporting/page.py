"""The page: facts, plots and thumbnails in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from unseen_ray.config.named_recipes import recipe_name
from unseen_ray.config.score_columns import plug_label
from unseen_ray.reporting import figures
from unseen_ray.reporting.headline import command_to_measure, is_measurable, verdict
from unseen_ray.reporting.html import html_environment, number_text, safe
from unseen_ray.reporting.thumbnails import GROUPS, shown_classes

if TYPE_CHECKING:
    from unseen_ray.reporting.facts import ReportFacts
    from unseen_ray.reporting.thumbnails import Shots
    from unseen_ray.runs.run import Run

__all__ = ["render"]

_ALL_CLASSES = 40
_OPEN_CLASSES = 10


def render(run: Run, facts: ReportFacts, shots: Shots, no_images: str) -> str:
    """The report as HTML; all text that comes from the data is escaped.

    Args:
        run: the run.
        facts: the numbers.
        shots: thumbnails by class and group; empty if there are none.
        no_images: why there are none; empty if none were asked for.
    """
    values = facts.values
    # A table of a thousand classes helps nobody; the JSON has all of them.
    present = [row for row, size in enumerate(values["classes"]["samples"]) if size]
    rows = present if len(values["classes"]["names"]) <= _ALL_CLASSES else shown_classes(facts)
    environment = html_environment()
    environment.globals |= {"leads_of": _leads_of, "recipe_name": recipe_name, "label": plug_label, "verdict": verdict}
    return environment.get_template("page.html.j2").render(
        facts=values,
        command=command_to_measure(run) if is_measurable(run) else "",
        sections=list(_sections(values, shows_images=bool(shots or no_images))),
        figures={name: safe(svg) for name, svg in _plots(values, rows).items()},
        class_rows=rows,
        shots=shots,
        no_images=no_images,
        open_classes=_OPEN_CLASSES,
        group_titles=GROUPS,
        details=[
            ("Configuration as resolved", _yaml(values["config"])),
            ("Cost", _yaml(values["cost"])),
            ("Environment", _yaml(values["environment"])),
        ],
    )


def _sections(values: dict[str, Any], *, shows_images: bool) -> Iterator[tuple[str, str]]:
    """The sections that have something to show, in the order of the page."""
    yield "kept", "Kept"
    if shows_images:
        yield "images", "Images"
    yield "scores", "Scores"
    if len(values["stages"]) > 1 or any(stage.get("trials") for stage in values["stages"]):
        yield "stages", "Stages"
    if values["evaluation"]:
        yield "accuracy", "Accuracy"
    if values["suspects"] and values["suspects"]["first"]:
        yield "suspects", "Suspects"
    yield "run", "Run"


def _plots(values: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    distribution, score, classes = values["distribution"], values["score"], values["classes"]
    plots: dict[str, Any] = {
        "shares": figures.class_shares(
            [classes["names"][row] for row in rows],
            [classes["share"][row] for row in rows],
            mean=values["kept"] / values["samples"],
            title="Share kept of each class",
        ),
        "classes": _classes_plot(classes),
        "distribution": figures.histogram(
            distribution["edges"],
            distribution["counts"],
            label=score,
            title=f"Distribution of {score} over the samples",
        ),
        "agreement": [_agreement_plot(row) for row in values["agreement"]],
        "importance": [_importance_plot(row) for row in values["importance"]],
    }
    if values["evaluation"]:
        plots["accuracy"] = _accuracy_plot(values["evaluation"]["arms"])
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
    return figures.accuracies(
        [arm["name"] for arm in arms],
        [arm["accuracies"] for arm in arms],
        title="Accuracy by training set: " + ", ".join(f"{arm['name']} {arm['mean']:.4f}" for arm in arms),
    )


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _leads_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {row["baseline"]: row for row in evaluation["differences"]}
