"""An evaluation under both budgets, and one that trains until its interval is narrow enough."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import unseen_ray as ur
from unseen_ray.cli import main
from unseen_ray.cli.summary.evaluation import evaluation_lines, evaluation_table
from unseen_ray.evaluation.precision import MOST_SEEDS, next_seeds, seeds_for
from unseen_ray.runs.evaluation_file import stored_tables
from unseen_ray.runs.tasks import EvalResult

RECIPE = {"use": "quick", "epochs": 1, "min_steps": 5}
AGAINST = ("random", "full", "resampled")


@pytest.fixture
def run(tmp_path: Path) -> ur.PruneResult:
    source = {"use": "digits", "limit": 200}
    return ur.prune(
        ur.PruneConfig(source=source, keep=0.5, out=tmp_path / "run", folds=2, recipe=RECIPE, executor="local")
    )


class Trained:
    """The names of the trainings that were made."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, event: object) -> None:
        if isinstance(event, EvalResult):
            self.names.append(event.task)


def measured(run: ur.PruneResult, **asked: Any) -> tuple[ur.Evaluation, list[str]]:
    trained = Trained()
    return ur.evaluate(run, test="digits", **{"seeds": 2, "against": AGAINST, **asked}, on_event=trained), trained.names


def of_arms(table: ur.Evaluation) -> dict[str, tuple[float, ...]]:
    return {arm.name: arm.accuracies for arm in table.arms}


# --- Both budgets. ---


def test_both_budgets_are_the_tables_of_either(run: ur.PruneResult) -> None:
    both, names = measured(run, budget="both")
    assert len(names) == len(set(names)) == 2 * (3 * 2 + 1)  # on all samples the two are one training
    assert list(both.by_budget) == ["epochs", "iterations"]
    assert both.budget == "epochs" and not both.by_budget["epochs"].others
    for budget, table in both.by_budget.items():
        alone, again = measured(run, budget=budget)
        assert set(again) <= {"full seed 0", "full seed 1"} if budget == "iterations" else again == []
        assert of_arms(alone) == of_arms(table)
        assert (alone.recipe, alone.budget) == (table.recipe, budget)
        assert (alone.break_even is None) == (table.break_even is None) == (budget == "iterations")
    assert of_arms(both)["coreset"] != of_arms(both.by_budget["iterations"])["coreset"]


def test_both_budgets_train_nothing_that_either_has_trained(run: ur.PruneResult) -> None:
    alone = {budget: measured(run, budget=budget)[0] for budget in ("epochs", "iterations")}
    both, names = measured(run, budget="both")
    assert names == []
    assert {budget: of_arms(table) for budget, table in both.by_budget.items()} == {
        budget: of_arms(table) for budget, table in alone.items()
    }


def test_both_budgets_are_stored_and_shown_as_two_tables(run: ur.PruneResult) -> None:
    both, _ = measured(run, budget="both")
    tables = both.by_budget
    assert stored_tables(run.run.folder) == [tables["epochs"].to_json(), tables["iterations"].to_json()]
    values = json.loads(json.dumps(both.to_json()))
    assert values["by_budget"] == {budget: table.to_json() for budget, table in tables.items()}
    assert {name: value for name, value in values.items() if name != "by_budget"} == tables["epochs"].to_json()
    first, *rest = evaluation_lines(both)
    assert "2 epochs each and 6 steps each, measured" in first
    assert sum(line.startswith("Under epochs: The lead over random is known to ±") for line in rest) == 1
    assert sum(line.startswith("Under iterations: The lead over random is known to ±") for line in rest) == 1
    assert sum(line.startswith("Under epochs: Pruning ") for line in rest) == 1
    of_random = evaluation_lines(both, is_random=True)
    assert sum(line.startswith("The coreset is a random subset itself") for line in of_random) == 1
    assert sum(line.startswith("Under epochs: Choosing does not pay") for line in of_random) == 1
    assert not any("Pruning" in line for line in of_random)
    table = evaluation_table(both)
    assert [row[0] for row in table.rows] == [*["epochs"] * 4, *["iterations"] * 4]
    alone = evaluation_table(tables["epochs"])
    assert [column.title for column in table.columns] == ["budget", *(column.title for column in alone.columns)]


def test_an_interrupted_evaluation_under_both_budgets_goes_on(run: ur.PruneResult) -> None:
    names: list[str] = []

    def interrupt(event: object) -> None:
        if isinstance(event, EvalResult):
            names.append(event.task)
            if len(names) == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.evaluate(run, test="digits", seeds=2, against=AGAINST, budget="both", on_event=interrupt)
    _, rest = measured(run, budget="both")
    assert len({*names, *rest}) == len(names) + len(rest) == 14


# --- Until an interval is narrow enough. ---


@pytest.mark.parametrize("spreads", [(0.01, 0.01), (0.002, 0.02), (0.0001, 0.01)])
@pytest.mark.parametrize("half_width", [0.002, 0.005, 0.02])
def test_the_seeds_that_an_interval_takes(spreads: tuple[float, float], half_width: float) -> None:
    rng = np.random.default_rng(0)

    def sample(count: int, spread: float) -> np.ndarray:
        values = rng.normal(size=count)
        return 0.8 + (values - values.mean()) / values.std(ddof=1) * spread  # of exactly this deviation

    def width(count: int) -> float:
        test = stats.ttest_ind(*(sample(count, spread) for spread in spreads), equal_var=False)
        found = test.confidence_interval(0.95)
        return float(found.high - found.low) / 2

    needed = seeds_for(*(sample(6, spread).tolist() for spread in spreads), half_width)
    assert needed is not None
    assert width(needed) <= half_width + 1e-12
    assert needed == 2 or width(needed - 1) > half_width


def test_equal_trainings_and_an_interval_out_of_reach_have_no_number() -> None:
    assert seeds_for([0.5, 0.5], [0.4, 0.4], 1e-9) is None
    assert seeds_for([0.5, 0.6], [0.4, 0.5], 1e-6) is None


@pytest.mark.parametrize(
    ("seeds", "widths", "needed", "more"),
    [
        (3, [0.4], [3], None),  # narrow enough
        (3, [0.4, 0.6], [3, 5], 5),  # the widest interval decides
        (3, [0.6], [40], 6),  # at most twice as many
        (3, [0.6], [2], 4),  # at least one more
        (15, [0.6], [None], 20),
        (20, [0.6], [31], None),
        (1, [math.nan], [None], 2),
    ],
)
def test_how_many_seeds_come_next(seeds: int, widths: list[float], needed: list[int | None], more: int | None) -> None:
    assert next_seeds(seeds, widths, needed, 0.5) == more


def test_it_trains_until_the_interval_is_narrow_enough_and_can_be_resumed(run: ur.PruneResult) -> None:
    start, _ = measured(run, seeds=3, against=("random",))
    until = 100 * start.differences[0].half_width * 0.8
    table, names = measured(run, seeds=3, against=("random",), until=until)
    seeds = len(table.arms[0].accuracies)
    assert 3 < seeds <= MOST_SEEDS and len(table.arms[1].accuracies) == seeds
    assert 100 * table.differences[0].half_width <= until or seeds == MOST_SEEDS
    assert sorted(names) == sorted(f"{arm} seed {seed}" for arm in ("coreset", "random") for seed in range(3, seeds))
    again, names = measured(run, seeds=3, against=("random",), until=until)
    assert (names, again.to_json()) == ([], table.to_json())
    same, _ = measured(run, seeds=seeds, against=("random",))
    assert same.to_json() == table.to_json()  # what so many seeds give in one go
    assert measured(run, seeds=3, against=("random",), until=100.0)[0].arms == start.arms


def test_under_both_budgets_the_wider_interval_decides(run: ur.PruneResult) -> None:
    both, _ = measured(run, seeds=3, against=("random",), budget="both")
    narrow, wide = sorted(100 * table.differences[0].half_width for table in both.by_budget.values())
    table, _ = measured(run, seeds=3, against=("random",), budget="both", until=(narrow + wide) / 2)
    (seeds,) = {len(arm.accuracies) for each in table.by_budget.values() for arm in each.arms}
    assert seeds > 3


def test_it_ends_at_the_most_seeds_and_says_how_many_it_would_take(run: ur.PruneResult) -> None:
    table, names = measured(run, seeds=1, against=("random",), until=0.001)
    assert [len(arm.accuracies) for arm in table.arms] == [MOST_SEEDS, MOST_SEEDS]
    assert len(names) == 2 * MOST_SEEDS
    (line,) = (line for line in evaluation_lines(table, 0.001) if "known to" in line)
    width = 100 * table.differences[0].half_width
    assert f"is known to ±{width:.2f} points by 20 seeds, the most that --until trains. ±0.001 would take" in line
    reached = next(line for line in evaluation_lines(table, 100) if "known to" in line)
    assert reached == f"The lead over random is known to ±{width:.2f} points by 20 seeds."
    few, _ = measured(run, seeds=3, against=("random",))
    (hint,) = (line for line in evaluation_lines(few) if "known to" in line)
    if (needed := few.seeds_for(0.5)) and needed > 3:
        within = " (--until 0.5)." if needed <= MOST_SEEDS else "."
        assert hint.endswith(f"by 3 seeds; ±0.5 would take about {needed}{within}")
    once, _ = measured(run, seeds=1, against=("random",))
    assert once.seeds_for(0.5) is None
    assert not any("known to" in line for line in evaluation_lines(once))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"until": 0.0}, r"until=0\.0 must be above 0 and finite: half the width"),
        ({"until": math.nan}, "until=nan must be above 0"),
        ({"until": math.inf}, "until=inf must be above 0 and finite"),
        ({"until": 0.5, "against": ("full",)}, r"until=0\.5 is about the lead over random, which against=full lacks"),
        ({"until": 0.5, "seeds": 21}, "seeds=21 is more than the 20 that until trains at most"),
        ({"until": 0.5, "selections": 2}, r"narrow no interval over selections=2\. Leave one of the two out"),
        (
            {"budget": "both", "recipe": {"epochs": None, "steps": 9}},
            r"budget='both' needs a recipe that counts epochs; .*steps=9",
        ),
    ],
)
def test_what_cannot_be_asked_together_is_refused(run: ur.PruneResult, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        measured(run, **asked)


def test_the_command_shows_both_budgets(run: ur.PruneResult, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", run.path, "--test", "digits", "--seeds", "2", "--against", "random", "--executor", "local"]
    asked = [*line, "--until", "99", "--budget", "both"]
    main(asked)
    text = capsys.readouterr().out
    assert "2 epochs each and 6 steps each" in text and "Under iterations: The lead over random is known to ±" in text
    main([*asked, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert list(values["by_budget"]) == ["epochs", "iterations"]
