"""The tables of several evaluations of one run: none is lost to one that says less."""

from __future__ import annotations

from typing import Any

from unseen_ray.runs.evaluation_file import fullest_first, with_table


def table(arms: dict[str, int], *, recipe: str = "quick", made: int = 0) -> dict[str, Any]:
    measured = {"model": "small_cnn", "recipe": recipe, "budget": "epochs", "test": None, "test_samples": 9}
    return {**measured, "made": made, "arms": [{"name": name, "accuracies": [0.5] * n} for name, n in arms.items()]}


def test_a_table_takes_the_place_of_one_that_says_no_more() -> None:
    small, full = table({"coreset": 1}), table({"coreset": 3, "random": 3}, made=1)
    assert with_table([small], full) == [full]
    assert with_table([full], table({"coreset": 3, "random": 3}, made=2))[0]["made"] == 2
    assert len(with_table([full], table({"coreset": 3, "random": 3}, made=2))) == 1


def test_a_table_that_says_less_stands_beside_the_fuller_one() -> None:
    full = table({"coreset": 3, "random": 3, "full": 3})
    for less in ({"coreset": 1, "random": 1}, {"coreset": 3, "random": 3}, {"coreset": 3, "random": 3, "full": 2}):
        tables = with_table([full], table(less, made=1))
        assert len(tables) == 2
        assert fullest_first(tables)[0] is full


def test_the_newest_way_of_measuring_comes_first() -> None:
    old, new = table({"coreset": 3, "random": 3}), table({"coreset": 1}, recipe="longer", made=1)
    assert [one["made"] for one in fullest_first(with_table([old], new))] == [1, 0]
    assert fullest_first([]) == []
