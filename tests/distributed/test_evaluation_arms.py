"""An evaluation on Ray: several budgets, rounds and draws in one go, with the results of one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import unseen_ray as ur

pytestmark = pytest.mark.ray


def run_in(folder: Path, **fields: Any) -> ur.PruneResult:
    source = {"use": "digits", "limit": 400}
    recipe = {"use": "quick", "epochs": 1, "min_steps": 0}
    asked = {"source": source, "keep": 0.5, "holdout": 0.25, "folds": 2, "recipe": recipe, **fields}
    return ur.prune(ur.PruneConfig(**asked, out=folder, executor="local"))


def of_arms(table: ur.Evaluation) -> dict[str, dict[str, tuple[float, ...]]]:
    return {budget: {arm.name: arm.accuracies for arm in each.arms} for budget, each in table.by_budget.items()}


@pytest.mark.slow
def test_both_budgets_and_further_rounds_give_what_one_process_gives(tmp_path: Path, session: None) -> None:
    here = run_in(tmp_path / "here")
    there = ur.load(shutil.copytree(here.path, tmp_path / "there"))
    against = ("random", "full", "resampled:fixed=0.5")
    asked = {"seeds": 2, "against": against, "budget": "both"}
    start = ur.evaluate(here, **asked)
    widths = [100 * table.differences[0].half_width for table in start.by_budget.values()]
    asked["until"] = 0.95 * max(widths)
    expected = ur.evaluate(here, **asked)
    found = ur.evaluate(there, **asked, executor="ray")
    assert of_arms(found) == of_arms(expected)
    assert len(found.arms[0].accuracies) > 2


@pytest.mark.slow
def test_workers_that_share_a_fit_draw_alike(tmp_path: Path, session: None) -> None:
    run = run_in(tmp_path, recipe={"use": "quick", "epochs": 15})
    asked = {"seeds": 1, "against": ("resampled:fixed=0.5",)}
    alone = ur.evaluate(run, **asked, executor="local").arms[1]
    together = ur.evaluate(run, **asked, executor="ray", gpus_per_fit=2).arms[1]
    assert together.samples == alone.samples == 150
    assert abs(together.mean - alone.mean) < 0.06
