"""The table of an evaluation, and the sentences around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unseen_ray.cli.summary.text import several
from unseen_ray.cli.tables import Cell, Column, Table
from unseen_ray.config.named_recipes import recipe_name
from unseen_ray.evaluation.precision import MOST_SEEDS

if TYPE_CHECKING:
    from unseen_ray.evaluation.table import Difference, Evaluation

__all__ = ["evaluation_lines", "evaluation_table"]

_POINTS = 0.5  # half-width that the effects of pruning ask for: published ones at keep 0.7 are about as large

_COLUMNS = (
    Column("trained on", left=True),
    Column("samples", 1, ","),
    Column("accuracy", form=".4f"),
    Column("std", 1, ".4f"),
    Column("trainings", 2),
    Column("lead of coreset"),
    Column("worst class", 5, ".4f"),
    Column("class std", 6, ".4f"),
    Column("seconds each", 4, ",.1f"),
    Column("seconds to choose", 3, ",.1f"),
    Column("device", 7, left=True),
)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Accuracy on each training set, the coreset's lead over it, the spread of its class accuracies, and its cost; budget by budget."""
    table = Table([Column("budget", left=True), *_COLUMNS] if evaluation.others else _COLUMNS)
    for budget, each in evaluation.by_budget.items():
        for row in _rows(each):
            table.add(*([budget] if evaluation.others else []), *row)
    return table


def _rows(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    leads = {difference.baseline: difference for difference in evaluation.differences}
    for arm in evaluation.arms:
        yield (
            arm.name,
            arm.samples,
            arm.mean,
            arm.std,
            len(arm.accuracies),
            _lead(leads[arm.name]) if arm.name in leads else None,
            arm.worst_class,
            arm.class_spread,
            arm.seconds_each,
            "unknown" if arm.choosing_s is None else arm.choosing_s,
            ", ".join(arm.devices),
        )


def evaluation_lines(evaluation: Evaluation, until: float | None = None, *, is_random: bool = False) -> list[str]:
    """The line above the table, then the lines below it.

    Args:
        evaluation: the table, or those of several budgets.
        until: the half-width that was asked for, in percentage points; None for none.
        is_random: whether the coreset is a random subset itself.
    """
    recipe, tables = recipe_name(evaluation.recipe), evaluation.by_budget.values()
    lines = [
        f"{evaluation.model}, recipe {recipe}, {' and '.join(_budget(table) for table in tables)}, measured after the last epoch "
        f"on {evaluation.test} ({evaluation.test_samples:,} samples)"
    ]
    coreset = evaluation.arms[0]
    # With one training of each set there are no intervals to explain.
    if any(not math.isnan(difference.low) for difference in evaluation.differences):
        of = f"over its {coreset.selections} selections" if coreset.selections > 1 else "for this one selection"
        lines.append(
            f"The lead of the coreset is its accuracy minus the baseline's, with a 95 % confidence interval {of}."
        )
    if is_random:
        luck = ": its lead over others is the luck of one draw, which more seeds do not change"
        lines.append(f"The coreset is a random subset itself{luck if coreset.selections == 1 else ''}.")
        if "fitting" in (arm.name for arm in evaluation.arms):
            lines.append("No score is used, so that fitting keeps the same samples.")
    for table in tables:
        under = f"Under {table.budget}: " if evaluation.others else ""
        lines += [f"{under}{line}" for line in _lines_of(table, until, is_random=is_random)]
    return lines


def _budget(evaluation: Evaluation) -> str:
    recipe = evaluation.recipe
    return (
        f"{several(recipe['epochs'], 'epoch')} each"
        if evaluation.budget == "epochs"
        else f"{recipe['steps']:,} steps each"
    )


def _lines_of(evaluation: Evaluation, until: float | None, *, is_random: bool) -> Iterator[str]:
    """What to say of one budget's table."""
    coreset = evaluation.arms[0]
    yield from (_precision(evaluation, found, until) for found in evaluation.differences if _is_precise(found))
    if not math.isnan(coreset.std_selections):
        yield (
            f"The coreset's std has two parts: {coreset.std_selections:.4f} from selecting again, "
            f"{coreset.std_trainings:.4f} from training again."
        )
    if (even := evaluation.break_even) is not None:
        took = f"choosing took {even.choosing_s:,.1f} s of worker time, and"
        cost = f"{took} a training on the coreset"
        yield (
            f"Choosing does not pay: {took} a random subset is free."
            if is_random
            else f"Pruning has not saved time: {cost} is not measurably shorter than one on the full set."
            if even.trainings is None
            else f"Pruning saves time after {several(math.ceil(even.trainings), 'training')}: {cost} "
            f"is {even.saved_s:,.1f} s shorter than one on the full set."
        )


def _is_precise(found: Difference) -> bool:
    """Whether further trainings would narrow the interval of this difference: over random, of one selection."""
    return found.baseline == "random" and found.choices == 1 and not math.isnan(found.low)


def _precision(evaluation: Evaluation, found: Difference, until: float | None) -> str:
    """How well the lead over random is known, and how many seeds a given half-width takes."""
    points, seeds = until or _POINTS, len(evaluation.arms[0].accuracies)
    known = f"The lead over random is known to ±{100 * found.half_width:.2f} points by {several(seeds, 'seed')}"
    if round(100 * found.half_width, 2) <= points:
        return f"{known}."
    needed = evaluation.seeds_for(points)
    takes = "more than 10,000" if needed is None else f"about {max(needed, seeds + 1)}"
    most = f", the most that --until trains. ±{points:g}" if until and seeds >= MOST_SEEDS else f"; ±{points:g}"
    return f"{known}{most} would take {takes}" + (
        f" (--until {points:g})." if until is None and needed is not None and needed <= MOST_SEEDS else "."
    )


def _lead(difference: Difference) -> str:
    if math.isnan(difference.low):
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
