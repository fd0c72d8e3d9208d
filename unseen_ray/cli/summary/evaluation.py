"""The table of an evaluation, and the sentences around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from unseen_ray.cli.summary.text import bare_table, several
from unseen_ray.config.named_recipes import recipe_name

if TYPE_CHECKING:
    from unseen_ray.evaluation.table import Difference, Evaluation

__all__ = ["evaluation_lines", "evaluation_table"]


def evaluation_table(evaluation: Evaluation) -> Table:
    """Accuracy of each arm, the coreset's lead over it, the spread of its class accuracies, and its cost."""
    table = bare_table(
        "trained on", "samples", "accuracy", "std", "trainings", "lead of coreset", "worst class", "class std",
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
    """The line above the table, then the lines below it."""
    recipe = evaluation.recipe
    budget = f"{recipe['epochs']} epochs each" if evaluation.budget == "epochs" else f"{recipe['steps']:,} steps each"
    lines = [
        f"{evaluation.model}, recipe {recipe_name(recipe)}, {budget}, measured after the last epoch "
        f"on {evaluation.test_samples:,} samples of {evaluation.test}"
    ]
    coreset = evaluation.arms[0]
    # With one training of each set there are no intervals to explain.
    if any(not math.isnan(difference.low) for difference in evaluation.differences):
        of = f"over its {coreset.selections} selections" if coreset.selections > 1 else "for this one selection"
        lines.append(
            f"The lead of the coreset is its accuracy minus the baseline's, with a 95 % confidence interval {of}."
        )
    if not math.isnan(coreset.std_selections):
        lines.append(
            f"The coreset's std has two parts: {coreset.std_selections:.4f} from selecting again, "
            f"{coreset.std_trainings:.4f} from training again."
        )
    if (even := evaluation.break_even) is not None:
        cost = f"choosing took {even.choosing_s:,.1f} s of worker time, and a training on the coreset"
        lines.append(
            f"Pruning has not saved time: {cost} is not measurably shorter than one on the full set."
            if even.trainings is None
            else f"Pruning saves time after {several(math.ceil(even.trainings), 'training')}: {cost} "
            f"is {even.saved_s:,.1f} s shorter than one on the full set."
        )
    return lines


def _lead(difference: Difference) -> str:
    if math.isnan(difference.low):
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
