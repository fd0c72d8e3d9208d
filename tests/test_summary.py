"""What the commands print: names of the data as they are, and words for what was measured."""

from __future__ import annotations

from typing import Any

from unseen_ray.cli.summary.run import class_table, prune_lines
from unseen_ray.cli.summary.text import accuracy_text
from unseen_ray.config.named_recipes import RECIPES, recipe_name
from unseen_ray.core.samples.id_sets import FoldSpec
from unseen_ray.core.tasks import stage_zero_tasks


def test_names_of_classes_are_no_markup() -> None:
    names = ["[/x]", "dog [red]", "[link=file:///etc]cat"]
    rows = [{"class": name, "samples": 2, "kept": 1} for name in names]
    shown = class_table({"classes": rows}).lines(120)
    assert all(any(line.startswith(name) for line in shown) for name in names)


def test_accuracy_on_what_was_fitted_is_not_called_out_of_fold() -> None:
    values: dict[str, Any] = {
        "kept": 5, "num_samples": 10, "source": "digits", "score": "entropy", "policy": "top", "model": "small_cnn",
        "precision": "bf16", "stages": [{"vote_accuracy": 0.9}], "cost": {}, "coreset": "c", "out": "o",
    }  # fmt: skip
    assert "out-of-fold accuracy 0.9000" in prune_lines({**values, "mode": "unseen"})[0]
    assert "training accuracy 0.9000" in prune_lines({**values, "mode": "fitting"})[0]
    for mode, said in (("unseen", "0.968 unseen"), ("fitting", "0.968 trained")):
        tasks = stage_zero_tasks(mode=mode, spec=FoldSpec(num_folds=2, seed=0), train_on="fold", repeats=2)
        assert {accuracy_text(0.968, task.name) for task in tasks} == {said}


def test_the_holdout_is_counted_beside_what_is_kept() -> None:
    values: dict[str, Any] = {
        "kept": 1007, "num_samples": 1438, "holdout": 359, "source": "digits", "score": "entropy", "policy": "top", "stages": [],
        "coreset": "c", "out": "o",
    }  # fmt: skip
    assert prune_lines(values)[0].startswith("Kept 1,007 of 1,438 samples (359 held out of 1,797) of digits")
    assert prune_lines({**values, "holdout": 0})[0].startswith("Kept 1,007 of 1,438 samples of digits")
    lines = prune_lines({**values, "skipped": 1, "copies": 2})
    assert (
        "(359 held out of 1,800)" in lines[0]
        and lines[1] == "Left out, as unreadable: 1 sample, which manifest.json lists."
    )


def test_a_recipe_is_called_by_what_it_changes() -> None:
    for name, (recipe, _) in RECIPES.items():
        assert recipe_name(recipe.model_dump()) == name
    changed = {**RECIPES["quick"][0].model_dump(), "epochs": 30, "precision": "bf16"}
    assert recipe_name(changed) == "quick (epochs 30)"
