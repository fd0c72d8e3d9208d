"""The table of an evaluation, and what is said around it."""

from __future__ import annotations

import math

from rich.table import Table

from unseen_ray.cli.summary.text import several, table_of
from unseen_ray.config.named_recipes import recipe_name
from unseen_ray.evaluation.table import Difference, Evaluation

__all__ = ["evaluation_lines", "evaluation_table"]


def evaluation_table(evaluation: Evaluation) -> Table:
    """Accuracy of each arm, the coreset's lead over it, the disparity between its classes, and its cost."""
    table = table_of(
        "trained on", "samples", "accuracy", "std", "trainings", "coreset less this", "worst class", "spread of classes",
        "seconds each", "seconds to choose", "on",
    )  # fmt: skip
    leads = {difference.baseline: difference for difference in evaluation.differences}
    for arm in evaluation.arms:
        table.add_row(
            arm.name,
            f"{arm.samples:,}",
            f"{arm.mean:.4f}",
            "" if math.isnan(arm.std) else f"{arm.std:.4f}",
            str(len(arm.accuracies)),
            _lead(leads[arm.name]) if arm.name in leads else "",
            f"{arm.worst_class:.4f}",
            f"{arm.class_spread:.4f}",
            f"{arm.seconds_each:.1f}",
            "unknown" if arm.choosing_s is None else f"{arm.choosing_s:.1f}",
            ", ".join(arm.devices),
        )
    return table


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """What the table was measured by, and the lines below it."""
    recipe = evaluation.recipe
    budget = f"{recipe['epochs']} epochs each" if evaluation.budget == "epochs" else f"{recipe['steps']:,} steps each"
    lines = [
        f"{evaluation.model}, recipe {recipe_name(recipe)}, {budget}, measured after the last epoch "
        f"on {evaluation.test_samples:,} samples of {evaluation.test}"
    ]
    coreset = evaluation.arms[0]
    if any(not math.isnan(difference.low) for difference in evaluation.differences):
        of = f"over its {coreset.selections} choices" if coreset.selections > 1 else "for this one choice of it"
        lines.append(f"The coreset's lead is given with its 95 % interval, {of}.")
    if not math.isnan(coreset.std_selections):
        lines.append(
            f"Of the coreset's deviation, choosing again adds {coreset.std_selections:.4f}, training again {coreset.std_trainings:.4f}."
        )
    if (even := evaluation.break_even) is not None:
        cost = f"choosing took {even.choosing_s:,.1f} s of workers' time, and a training on the coreset"
        lines.append(
            f"The pruning has not paid: {cost} is not measurably shorter than one on everything."
            if even.trainings is None
            else f"The pruning has paid for its time after {several(math.ceil(even.trainings), 'training')}: {cost} "
            f"is {even.saved_s:,.1f} s shorter than one on everything."
        )
    return lines


def _lead(difference: Difference) -> str:
    if math.isnan(difference.low):
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
